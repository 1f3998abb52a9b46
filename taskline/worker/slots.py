"""The places where tasks run: threads for `def`, one event loop for `async def`.

Slots take jobs from the I/O thread and put them, with a verdict, into `done`.
They never talk to the broker.
"""

from __future__ import annotations

import ctypes
import logging
import signal
import threading
from queue import Empty
from typing import TYPE_CHECKING

from taskline.clock import Clock
from taskline.errors import SoftTimeout, TaskRevoked, TaskTimeout
from taskline.worker.exchange import Exchange
from taskline.worker.execute import Job, Runner
from taskline.worker.ledger import Ledger

if TYPE_CHECKING:
    import asyncio

log = logging.getLogger("taskline.worker")

INTERRUPT_SIGNAL = signal.SIGUSR1
"""Sent to the main thread's own slot, to interrupt a system call that blocks."""

CANCELLED_HAS = 1.0
"""Seconds that coroutines have to end once the worker stops without them."""


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
        self.is_open = False
        """The task's own code runs. Ours is never interrupted: it may have a lock, as the
        logging has, and would leave it locked for ever."""
        self._pending: BaseException | None = None
        """An interrupt that was sent and may not have been raised yet."""
        self._raised: BaseException | None = None

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
            except Exception as error:
                job = self.current
                if job is None:
                    raise
                if not job.verdict and not job.abandoned:
                    if isinstance(error, (SoftTimeout, TaskRevoked, TaskTimeout)):
                        # An interrupt that arrived between the task's last line and ours.
                        self._runner.verdicts.failed(job, error)
                    else:
                        self._runner.verdicts.broken(job, error)
                self._exchange.done.append(job)
                self._exchange.wake()

    def _run_until_stopped(self) -> bool:
        exchange = self._exchange
        get, take = exchange.ready.get, exchange.ready.get_nowait
        done, run = exchange.done, self._runner.run
        ledger, runner = self._ledger, self._runner
        time, monotonic = runner.now, self._clock.monotonic
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
            now = time()
            if not runner.may_begin(job, now):
                done.append(job)
                continue
            first_limit = job.begin(now, monotonic)
            if ledger is not None:
                ledger.start(self.index, job.delivery.id, now, job.deadline)
            self.current = job
            if first_limit and first_limit < exchange.looks_at:
                exchange.wake()
            run(job, self)
            if job.events is not None:
                if ledger is not None:
                    ledger.pardon(self.index)  # its time limit was for the task
                runner.verdicts.tell(job)
            done.append(job)
            if exchange.waiting:
                exchange.wake()

    def close(self) -> None:
        """The task's own code has ended: interrupts come no more, not even one under way."""
        # In this order, and without the lock where nothing was sent, as nearly always: `interrupt`
        # notes what it sends before it looks, for the last time, whether this is open.
        self.is_open = False
        while self._pending is not None:
            try:
                with self._lock:
                    if self._pending is not None and not self._in_main:
                        assert self._thread is not None
                        _drop_raised(self._thread)
                    self._pending = None
            except (SoftTimeout, TaskRevoked, TaskTimeout):
                continue  # it came too late

    def interrupt(self, job: Job, error: BaseException) -> None:
        """Raise `error` in the job's code, if this slot still runs it. For the I/O thread.

        In the main thread this also ends a blocking system call; in another
        thread it takes effect at the next line of Python.
        """
        with self._lock:
            if self.current is not job or not self.is_open:
                return
            self._pending = error
            if self.current is not job or not self.is_open:
                self._pending = None
                return
            assert self._thread is not None
            if self._in_main:
                signal.pthread_kill(self._thread, INTERRUPT_SIGNAL)
            else:
                _raise_in(self._thread, type(error))

    def _on_signal(self, signum: int, frame: object) -> None:
        pending = self._pending
        if self.is_open and pending is not None and pending is not self._raised:
            self._raised = pending
            raise pending


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
        self.running: dict[Job, asyncio.Task[None] | None] = {}
        self.places: dict[Job, int] = {}
        self.waiting: dict[Job, bool] = {}
        """Those that have not begun. Whoever removes one has it: the event loop, or `take_back`."""
        self._lag = self._asked_at = 0.0
        self.moved_at = 0.0
        """When one began last, or began to wait, by the monotonic clock."""
        self._blocked = False
        self._free = list(range(first, first + slots))
        self._exchange = exchange
        self._runner = runner
        self._ledger = ledger
        self._clock = clock
        self._loop: asyncio.AbstractEventLoop
        self._thread: threading.Thread | None = None

    def open(self) -> asyncio.AbstractEventLoop:
        """Start the event loop and return it."""
        import asyncio

        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="taskline-async", daemon=True
        )
        self._thread.start()
        return self._loop

    @property
    def idle(self) -> int:
        """How many more tasks could run now: none while one blocks the event loop."""
        return 0 if self._blocked else len(self._free)

    def start(self, jobs: list[Job]) -> None:
        """Run these jobs; there must be idle slots for them. For the I/O thread."""
        if not self.waiting:
            self.moved_at = self._clock.monotonic()
        for job in jobs:
            self.running[job] = None
            self.places[job] = self._free.pop()
            self.waiting[job] = True
        self._loop.call_soon_threadsafe(self._begin, jobs)

    def lag(self, now: float) -> float:
        """After how many seconds the event loop came to what the last call of this gave it.

        While it has not come to that yet: for how long it has not.
        """
        if self._asked_at:
            return now - self._asked_at
        self._asked_at = now
        self._loop.call_soon_threadsafe(self._came)
        return self._lag

    def _came(self) -> None:
        self._lag, self._asked_at = self._clock.monotonic() - self._asked_at, 0.0

    def take_back(self) -> list[Job]:
        """Take the jobs that have not begun, since one that runs blocks the event loop.

        None is idle until that goes on. For the I/O thread.
        """
        taken = []
        for job in list(self.waiting):
            if not job.early and self.waiting.pop(job, False):
                self.running.pop(job, None)
                self._free.append(self.places.pop(job))
                if not job.lost:
                    taken.append(job)
        self._blocked = True
        self._loop.call_soon_threadsafe(self._go_on)
        return taken

    def _go_on(self) -> None:
        self._blocked = False
        self._exchange.wake()

    def _begin(self, jobs: list[Job]) -> None:
        for job in jobs:
            self.running[job] = self._loop.create_task(
                self._run(job), name=f"taskline-{job.delivery.id}"
            )

    async def _run(self, job: Job) -> None:
        if not self.waiting.pop(job, False):
            self.running.pop(job, None)
            return
        self.moved_at = self._clock.monotonic()
        exchange, place = self._exchange, self.places[job]
        try:
            now = self._runner.now()
            if self._runner.may_begin(job, now):
                first_limit = job.begin(now, self._clock.monotonic)
                if self._ledger is not None:
                    self._ledger.start(place, job.delivery.id, now, job.deadline)
                if first_limit and first_limit < exchange.looks_at:
                    exchange.wake()
                await self._runner.run_async(job)
                if job.events is not None:
                    if self._ledger is not None:
                        self._ledger.pardon(place)  # its time limit was for the task
                    await self._runner.verdicts.atell(job)
        except Exception as error:
            self._runner.verdicts.broken(job, error)
        finally:
            if self._ledger is not None:
                self._ledger.clear(place)
            del self.running[job], self.places[job]
            self._free.append(place)
            exchange.done.append(job)
            exchange.wake()

    def interrupt(self, job: Job) -> None:
        """Cancel the job's task; its outcome tells `job.interrupted`, not the cancellation."""

        def cancel() -> None:
            task = self.running.get(job)
            if task is not None:
                task.cancel()

        self._loop.call_soon_threadsafe(cancel)

    def end_tasks(self) -> None:
        """Cancel the tasks that still run, and give them a moment to end."""
        if self._thread is None:
            return
        import asyncio
        from concurrent.futures import TimeoutError as Late

        async def end() -> None:
            tasks = [task for task in self.running.values() if task is not None]
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks, timeout=CANCELLED_HAS)

        ending = asyncio.run_coroutine_threadsafe(end(), self._loop)
        try:
            ending.result(timeout=2 * CANCELLED_HAS)
        except Late:  # a coroutine blocks the event loop
            ending.cancel()

    def stop(self) -> None:
        """End the event loop, which has no more tasks to run."""
        if self._thread is None:
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=CANCELLED_HAS)
        if not self._thread.is_alive():  # else a coroutine blocks it: it dies with the process
            self._loop.close()
        self._thread = None


def _raise_in(thread: int, kind: type[BaseException]) -> None:
    """Raise an exception in a thread, at its next line of Python; it replaces one not yet raised.

    https://docs.python.org/3/c-api/init.html#c.PyThreadState_SetAsyncExc
    """
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(kind))


class _Dropped(BaseException):
    """Raised and caught in place of an interrupt that came too late."""


def _drop_raised(thread: int) -> None:
    """Let no interrupt be raised any more in this thread, which is the caller's.

    Taking it back by a null pointer would leave Python before 3.13 checking for it at every
    step, and for ever once a profiler or a tracer runs.
    """
    try:
        _raise_in(thread, _Dropped)
        while True:
            pass
    except _Dropped:
        pass
