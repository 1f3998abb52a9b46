"""Messages that once cost a worker its life or its lease run alone.

So a message that kills its worker takes no bystanders with it into the dead
letters, whether the supervisor is left to tell who ran, or nobody is and all that
the process held counts as lost. Owned by the I/O thread.
"""

from __future__ import annotations

from taskline.clock import Clock
from taskline.worker.admit import Admitted
from taskline.worker.exchange import Exchange
from taskline.worker.execute import Job
from taskline.worker.settle import Settlements
from taskline.worker.slots import AsyncSlots, ThreadSlot

ALONE = 0.5
"""Seconds for which a suspect runs without new neighbours; most that kill do it at once."""
SUSPECT_DELAY = 0.5
"""Seconds for which a suspect is handed back that cannot begin now."""
CAREFUL = 2 * SUSPECT_DELAY
"""Seconds after a suspect was seen in which messages are taken one by one, for an idle slot
only: were there always one ahead, a suspect would find no idle slot as long as work is there."""


class Quarantine:
    """Lets suspects run one at a time, while the process holds nothing else unstarted.

    A suspect that was lost once is cleared when it has run for `ALONE`: long tasks whose
    process was killed run beside one another again. One that was lost more often is not.
    """

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
        self._careful_until = 0.0

    @property
    def occupied(self) -> bool:
        """Whether a suspect runs or is about to."""
        suspect = self._suspect
        if suspect is not None and (
            suspect.verdict
            or suspect.lost
            or suspect.abandoned
            or (suspect.delivery.lost == 1 and self._has_run_alone(suspect))
        ):
            self._suspect = suspect = None
        return suspect is not None or self._next is not None

    @property
    def careful(self) -> bool:
        """Whether messages are taken for idle slots only."""
        return self.occupied or self._clock.monotonic() < self._careful_until

    def limit(self, room: int) -> int:
        """How many messages may be asked for where there is `room`."""
        if self.occupied and (self._suspect is None or not self._has_run_alone(self._suspect)):
            return 0
        return min(room, 1) if self._clock.monotonic() < self._careful_until else room

    def isolate(self, admitted: Admitted) -> Admitted:
        """Keep back what must not begin now; returns what may."""
        plain, coroutines, suspects = admitted
        if not suspects:
            return admitted
        self._careful_until = self._clock.monotonic() + CAREFUL
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

    def _has_run_alone(self, job: Job) -> bool:
        return bool(job.started) and self._clock.time() - job.started >= ALONE

    def _has_place(self, job: Job) -> bool:
        assert job.task is not None
        if job.task.is_async:
            return self._async_slots is not None and self._async_slots.idle > 0
        return any(slot.current is None for slot in self._slots)
