"""The processes of a supervisor: what it knows of one, and two ways to make one.

The third, a server that forks them, is in `taskline.worker.forkserver`.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import NoReturn

import msgspec

from taskline.app import Taskline
from taskline.worker.ledger import Condemned, Ledger
from taskline.worker.options import WorkerOptions
from taskline.worker.process import run_child

SPAWNED = "import sys; from taskline.worker import process; sys.exit(process.main(sys.argv[1:]))"
"""What a spawned process runs: with -m Python would warn that the module is imported already."""


class Child:
    """One process and what the supervisor knows of it."""

    def __init__(self, number: int, slots: int) -> None:
        self.number = number
        self.ledger = Ledger(slots)
        self.pid = 0
        self.control = -1
        self.consumer = ""
        self.quick_deaths = 0
        self.was_ready = False
        """Whether the process before had reached its broker."""
        self.started_at = 0.0
        self.start_at = 0.0
        self.last_beat = 0.0
        self.looked_at = 0.0
        self.silent = 0.0
        """Seconds for which it was watched, and gave no sign after `last_beat`."""
        self.succeeded = False
        """It takes no more, and another has its number, or none shall."""
        self.stop_at = math.inf
        """When it is told to hand back what it still runs."""
        self.kill_at = math.inf


class Starter:
    """Makes the processes of one supervisor, and tells how they ended. Used by its one thread."""

    @property
    def can_start(self) -> bool:
        """Whether `start` would make a process now."""
        return True

    @property
    def is_fresh(self) -> bool:
        """Whether what it starts runs the code that was asked for by `renew`."""
        return True

    def start(self, child: Child, options: WorkerOptions, control: int) -> int:
        """Make a process that reads its orders from `control`; its id, or 0 where it failed."""
        raise NotImplementedError

    def ended(self, child: Child) -> int | None:
        """The exit code of a process, negative for a signal; None while it lives."""
        pid, status = os.waitpid(child.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None

    def look(self, now: float, stopping: bool) -> int | None:
        """Do what is due, at a time by the monotonic clock. Stopping, no more will be started.

        Returns the exit code of what makes the processes, where that has just failed.
        """
        return None

    def heard(self) -> list[int]:
        """Descriptors that become readable when there is something to look at."""
        return []

    def renew(self) -> None:
        """Load the code anew for what is started from now on, where that is possible."""

    def close(self) -> None:
        """End what makes the processes. They are gone."""


class Forking(Starter):
    """Forks the supervisor itself."""

    def __init__(
        self, app: Taskline, condemned: Condemned, requests: int, leave: Callable[[], None]
    ) -> None:
        """`leave` closes, in the new process, what is the supervisor's alone."""
        self._app = app
        self._condemned = condemned
        self._requests = requests
        self._leave = leave

    def start(self, child: Child, options: WorkerOptions, control: int) -> int:
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if not pid:
            live(lambda: self._run(child, options, control))
        return pid

    def _run(self, child: Child, options: WorkerOptions, control: int) -> int:
        self._leave()
        return run_child(
            lambda: self._app,
            options,
            child.consumer,
            child.ledger,
            self._condemned,
            control,
            self._requests,
        )


class Spawning(Starter):
    """Starts each process with an interpreter of its own."""

    def __init__(self, condemned: Condemned, requests: int) -> None:
        self._condemned = condemned
        self._requests = requests

    def start(self, child: Child, options: WorkerOptions, control: int) -> int:
        fds = (child.ledger.fileno(), self._condemned.fileno(), control, self._requests)
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                SPAWNED,
                options.app_path,
                msgspec.json.encode(options).decode(),
                child.consumer,
                *map(str, fds),
            ],
            pass_fds=fds,
        )
        process.returncode = 0  # reaped by `ended`, not by subprocess
        return process.pid


def live(run: Callable[[], int]) -> NoReturn:
    """The rest of a forked process's life; `run` returns its exit code."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        code = run()
    finally:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
