"""Messages that once cost a worker its life or its lease run alone.

So a message that kills its worker takes no bystanders with it into the dead
letters, whether the supervisor is left to tell who ran, or nobody is and all that
the process held counts as lost. Owned by the I/O thread.
"""

from __future__ import annotations

from taskline.clock import Clock
from taskline.worker.admit import Admitted
from taskline.worker.execute import Job
from taskline.worker.settle import Settlements
from taskline.worker.slots import AsyncSlots, Exchange, ThreadSlot

ALONE = 0.5
"""Seconds for which a suspect runs without new neighbours; most that kill do it at once."""
SUSPECT_DELAY = 0.5
"""Seconds for which further suspects are handed back while one of them runs long."""


class Quarantine:
    """Lets suspects run one at a time, while the process holds nothing else unstarted."""

    def __init__(
        self,
        settlements: Settlements,
        exchange: Exchange,
        slots: list[ThreadSlot],
        async_slots: AsyncSlots | None,
        clock: Clock,
    ) -> None:
        self._settlements = settlements
        self._exchange = exchange
        self._slots = slots
        self._async_slots = async_slots
        self._clock = clock
        self._next: Job | None = None
        """Begins when the others have been handed back."""
        self._suspect: Job | None = None
        self._careful = False
        """The last messages had suspects among them: the next may, too."""

    @property
    def occupied(self) -> bool:
        """Whether a suspect runs or is about to."""
        suspect = self._suspect
        if suspect is not None and (suspect.verdict or suspect.lost or suspect.abandoned):
            self._suspect = suspect = None
        return suspect is not None or self._next is not None

    def limit(self, room: int) -> int:
        """How many messages may be asked for where there is `room`."""
        if self.occupied:
            suspect = self._suspect
            if suspect is None or not suspect.started:
                return 0
            if self._clock.time() - suspect.started < ALONE:
                return 0
        return min(room, 1) if self._careful else room

    def isolate(self, admitted: Admitted) -> Admitted:
        """Keep back what must not begin now; returns what may."""
        plain, coroutines, suspects = admitted
        self._careful = bool(suspects)
        if not suspects:
            return admitted
        give_back = self._settlements.give_back
        if self.occupied or not self._has_place(suspects[0]):
            give_back(suspects, SUSPECT_DELAY)
            return Admitted(plain, coroutines, [])
        self._next = suspects.pop(0)
        give_back(suspects)
        give_back(job for job in plain + coroutines if not job.early)
        give_back(self._exchange.take_back())
        return Admitted(
            [job for job in plain if job.early], [job for job in coroutines if job.early], []
        )

    def place(self) -> None:
        """Let the next suspect begin. Called when all that was given back has been released."""
        job, self._next = self._next, None
        if job is None or job.lost:
            return
        assert job.task is not None
        self._suspect = job
        if not job.task.is_async:
            self._exchange.ready.put(job)
        elif self._async_slots is not None:
            self._async_slots.start([job])

    def hand_back(self) -> None:
        """Give back what has not begun."""
        if self._next is not None:
            self._settlements.give_back([self._next])
            self._next = None

    def _has_place(self, job: Job) -> bool:
        assert job.task is not None
        if job.task.is_async:
            return self._async_slots is not None and self._async_slots.idle > 0
        return any(slot.current is None for slot in self._slots)
