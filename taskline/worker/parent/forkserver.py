"""A process that has imported the app, and forks the worker's processes.

It is started by exec, so it has nothing of its supervisor's; it imports the app while it has
one thread and no connection. Over a socket it is sent one line for each process to make,
with the descriptors of what that inherits, and sends lines back: that it is ready, what it
has started, what has ended. The socket's end, which is the supervisor's death, ends it.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from types import FrameType
from typing import Literal

import msgspec

from taskline.app import Taskline
from taskline.errors import ConfigurationError, TasklineError
from taskline.loading import find_app, in_full
from taskline.worker.ledger import Condemned
from taskline.worker.options import WorkerOptions
from taskline.worker.parent.child import Child
from taskline.worker.parent.starters import Starter, live
from taskline.worker.process import MISCONFIGURED, run_heir

log = logging.getLogger("taskline.forkserver")

SERVER = (
    "import sys; from taskline.worker.parent import forkserver as f; sys.exit(f.main(sys.argv[1:]))"
)
FORK_WITHIN = 10.0
"""Seconds that a server which is ready has to answer."""
END_WITHIN = 2.0
"""Seconds that a server has to end."""
BACKOFF_FIRST, BACKOFF_MAX = 0.2, 30.0
INHERITED = 4
READ_AT_ONCE = 65536


class Order(msgspec.Struct, omit_defaults=True):
    """What a server is told: to make a process, or, without options, to end after its last one."""

    options: WorkerOptions | None = None
    consumer: str = ""


class Report(msgspec.Struct, omit_defaults=True):
    """What a server tells."""

    what: Literal["ready", "started", "ended"]
    pid: int = 0
    code: int = 0


# ---- the supervisor's side


class _Server:
    """One server, as its supervisor sees it."""

    def __init__(self, options: WorkerOptions) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            theirs_fd = theirs.fileno()
            self.process = subprocess.Popen(
                [sys.executable, "-c", SERVER, options.app_path, options.loglevel, f"{theirs_fd}"],
                pass_fds=[theirs_fd],
            )
        self._rest = b""
        self._started = 0
        self.ready = False
        self.over = False
        """It has ended, and all that it told was read."""
        self.codes: dict[int, int] = {}
        """The exit codes of processes that have ended and were not asked about."""

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> None:
        """Take in what it has told."""
        ended = self.process.poll() is not None
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            while data := self._socket.recv(READ_AT_ONCE, socket.MSG_DONTWAIT):
                self._rest += data
        *lines, self._rest = self._rest.split(b"\n")
        for line in lines:
            report = msgspec.json.decode(line, type=Report)
            if report.what == "ready":
                self.ready = True
            elif report.what == "started":
                self._started = report.pid
            else:
                self.codes[report.pid] = report.code
        if ended and not self.over:
            self.over, self.ready = True, False
            self._socket.close()

    def tell(self, order: Order, fds: list[int]) -> None:
        """Raises `OSError` when it is gone."""
        line = msgspec.json.encode(order) + b"\n"
        sent = socket.send_fds(self._socket, [line], fds) if fds else self._socket.send(line)
        self._socket.sendall(line[sent:])

    def make(self, order: Order, fds: list[int]) -> int:
        """The id of a new process; 0 when the server did not make one, and is ended."""
        self._started = 0
        try:
            self.tell(order, fds)
            while not self._started and select.select([self], [], [], FORK_WITHIN)[0]:
                self.read()
                if self.over:
                    return 0
        except OSError as error:
            log.error("the fork server is gone: %s", error)
        if not self._started:
            self.ready = False
            self.process.kill()
        return self._started

    def close(self) -> None:
        """End it."""
        self._socket.close()
        try:
            self.process.wait(END_WITHIN)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Serving(Starter):
    """Has a server fork the processes; another one when that ends, or for new code."""

    def __init__(self, options: WorkerOptions, condemned: Condemned, requests: int) -> None:
        self._options = options
        self._condemned = condemned
        self._requests = requests
        self._current: _Server | None = None
        self._next: _Server | None = None
        self._servers: list[_Server] = []
        """All that live: those before the current one have processes that are not over."""
        self._of: dict[int, _Server] = {}
        """The server of each process."""
        self._wanted = True
        """A new server is to become the current one."""
        self._failures = 0
        self._start_at = 0.0

    @property
    def can_start(self) -> bool:
        return self._current is not None and self._current.ready

    @property
    def is_fresh(self) -> bool:
        return not self._wanted

    def start(self, child: Child, options: WorkerOptions, control: int) -> int:
        server = self._current
        assert server is not None
        fds = [child.ledger.fileno(), self._condemned.fileno(), control, self._requests]
        pid = server.make(Order(options, child.consumer), fds)
        if pid:
            self._of[pid] = server
        return pid

    def ended(self, child: Child) -> int | None:
        server = self._of[child.pid]
        code = server.codes.pop(child.pid, None)
        if code is None and server.over and _is_unread(child.control):
            log.warning("process %d ended after the server that had forked it", child.pid)
            code = 1
        if code is not None:
            del self._of[child.pid]
        return code

    def look(self, now: float, stopping: bool) -> int | None:
        failed = None
        for server in list(self._servers):
            server.read()
            if not server.over:
                continue
            self._servers.remove(server)
            if server is self._current:
                log.error("the fork server ended (exit code %s)", server.process.poll())
                self._current, self._wanted = None, True
            elif server is self._next:
                self._next = None
                failed = server.process.poll()
                self._failures += 1
                delay = min(BACKOFF_FIRST * 2.0 ** (self._failures - 1), BACKOFF_MAX)
                self._start_at = now + delay
                if failed != MISCONFIGURED or self._of:
                    log.error(
                        "the fork server did not start (exit code %s): next try in %.1f s",
                        failed,
                        delay,
                    )
        if self._next is not None and self._next.ready:
            if self._current is not None:
                self._retire(self._current)
            self._current, self._next = self._next, None
            self._wanted, self._failures = False, 0
        if self._wanted and not stopping and self._next is None and now >= self._start_at:
            try:
                self._next = _Server(self._options)
            except OSError as error:
                self._start_at = now + BACKOFF_MAX
                log.error("cannot start the fork server: %s", error.strerror)
            else:
                self._servers.append(self._next)
        return failed

    def _retire(self, server: _Server) -> None:
        # It must live on to tell how its processes end.
        with contextlib.suppress(OSError):
            server.tell(Order(), [])

    def heard(self) -> list[int]:
        return [server.fileno() for server in self._servers if not server.over]

    def renew(self) -> None:
        if self._next is not None:
            # What it has imported may be the old code.
            self._servers.remove(self._next)
            self._next.process.kill()
            self._next.close()
            self._next = None
        self._wanted, self._start_at = True, 0.0

    def close(self) -> None:
        for server in self._servers:
            server.close()


def _is_unread(pipe: int) -> bool:
    """Whether nobody has the reading end of this pipe."""
    poll = select.poll()
    poll.register(pipe, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


# ---- the server


def main(arguments: list[str]) -> int:
    """A server: `APP_PATH LOGLEVEL` and the descriptor of its socket; returns the exit code."""
    from taskline.log import setup

    path, loglevel, descriptor = arguments
    wake, wake_end = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(wake_end, False)
    signal.set_wakeup_fd(wake_end, warn_on_full_buffer=False)
    # What a terminal sends to all is for the supervisor to obey.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, _ignore)
    with socket.socket(fileno=int(descriptor)) as connection:
        connection.set_inheritable(False)
        try:
            try:
                app = find_app(path)
            finally:  # behind the user's own modules, which may have set up the logging
                setup(loglevel)
        except ConfigurationError as error:
            log.critical("%s", in_full(error))
            return MISCONFIGURED
        except TasklineError as error:
            log.critical("%s", in_full(error))
            return 1
        if threading.active_count() > 1:
            log.warning(
                "importing %s starts threads, which forked processes have not got: %s",
                path,
                ", ".join(each.name for each in threading.enumerate()[1:]),
            )
        # Pages that the collector does not write to stay shared.
        gc.collect()
        gc.freeze()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            _Forks(app, connection, wake).serve()
    return 0


class _Forks:
    """The processes that a server has made."""

    def __init__(self, app: Taskline, connection: socket.socket, wake: int) -> None:
        self._app = app
        self._socket = connection
        self._wake = wake
        self._pids: set[int] = set()

    def serve(self) -> None:
        """Until the supervisor is gone, or until the last process has ended after a retirement."""
        self._tell(Report("ready"))
        rest, fds, retired = b"", list[int](), False
        while self._pids or not retired:
            readable, _, _ = select.select([self._socket.fileno(), self._wake], [], [])
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake, 4096)
            self._reap()
            if self._socket.fileno() not in readable:
                continue
            data, came, _, _ = socket.recv_fds(self._socket, READ_AT_ONCE, 4 * INHERITED)
            if not data:
                return
            for fd in came:
                os.set_inheritable(fd, False)
            fds += came
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                order = msgspec.json.decode(line, type=Order)
                if order.options is None:
                    retired = True
                    continue
                # They come with the first byte of their line.
                own, fds = fds[:INHERITED], fds[INHERITED:]
                self._fork(order.options, order.consumer, own)

    def _fork(self, options: WorkerOptions, consumer: str, fds: list[int]) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if not pid:
            live(lambda: self._run(options, consumer, fds))
        for fd in fds:
            os.close(fd)
        self._pids.add(pid)
        self._tell(Report("started", pid))

    def _run(self, options: WorkerOptions, consumer: str, fds: list[int]) -> int:
        self._socket.close()
        os.close(self._wake)
        return run_heir(lambda: self._app, options, consumer, fds)

    def _reap(self) -> None:
        for pid in list(self._pids):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self._pids.remove(pid)
                self._tell(Report("ended", pid, os.waitstatus_to_exitcode(status)))

    def _tell(self, report: Report) -> None:
        self._socket.sendall(msgspec.json.encode(report) + b"\n")


def _ignore(signum: int, frame: FrameType | None) -> None:
    """A handler, since processes would inherit that a signal is ignored."""
