"""The places where tasks run: threads for `def`, one event loop for `async def`.

Slots take jobs from the I/O thread and put them, with a verdict, into `done`.
They never talk to the broker.
"""

from __future__ import annotations

import ctypes
import logging
import signal
import threading
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from taskline.clock import Clock
from taskline.errors import SoftTimeout, TaskRevoked, TaskTimeout
from taskline.worker.execute import Job, Runner
from taskline.worker.ledger import Ledger

if TYPE_CHECKING:
    import asyncio

log = logging.getLogger("taskline.worker")

INTERRUPT_SIGNAL = signal.SIGUSR1
"""Sent to the main thread's own slot, to interrupt a system call that blocks."""


class Exchange:
    """What the I/O thread and the slots share.

    `ready` carries jobs to the thread slots, `done` brings them back. `wake` is
    the I/O thread's; a slot calls it when it has nothing left to do, and also
    after each job while `waiting` says that the I/O thread sleeps long.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self.ready: SimpleQueue[Job | None] = SimpleQueue()
        self.done: deque[Job] = deque()
        self.wake = wake
        self.waiting = False
        self.taken = 0
        """Counts the jobs that slots took; the I/O thread watches it move."""


class ThreadSlot:
    """Runs `def` tasks one after another in the thread that calls `loop`."""

    def __init__(
        self, index: int, exchange: Exchange, runner: Runner, ledger: Ledger | None, clock: Clock
    ) -> None:
        self.index = index
        self.current: Job | None = None
        self._exchange = exchange
        self._runner = runner
        self._ledger = ledger
        self._clock = clock
        self._thread: int | None = None
        self._in_main = False
        self._lock = threading.Lock()
        self._pending: tuple[Job, BaseException] | None = None

    def loop(self) -> None:
        """Take and run jobs until a None is taken."""
        self._thread = threading.get_ident()
        self._in_main = threading.current_thread() is threading.main_thread()
        if self._in_main:
            signal.signal(INTERRUPT_SIGNAL, self._on_signal)
        while True:
            try:
                if self._run_until_stopped():
                    return
            except (SoftTimeout, TaskRevoked, TaskTimeout) as stray:
                # An interrupt that arrived between the task's last line and ours.
                job, self._pending = self.current, None
                if job is not None and not job.abandoned:
                    if not job.verdict:
                        self._runner.failed(job, stray)
                    self._exchange.done.append(job)
                    self._exchange.wake()

    def _run_until_stopped(self) -> bool:
        exchange = self._exchange
        get, take = exchange.ready.get, exchange.ready.get_nowait
        done, run = exchange.done, self._runner.run
        ledger, clock = self._ledger, self._clock
        while True:
            try:
                job = take()
            except Empty:
                self.current = None
                if ledger is not None:
                    ledger.clear(self.index)
                exchange.wake()
                job = get()
            if job is None:
                return True
            exchange.taken += 1
            if job.lost:
                continue
            if job.revoked:
                self._runner.revoked(job)
                done.append(job)
                continue
            begin_limits(job, clock)
            if ledger is not None:
                ledger.start(self.index, job.delivery.id, clock.monotonic(), job.deadline)
            job.started = clock.time()
            self.current = job
            run(job)
            if self._pending is not None:
                self._clear_interrupt()
            done.append(job)
            if exchange.waiting:
                exchange.wake()

    def interrupt(self, job: Job, error: BaseException) -> None:
        """Raise `error` in the job's code, if this slot still runs it. For the I/O thread.

        In the main thread this also ends a blocking system call; in another
        thread it takes effect at the next line of Python.
        """
        with self._lock:
            if self.current is not job or job.verdict or self._pending is not None:
                return
            self._pending = (job, error)
            assert self._thread is not None
            if self._in_main:
                signal.pthread_kill(self._thread, INTERRUPT_SIGNAL)
            else:
                _raise_in(self._thread, type(error))

    def _on_signal(self, signum: int, frame: object) -> None:
        pending = self._pending
        if pending is not None and self.current is pending[0] and not pending[0].verdict:
            raise pending[1]

    def _clear_interrupt(self) -> None:
        with self._lock:
            self._pending = None
            if not self._in_main and self._thread is not None:
                _raise_in(self._thread, None)


class AsyncSlots:
    """Runs `async def` tasks, many at a time, on an event loop in a thread of its own."""

    def __init__(
        self,
        slots: int,
        first: int,
        exchange: Exchange,
        runner: Runner,
        ledger: Ledger | None,
        clock: Clock,
    ) -> None:
        import asyncio

        self.running: dict[Job, asyncio.Task[None] | None] = {}
        self._free = list(range(first, first + slots))
        self._exchange = exchange
        self._runner = runner
        self._ledger = ledger
        self._clock = clock
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="taskline-async", daemon=True
        )
        self._thread.start()

    @property
    def idle(self) -> int:
        """How many more tasks could run now."""
        return len(self._free)

    def start(self, jobs: list[Job]) -> None:
        """Run these jobs; there must be idle slots for them. For the I/O thread."""
        for job in jobs:
            self.running[job] = None
        places = [self._free.pop() for _ in jobs]
        self._loop.call_soon_threadsafe(self._begin, list(zip(jobs, places, strict=True)))

    def _begin(self, placed: list[tuple[Job, int]]) -> None:
        for job, place in placed:
            if job in self.running:
                self.running[job] = self._loop.create_task(
                    self._run(job, place), name=f"taskline-{job.delivery.id}"
                )

    async def _run(self, job: Job, place: int) -> None:
        begin_limits(job, self._clock)
        if self._ledger is not None:
            self._ledger.start(place, job.delivery.id, self._clock.monotonic(), job.deadline)
        job.started = self._clock.time()
        try:
            await self._runner.run_async(job)
        finally:
            if self._ledger is not None:
                self._ledger.clear(place)
            self.running.pop(job, None)
            self._free.append(place)
            self._exchange.done.append(job)
            self._exchange.wake()

    def interrupt(self, job: Job) -> None:
        """Cancel the job's task; its outcome tells `job.interrupted`, not the cancellation."""

        def cancel() -> None:
            task = self.running.get(job)
            if task is not None:
                task.cancel()

        self._loop.call_soon_threadsafe(cancel)

    def stop(self) -> None:
        """End the event loop; tasks that still run are dropped where they stand."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=2.0)


def begin_limits(job: Job, clock: Clock) -> None:
    """Set a job's time limits as it starts, from its header or else its task."""
    header, task = job.header, job.task
    assert header is not None
    assert task is not None
    timeout = header.timeout if header.timeout is not None else task.timeout
    soft = header.soft_timeout if header.soft_timeout is not None else task.soft_timeout
    if timeout is None and soft is None:
        return
    now = clock.monotonic()
    if timeout is not None:
        job.deadline = now + timeout
    if soft is not None:
        job.soft_deadline = now + soft


def _raise_in(thread: int, kind: type[BaseException] | None) -> None:
    """Raise an exception in another thread (None: take back one not yet raised).

    https://docs.python.org/3/c-api/init.html#c.PyThreadState_SetAsyncExc
    """
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), ctypes.py_object(kind) if kind is not None else None
    )
