"""What a supervisor says of its worker: in a file, and to the server of probes."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Sequence

from taskline.clock import Clock
from taskline.errors import ConfigurationError
from taskline.worker import lifetime
from taskline.worker.options import WorkerOptions
from taskline.worker.parent import status
from taskline.worker.parent.child import Child
from taskline.worker.parent.probes import Probes

log = logging.getLogger("taskline.supervisor")


class Bulletin:
    """Owned by the supervisor."""

    def __init__(self, name: str, options: WorkerOptions, clock: Clock) -> None:
        self._name = name
        self._file = options.status_file
        self._where = options.http
        self._clock = clock
        self._probes: Probes | None = None
        self._ended = [0, 0, 0]
        """What the processes that are gone had counted: see `Ledger.ended`."""
        self._deaths = 0
        self._next = 0.0
        self._written = True
        """Whether the file could be written when it was to be."""

    def open(self) -> None:
        """Get ready to say how they are. Raises `ConfigurationError` when that is impossible."""
        if self._file is not None:
            status.claim(self._file, self._status([], 0, False))
        if self._where is not None:
            self._probes = Probes(self._where, self._clock)

    def only_parent(self) -> None:
        """Let a forked process keep nothing of it."""
        if self._probes is not None:
            self._probes.only_parent()

    def close(self) -> None:
        """Answer no more probes."""
        if self._probes is not None:
            self._probes.close()

    def remove_file(self) -> None:
        """The worker has stopped: there is nothing to say of it."""
        if self._file is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._file)

    def count(self, child: Child, *, crashed: bool) -> None:
        """The process of this child has ended: what it had counted is not to be lost."""
        self._ended = [*map(sum, zip(self._ended, child.ledger.ended, strict=True))]
        self._deaths += crashed

    def say(self, now: float, children: Sequence[Child], wanted: int, stopping: bool) -> None:
        """Say how these are, if somebody is to know and it is time again."""
        if (self._file is None and self._probes is None) or now < self._next:
            return
        self._next = now + status.WRITE_EVERY
        said = self._status([child for child in children if child.pid], wanted, stopping)
        if self._file is not None:
            self._write(self._file, said)
        if self._probes is not None:
            self._probes.tell(said)

    def _write(self, file: str, said: status.Status) -> None:
        try:
            status.write(file, said)
        except ConfigurationError as error:
            # No reason to stop working: those who look will see that it is old.
            if self._written:
                log.error("%s; trying again each second", error)
            self._written = False
        else:
            self._written = True

    def _status(self, alive: list[Child], wanted: int, stopping: bool) -> status.Status:
        running = [child.ledger.running() for child in alive]
        counts = zip(self._ended, *(child.ledger.ended for child in alive), strict=True)
        processes = [
            status.ProcessStatus(
                child.pid, child.ledger.ready, child.silent, [each.id for each in tasks]
            )
            for child, tasks in zip(alive, running, strict=True)
        ]
        return status.Status(
            self._name,
            os.getpid(),
            self._clock.time(),
            wanted,
            stopping,
            processes,
            dict(zip(("done", "retried", "failed"), map(sum, counts), strict=True)),
            self._deaths,
            min((each.started for tasks in running for each in tasks), default=None),
            sum(lifetime.resident(child.pid) for child in alive),
        )
