"""What was revoked, as one worker process knows it. Owned by the I/O thread."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from taskline.backends.base import Revocation
from taskline.errors import ConfigurationError
from taskline.message import Header
from taskline.revoking import MARK, Wish, read
from taskline.worker.execute import Job

log = logging.getLogger("taskline.worker")


class Revoked(set[str]):
    """The ids of tasks and workflows, and whole kinds of messages besides.

    A set, so that a worker which knows of none sees that without a call.
    """

    def __init__(self, revocations: Iterable[Revocation] = ()) -> None:
        super().__init__()
        self._wishes: dict[tuple[str, bytes], Wish] = {}
        """Each by what it is about; of several about the same the one that reaches furthest."""
        self.learn(revocations)

    def learn(self, revocations: Iterable[Revocation]) -> None:
        """Know of these too."""
        for each in revocations:
            self.add(each.id)
            if each.id.startswith(MARK):
                try:
                    wish = read(each.id)
                except ConfigurationError as error:
                    log.error("%s", error)
                    continue
                about = wish.about
                known = self._wishes.get(about)
                if known is None or known.before < wish.before:
                    self._wishes[about] = wish

    def concerns(self, header: Header) -> bool:
        """Whether a message is among them, by itself or with its workflow."""
        if header.id in self:
            return True
        if self._wishes and any(wish.concerns(header) for wish in self._wishes.values()):
            return True
        if header.flow is None or not self:
            return False
        flow = header.flow.id
        while flow not in self:
            flow, dash, _ = flow.rpartition("-")
            if not dash:
                return False
        return True

    def concerns_all(self, job: Job) -> bool:
        """Whether a job is; a batch is when all its members are."""
        return all(
            each.header is not None and self.concerns(each.header) for each in job.members or (job,)
        )
