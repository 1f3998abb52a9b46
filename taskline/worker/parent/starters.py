"""How a supervisor makes its processes: two of three ways.

The third, a server that forks them, is in `taskline.worker.parent.forkserver`.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import NoReturn

import msgspec

from taskline.app import Taskline
from taskline.errors import ConfigurationError
from taskline.worker.ledger import Condemned
from taskline.worker.options import START_METHODS, WorkerOptions
from taskline.worker.parent.child import Child
from taskline.worker.process import run_child

SPAWNED = "import sys; from taskline.worker import process; sys.exit(process.main(sys.argv[1:]))"
"""What a spawned process runs: with -m Python would warn that the module is imported already."""


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


def check(options: WorkerOptions) -> None:
    """Raise `ConfigurationError` for a start method that there is not, or that lacks the app."""
    method = options.start_method
    if method not in START_METHODS:
        raise ConfigurationError(
            f"start method {method!r}: choose one of {', '.join(START_METHODS)}"
        )
    if method != "fork" and not options.app_path:
        raise ConfigurationError(f"start method {method!r} needs app_path='module:attribute'")
