"""In which order a worker asks its queues.

Owned by the I/O thread.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Collection, Mapping, Sequence

log = logging.getLogger("taskline.worker")


class Turns:
    """The queues of a worker: those of a lower rank first, within a rank by weight.

    Transports serve queues in the order in which they are asked, so a rank gets what those
    before it leave; which of one rank comes first is drawn anew each time.
    """

    def __init__(
        self, queues: Sequence[str], weights: Mapping[str, int], ranks: Mapping[str, int]
    ) -> None:
        self.queues = list(queues)
        """Those that are asked: all that are not paused."""
        self.paused: frozenset[str] = frozenset()
        """Those that are not."""
        self.all = list(queues)
        self._weights = weights
        self._ranks = ranks

    def leave_out(self, paused: Collection[str]) -> frozenset[str]:
        """Ask these no more, and all others again; returns those that are new among these."""
        before, self.paused = self.paused, frozenset(self.all).intersection(paused)
        self.queues = [queue for queue in self.all if queue not in self.paused]
        for said, queues in (
            ("is paused: nothing is taken of it", self.paused - before),
            ("goes on", before - self.paused),
        ):
            for queue in sorted(queues):
                log.info("the queue %s %s", queue, said)
        return self.paused - before

    def next(self) -> list[str]:
        """The order for this time: heavier queues of a rank tend to come first.

        Efraimidis and Spirakis, "Weighted random sampling with a reservoir", 2006.
        """
        queues = self.queues
        if len(queues) < 2:
            return queues
        weights, ranks = self._weights, self._ranks
        drawn = sorted(
            queues, key=lambda queue: random.random() ** (1 / weights.get(queue, 1)), reverse=True
        )
        if ranks:
            drawn.sort(key=lambda queue: ranks.get(queue, 0))
        return drawn
