"""One worker process: its slots, its I/O thread, and how it is told to stop.

Run by a supervisor as a child, or by itself: `Worker(app).run()` in a script,
`start()` and `stop()` around a test.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from types import FrameType

from taskline.app import Taskline
from taskline.worker.execute import Runner
from taskline.worker.io import IOThread
from taskline.worker.ledger import Ledger
from taskline.worker.options import WorkerOptions

log = logging.getLogger("taskline.worker")

SWITCH_INTERVAL = 0.001
"""Seconds a busy slot may keep the interpreter from the I/O thread (Python's default is 5 ms)."""

RECYCLED = 75
"""Exit code of a process that asks to be replaced (EX_TEMPFAIL)."""

STOP = b"s"
STOP_NOW = b"n"


class Worker:
    """Runs tasks in this process until it is stopped."""

    def __init__(
        self,
        app: Taskline,
        options: WorkerOptions | None = None,
        *,
        consumer: str = "",
        ledger: Ledger | None = None,
        timed_out: Sequence[str] = (),
    ) -> None:
        options = options or WorkerOptions()
        settings = app.settings
        self.app = app
        self.name = options.name or f"{socket.gethostname()}-{os.getpid()}"
        self.consumer = consumer or f"{self.name}-{secrets.token_hex(4)}"
        self._grace = settings.grace if options.grace is None else options.grace
        runner = Runner(app, self.name, keep_results=settings.backend is not None)
        self.io = IOThread(
            app,
            runner,
            consumer=self.consumer,
            queues=options.queues or served_queues(app),
            weights=options.weights,
            lease=options.lease or settings.lease,
            max_deliveries=options.max_deliveries or settings.max_deliveries,
            prefetch=settings.prefetch if options.prefetch is None else options.prefetch,
            slots=options.threads,
            async_slots=options.async_slots,
            ledger=ledger,
            timed_out=timed_out,
        )
        self._threads: list[threading.Thread] = []
        self._io_thread = threading.Thread(target=self._run_io, name="taskline-io", daemon=True)
        self._failure: BaseException | None = None
        self._owns_process = False

    def start(self) -> None:
        """Work in background threads and return once the broker was reached."""
        self._io_thread.start()
        for slot in self.io.slots:
            thread = threading.Thread(
                target=slot.loop, name=f"taskline-slot-{slot.index}", daemon=True
            )
            thread.start()
            self._threads.append(thread)
        self.io.ready.wait(timeout=30)

    def stop(self, grace: float | None = None) -> None:
        """Take no more, give running tasks `grace` seconds, hand back the rest."""
        self.io.stop(self._grace if grace is None else grace)
        self._io_thread.join(timeout=(self._grace if grace is None else grace) + 30)
        for thread in self._threads:
            thread.join(timeout=1)
        if self._failure is not None:
            raise self._failure

    def run(self, control: int | None = None) -> int:
        """Work in this thread until told to stop; returns the exit code.

        SIGTERM or SIGINT stops, a second one at once; so does what a supervisor
        writes to the pipe `control`, and its end, when the supervisor has died.
        The first slot runs in this thread, where a time limit can interrupt even
        a blocking system call.
        """
        self._owns_process = True
        if control is None:
            signal.signal(signal.SIGINT, self._on_signal)
        else:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            threading.Thread(
                target=self._obey, args=(control,), name="taskline-control", daemon=True
            ).start()
        signal.signal(signal.SIGTERM, self._on_signal)
        sys.setswitchinterval(SWITCH_INTERVAL)
        self._io_thread.start()
        first, *others = self.io.slots
        for slot in others:
            threading.Thread(
                target=slot.loop, name=f"taskline-slot-{slot.index}", daemon=True
            ).start()
        first.loop()
        self._io_thread.join(timeout=30)
        if self._failure is not None:
            raise self._failure
        return RECYCLED if self.io.recycle else 0

    def _run_io(self) -> None:
        try:
            self.io.run()
        except BaseException as error:
            self._failure = error
            log.critical("the I/O thread failed: %r", error, exc_info=error)
        finally:
            if self.io.async_slots is not None:
                self.io.async_slots.stop()
            for _ in self.io.slots:
                self.io.exchange.ready.put(None)
            if self._owns_process and any(slot.current is not None for slot in self.io.slots):
                self._leave()

    def _leave(self) -> None:
        """End the process although a slot still runs code that has been given up."""
        if self.io.recycle:
            log.warning("this process is replaced: %s", self.io.recycle)
        logging.shutdown()
        os._exit(RECYCLED if self.io.recycle else 1 if self._failure else 0)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self._ask(now=self.io.stopping)

    def _obey(self, control: int) -> None:
        """Follow the supervisor's orders; its death (end of file) is the order to stop."""
        while True:
            order = os.read(control, 1)
            self._ask(now=order == STOP_NOW)
            if not order:
                return

    def _ask(self, *, now: bool) -> None:
        self.io.stop(0.0 if now else self._grace)


def served_queues(app: Taskline) -> list[str]:
    """The queues a worker serves when it is not told: those of the tasks, and the default one."""
    return sorted({app.settings.queue, *(task.queue for task in app.tasks.values())})


def main(arguments: list[str]) -> int:
    """A spawned child: `APP_PATH OPTIONS CONSUMER LEDGER_FD CONTROL_FD [TIMED_OUT_ID…]`."""
    import msgspec

    from taskline.loading import find_app
    from taskline.log import setup

    path, raw, consumer, ledger_fd, control_fd, *timed_out = arguments
    options = msgspec.json.decode(raw, type=WorkerOptions)
    setup(options.loglevel)
    app = find_app(path)
    ledger = Ledger(options.threads + options.async_slots, int(ledger_fd))
    return run_child(app, options, consumer, ledger, int(control_fd), timed_out)


def run_child(
    app: Taskline,
    options: WorkerOptions,
    consumer: str,
    ledger: Ledger,
    control: int,
    timed_out: Sequence[str],
) -> int:
    """Be one child of a supervisor; returns the exit code."""
    worker = Worker(app, options, consumer=consumer, ledger=ledger, timed_out=timed_out)
    return worker.run(control)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
