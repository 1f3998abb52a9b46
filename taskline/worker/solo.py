"""`--solo`: one process without a supervisor, whose main thread runs all tasks, for debuggers.

A debugger at its prompt holds the main thread; the I/O thread goes on renewing the leases.
Coroutines too run in the main thread, one at a time, in an event loop that lives as long as
the worker. No time limit is enforced.

Ctrl-C is `KeyboardInterrupt` in the task's own code, as debuggers expect it. When that, or a
debugger that was left with `q`, ends a run, the task is handed back and the worker stops.
"""

from __future__ import annotations

import select
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

from taskline.app import Taskline
from taskline.clock import Clock
from taskline.errors import ConfigurationError
from taskline.worker.exchange import Exchange
from taskline.worker.execute import Gate, Job, Runner
from taskline.worker.io import IOThread
from taskline.worker.options import WorkerOptions
from taskline.worker.slots import AsyncSlots, ThreadSlot, log
from taskline.worker.verdicts import RELEASE, Verdicts

if TYPE_CHECKING:
    import asyncio

MOMENT = 0.05
"""Seconds that the main thread has to see a signal."""


def check(options: WorkerOptions) -> None:
    """Raise `ConfigurationError` for options that need a supervisor, or several slots."""
    usual = WorkerOptions()
    for name in (
        "processes",
        "max_processes",
        "threads",
        "memory_limit",
        "soft_memory_limit",
        "max_tasks",
        "max_age",
        "status_file",
        "start_method",
        "nice",
        "cpus",
        "http",
    ):
        if getattr(options, name) != getattr(usual, name):
            raise ConfigurationError(
                f"solo runs one task at a time, in one process that nobody replaces: leave out "
                f"{name}={getattr(options, name)!r}"
            )


class SoloRunner(Runner):
    """Runs every job in the main thread. `stop` ends the worker once the job has ended."""

    def __init__(self, app: Taskline, worker: str, *, keep_results: bool) -> None:
        super().__init__(app, worker, keep_results=keep_results)
        self.verdicts = SoloVerdicts(self, app, worker, keep_results=keep_results)
        self.stop: Callable[[], None] = lambda: None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.coroutine: asyncio.Task[None] | None = None
        self._gate: Gate | None = None
        self._ends = False
        self._handled = self._noticed = 0

    def run(self, job: Job, gate: Gate | None = None) -> None:
        job.deadline = job.soft_deadline = 0.0
        self._gate = gate
        try:
            if job.task is not None and job.task.is_async:
                self._run_coroutine(job)
            else:
                super().run(job, gate)
        finally:
            signal.signal(signal.SIGINT, self.handle)  # a debugger puts its own there

    def _run_coroutine(self, job: Job) -> None:
        loop = self.loop
        assert loop is not None
        self.coroutine = loop.create_task(self.run_async(job))
        try:
            loop.run_until_complete(self.coroutine)
        except KeyboardInterrupt as error:  # raised around the task's own code: the coroutine ended
            if not job.verdict:
                self.verdicts.failed(job, error)
            self.stop()
        finally:
            self.coroutine = None
            if self._ends:
                self.stop()

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """Ctrl-C: the task's, while its own code runs."""
        self._handled += 1
        if self.coroutine is None and self._gate is not None and self._gate.is_open:
            raise KeyboardInterrupt
        if self.coroutine is not None and _runs(self.run_async, frame):
            raise KeyboardInterrupt
        self._ends = True
        if self.coroutine is not None and self.loop is not None:
            # The event loop itself would not survive an exception; the coroutine waits.
            self.loop.call_soon_threadsafe(self.coroutine.cancel)

    def noticed(self) -> None:
        """Ctrl-C: the end of the worker, where no task runs."""
        self._noticed += 1
        select.select([], [], [], MOMENT)
        if self._ends:
            self.stop()
        missed = self._handled < self._noticed
        self._noticed = self._handled
        if missed and signal.getsignal(signal.SIGINT) == self.handle:
            # A system call that began just after the signal is interrupted by another.
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def was_left(self, error: BaseException) -> bool:
        """Whether this ended a run because the worker, or its debugger, was told to end."""
        bdb = sys.modules.get("bdb")
        left = bdb is not None and isinstance(error, bdb.BdbQuit)
        return self._ends or left or isinstance(error, KeyboardInterrupt)


class SoloVerdicts(Verdicts):
    """Hands back the task whose run was left, and stops the worker."""

    def __init__(
        self, runner: SoloRunner, app: Taskline, worker: str, *, keep_results: bool
    ) -> None:
        super().__init__(app, worker, keep_results=keep_results)
        self._runner = runner

    def failed(self, job: Job, error: BaseException) -> None:
        if job.members or not self._runner.was_left(error):
            super().failed(job, error)
            return
        log.warning("task %s is handed back, and this worker stops", job.delivery.id)
        job.verdict = RELEASE
        self._runner.stop()


def _runs(function: Any, frame: FrameType | None) -> bool:
    """Whether this frame was called, directly or not, by the function."""
    while frame is not None and frame.f_code is not function.__code__:
        frame = frame.f_back
    return frame is not None


class MainThread(AsyncSlots):
    """Coroutines in the thread of a slot, which takes them as its other jobs."""

    def __init__(
        self, exchange: Exchange, slot: ThreadSlot, runner: SoloRunner, clock: Clock
    ) -> None:
        super().__init__(1, 1, exchange, runner, None, clock)
        self._slot = slot
        self._solo = runner

    def open(self) -> asyncio.AbstractEventLoop:
        import asyncio

        self._loop = self._solo.loop = asyncio.new_event_loop()
        return self._loop

    @property
    def idle(self) -> int:
        return int(self._slot.current is None and not self._exchange.ready.qsize())

    def start(self, jobs: list[Job]) -> None:
        for job in jobs:
            self._exchange.ready.put(job)

    def lag(self, now: float) -> float:
        """None: it runs only while it has something to run."""
        return 0.0

    def interrupt(self, job: Job) -> None:
        """Nothing: the slot has the job. See `SoloSlot`."""

    def end_tasks(self) -> None:
        """Nothing: what runs is the main thread's."""

    def stop(self) -> None:
        if self._solo.loop is not None:
            self._solo.loop.close()


class SoloSlot(ThreadSlot):
    """The slot of the main thread; of a coroutine it cancels the task."""

    def interrupt(self, job: Job, error: BaseException) -> None:
        solo = self._runner
        assert isinstance(solo, SoloRunner)
        coroutine = solo.coroutine
        if coroutine is None or self.current is not job:
            super().interrupt(job, error)
        elif solo.loop is not None:
            solo.loop.call_soon_threadsafe(coroutine.cancel)


def arrange(io: IOThread, runner: SoloRunner, clock: Clock) -> None:
    """Let the main thread run all that the I/O thread gives to its slots."""
    slot = SoloSlot(0, io.exchange, runner, None, clock)
    io.slots = [slot]
    if io.async_slots is not None:
        io.async_slots = MainThread(io.exchange, slot, runner, clock)
