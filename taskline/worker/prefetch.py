"""How many messages a process holds ready, from how long its tasks take."""

from __future__ import annotations

HORIZON = 0.1
"""Seconds of work that a slot may have waiting in this process."""

PATIENCE = 0.2
"""Seconds without a slot becoming free after which waiting messages are handed back."""


BRIEF = 0.0005
"""Seconds that tasks take on the average whose end is worth waiting for."""


class Prefetch:
    """A running mean of task durations, weighted towards the recent ones.

    Owned by the I/O thread.
    """

    def __init__(self, slots: int, limit: int) -> None:
        self._slots = slots
        self._limit = limit
        self._mean = HORIZON

    def observe(self, durations: list[float]) -> None:
        """Learn from tasks that ended; seconds."""
        if durations:
            count = len(durations)
            old = 0.8**count
            self._mean = old * self._mean + (1 - old) * (sum(durations) / count)

    def stuck(self, elapsed: float) -> None:
        """Learn that the running tasks take `elapsed` seconds and more: nothing is held then."""
        self._mean = max(self._mean, elapsed, 1.01 * self._slots * HORIZON)

    @property
    def brief(self) -> bool:
        """Whether a task that was just begun will have ended in a moment."""
        return self._mean <= BRIEF

    def target(self) -> int:
        """How many messages to hold beyond those that idle slots take at once."""
        if self._mean <= 0:
            return self._limit
        return min(self._limit, int(self._slots * HORIZON / self._mean))
