"""One worker process: its slots, its I/O thread, and how it is told to stop.

Run by a supervisor as a child, or by itself: `Worker(app).run()` in a script,
`start()` and `stop()` around a test.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from taskline.app import Taskline
from taskline.context import mark_log_records
from taskline.control.documents import why_no_keys
from taskline.errors import ConfigurationError, TasklineError, TransportError
from taskline.loading import find_app, import_included, in_full
from taskline.worker import lifetime, solo
from taskline.worker.autoscale import gauge_for
from taskline.worker.execute import Runner
from taskline.worker.io import IOThread
from taskline.worker.ledger import Condemned, Ledger
from taskline.worker.limits.limiter import check as check_limits
from taskline.worker.options import WorkerOptions
from taskline.worker.orders import Interrupts, Orders
from taskline.worker.remote import Remote

if TYPE_CHECKING:
    from taskline.schedule import Scheduler

log = logging.getLogger("taskline.worker")

SWITCH_INTERVAL = 0.001
"""Seconds a busy slot may keep the interpreter from the I/O thread (Python's default is 5 ms)."""

RECYCLED = 75
"""Exit code of a process that asks to be replaced (EX_TEMPFAIL)."""

DRAINED = 76
"""Exit code of a process whose queues are empty: it was to end then."""

NOT_DRAINED = 77
"""As `DRAINED`, where paused queues are not empty."""

MISCONFIGURED = 2
"""Exit code of a process that no replacement would help."""

LEAVE_WITHIN = 3.0
"""Seconds for closing what dependencies opened, in a process that given-up code keeps busy."""

REACH_WITHIN = 30.0
"""Seconds for which `start` waits for the broker."""


class Worker:
    """Runs tasks in this process until it is stopped."""

    def __init__(
        self,
        app: Taskline,
        options: WorkerOptions | None = None,
        *,
        consumer: str = "",
        ledger: Ledger | None = None,
        condemned: Condemned | None = None,
        requests: int | None = None,
    ) -> None:
        """`requests` is the pipe to a supervisor: see `taskline.worker.requests`."""
        options = options or WorkerOptions()
        lifetime.check(options)
        mark_log_records()
        import_included(app)
        check_limits(app)
        settings = app.settings
        check_keys(app)
        self.app = app
        self.name = options.name or f"{socket.gethostname()}-{os.getpid()}"
        self.consumer = consumer or f"{self.name}-{secrets.token_hex(4)}"
        self._grace = settings.grace if options.grace is None else options.grace
        self._lifetime = lifetime.Lifetime(options, app.clock.monotonic())
        kind = solo.SoloRunner if options.solo else Runner
        runner = kind(app, self.name, keep_results=settings.backend is not None)
        self.io = IOThread(
            app,
            runner,
            consumer=self.consumer,
            queues=options.queues or served_queues(app),
            weights=options.weights,
            lease=options.lease or settings.lease,
            max_deliveries=options.max_deliveries or settings.max_deliveries,
            prefetch=options.prefetch or settings.prefetch,
            slots=options.threads,
            async_slots=options.async_slots,
            batch_places=options.batch_places,
            ledger=ledger,
            condemned=condemned,
            lifetime=self._lifetime,
            starvation=options.starvation,
            drain=options.drain,
            ranks=options.ranks,
            remote=None
            if why_no_keys(app)
            else Remote(
                app, msgspec.structs.replace(options, name=self.name), self._stop_io, requests
            ),
            gauge=gauge_for(options, options.queues or served_queues(app), requests),
            place=options.place,
            begun=options.begun,
        )
        self._on_sigint: Interrupts | None = None
        if isinstance(runner, solo.SoloRunner):
            solo.check(options)
            solo.arrange(self.io, runner, app.clock)
            runner.stop = lambda: self.io.stop(self._grace)
            self._on_sigint = runner
        self._scheduler = scheduler_for(app) if options.schedule else None
        self._threads: list[threading.Thread] = []
        self._io_thread = threading.Thread(target=self._run_io, name="taskline-io", daemon=True)
        self._failure: BaseException | None = None
        self._owns_process = False

    def start(self) -> None:
        """Work in background threads and return once the broker was reached.

        Raises what keeps the worker from its broker, after `REACH_WITHIN` seconds
        where that may pass.
        """
        if self._on_sigint is not None:
            raise ConfigurationError("solo=True runs tasks in the main thread: call run()")
        self._call_hooks("worker_start", "process_start")
        self._io_thread.start()
        for slot in self.io.slots:
            thread = threading.Thread(
                target=slot.loop, name=f"taskline-slot-{slot.index}", daemon=True
            )
            thread.start()
            self._threads.append(thread)
        reached = self.io.ready.wait(timeout=REACH_WITHIN)
        if self._failure is not None or not reached:
            self.stop(0.0)
            raise TransportError(f"the broker was not reached within {REACH_WITHIN:g} s")
        if self._scheduler is not None:
            self._scheduler.start()

    def stop(self, grace: float | None = None) -> None:
        """Take no more, give running tasks `grace` seconds, hand back the rest."""
        if self._scheduler is not None:
            self._scheduler.stop()
        self.io.stop(self._grace if grace is None else grace)
        self._io_thread.join(timeout=(self._grace if grace is None else grace) + 30)
        for thread in self._threads:
            thread.join(timeout=1)
        self._close_all()
        self._call_hooks("process_stop", "worker_stop")
        if self._failure is not None:
            raise self._failure

    def run(self, control: int | None = None) -> int:
        """Work in this thread until told to stop; returns the exit code.

        See `Orders` for who may tell it; `control` is the pipe of a supervisor. The
        first slot runs in this thread, where a time limit can interrupt even a
        blocking system call.
        """
        self._owns_process = True
        alone = control is None
        self._call_hooks(*["worker_start"] * alone, "process_start")
        orders = Orders(self._stop_io, self.retire, control, self._on_sigint)
        orders.open()
        sys.setswitchinterval(SWITCH_INTERVAL)
        self._io_thread.start()
        if self._scheduler is not None:
            self._scheduler.start()
        first, *others = self.io.slots
        for slot in others:
            threading.Thread(
                target=slot.loop, name=f"taskline-slot-{slot.index}", daemon=True
            ).start()
        first.loop()
        self._io_thread.join(timeout=30)
        self._close_all()
        orders.close()
        self._call_hooks("process_stop", *["worker_stop"] * alone)
        if self._failure is not None:
            raise self._failure
        if self.io.drained and not alone:
            return NOT_DRAINED if self.io.left else DRAINED
        return RECYCLED if self.io.recycle else 0

    def retire(self) -> None:
        """Take no more, and end when what runs has ended. Any thread may call it."""
        self._lifetime.told = "it was told to leave"
        self.io.exchange.wake()

    def _stop_io(self, now: bool) -> None:
        self.io.stop(0.0 if now else self._grace)

    def _call_hooks(self, *events: str) -> None:
        for event in events:
            self.app.hooks.call(event, self.app)

    def _run_io(self) -> None:
        try:
            self.io.run()
        except BaseException as error:
            self._failure = error
            if not isinstance(error, ConfigurationError):
                log.critical("the I/O thread failed: %r", error, exc_info=error)
        finally:
            self.io.ready.set()
            if self._owns_process and self._scheduler is not None:
                self._scheduler.stop()
            if self.io.async_slots is not None:
                self.io.async_slots.end_tasks()
            for _ in self.io.slots:
                self.io.exchange.ready.put(None)
            if self._owns_process and any(slot.current is not None for slot in self.io.slots):
                self._leave()

    def _close_all(self) -> None:
        """The last task has ended: close what was opened for them, and the event loop."""
        self.app.resources.close()
        if self.io.async_slots is not None:
            self.io.async_slots.stop()

    def _leave(self) -> None:
        """End the process although a slot still runs code that has been given up."""
        closing = threading.Thread(target=self._close_all, name="taskline-closing", daemon=True)
        closing.start()
        closing.join(timeout=LEAVE_WITHIN)
        logging.shutdown()
        os._exit(RECYCLED if self.io.recycle else 1 if self._failure else 0)


def scheduler_for(app: Taskline) -> Scheduler | None:
    """The scheduler of a worker of this app; None when it can have no schedules.

    Raises `ConfigurationError` when the code declares some and they cannot be kept.
    """
    from taskline.schedule import Scheduler

    try:
        return Scheduler(app)
    except ConfigurationError as error:
        if app.periodics:
            raise ConfigurationError(f"{error}; or start the worker with --no-schedule") from None
        return None


def check_keys(app: Taskline) -> None:
    """Raise `ConfigurationError` for tasks that need keys where the app can keep none."""
    for task in app.tasks.values():
        if task.is_unique:
            from taskline.unique import check_place

            check_place(app, task.name, task.queue)


def served_queues(app: Taskline) -> list[str]:
    """The queues a worker serves when it is not told: those of the tasks, and the default one."""
    plain = (queue for queue, route in app.queues.routes.items() if route.task in app.tasks)
    return sorted({app.settings.queue, *plain, *(task.queue for task in app.tasks.values())})


def main(arguments: list[str]) -> int:
    """A spawned child: `APP_PATH OPTIONS CONSUMER` and the descriptors of what it inherits."""
    from taskline.log import setup

    path, raw, consumer, *descriptors = arguments
    options = msgspec.json.decode(raw, type=WorkerOptions)

    def find() -> Taskline:
        try:
            return find_app(path)
        finally:  # behind the user's own modules, which may have set up the logging
            setup(options.loglevel)

    return run_heir(find, options, consumer, list(map(int, descriptors)))


def run_heir(
    find: Callable[[], Taskline], options: WorkerOptions, consumer: str, descriptors: list[int]
) -> int:
    """As `run_child`; the descriptors are of its ledger, condemned, control and requests."""
    ledger, condemned, control, requests = descriptors
    slots = options.threads + options.async_slots + options.batch_places
    return run_child(
        find,
        options,
        consumer,
        Ledger(slots, ledger),
        Condemned(condemned),
        control,
        requests,
    )


def run_child(
    find: Callable[[], Taskline],
    options: WorkerOptions,
    consumer: str,
    ledger: Ledger,
    condemned: Condemned,
    control: int,
    requests: int,
) -> int:
    """Be one child of a supervisor, with the app that `find` returns; returns the exit code."""
    try:
        lifetime.settle_in(options)
        worker = Worker(
            find(),
            options,
            consumer=consumer,
            ledger=ledger,
            condemned=condemned,
            requests=requests,
        )
        return worker.run(control)
    except ConfigurationError as error:
        log.critical("%s", in_full(error))
        return MISCONFIGURED
    except TasklineError as error:
        log.critical("%s", in_full(error))
    except BaseException:
        log.critical("a worker process failed", exc_info=True)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
