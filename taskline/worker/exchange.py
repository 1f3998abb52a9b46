"""What the I/O thread and the slots of a process share, and how they wake it."""

from __future__ import annotations

import threading
from collections import deque
from queue import Empty, SimpleQueue

from taskline.clock import Clock
from taskline.transports.base import Transport
from taskline.worker.execute import Job


class Exchange:
    """`ready` carries jobs to the thread slots, `done` brings them back.

    A slot calls `wake` when it has nothing left to do, and also after each job while
    `waiting` says that the I/O thread sleeps long, and as it begins one whose time limit
    comes before `looks_at`.
    """

    def __init__(self, clock: Clock) -> None:
        self.ready: SimpleQueue[Job | None] = SimpleQueue()
        self.done: deque[Job] = deque()
        self.waiting = False
        self.looks_at = 0.0
        """When the I/O thread looks at the running jobs next, by the monotonic clock."""
        self.taken = 0
        """Counts the jobs that slots took; the I/O thread watches it move."""
        self._clock = clock
        self._woken = threading.Event()
        self._receiving: Transport | None = None

    def wake(self) -> None:
        """Make the I/O thread look now. Any thread may call it."""
        self._woken.set()
        receiving = self._receiving
        if receiving is not None:
            receiving.interrupt()

    # For the I/O thread

    def begin_turn(self) -> None:
        """It looks now: what comes after this wakes it from its next sleep."""
        self._woken.clear()

    def linger(self, seconds: float) -> None:
        """Sleep for a moment, in which slots need not wake it after each job."""
        self._woken.wait(self._clock.bound(seconds))

    def sleep(self, seconds: float) -> None:
        """Sleep until there is something to do, so many seconds at most."""
        self.waiting = True
        if seconds > 0 and not self.done:
            self._woken.wait(self._clock.bound(seconds))
        self.waiting = False

    def may_wait(self, transport: Transport) -> bool:
        """It is about to wait in this transport, which wakes by an interrupt from now on.

        False when it must not wait, since there is something to do.
        """
        self.waiting = True
        self._receiving = transport
        return not (self.done or self._woken.is_set())

    def has_waited(self) -> None:
        """It waits in no transport any more."""
        self.waiting = False
        self._receiving = None

    def take_back(self, *, early: bool = False) -> list[Job]:
        """Take the jobs that no slot has begun; those acknowledged before only with `early`."""
        jobs: list[Job] = []
        kept: list[Job] = []
        while True:
            try:
                job = self.ready.get_nowait()
            except Empty:
                break
            if job is not None and job.members:
                jobs += (each for each in job.members if not each.lost)
            elif job is not None and not job.lost:
                (kept if job.early and not early else jobs).append(job)
        for job in kept:
            self.ready.put(job)
        return jobs
