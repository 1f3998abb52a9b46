"""`--http`: a small server that says how a worker is, for probes and for graphs.

It is a process of its own, so that the supervisor, which forks, keeps its one thread, and
answers also while the supervisor waits for a broker. The supervisor writes its status into
a pipe, a line each second; the pipe's end is the server's.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys

import msgspec

from taskline.clock import Clock
from taskline.errors import ConfigurationError
from taskline.worker.parent.status import Status

log = logging.getLogger("taskline.supervisor")

START_EVERY = 1.0
"""Seconds between two starts of the server, at least."""
END_WITHIN = 2.0


def address(text: str) -> tuple[str, int]:
    """Host and port of `127.0.0.1:8080`, `[::1]:8080` or `:8080`, which is every interface.

    Raises `ConfigurationError` for anything else.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or not 0 <= int(port) <= 65535:
        raise ConfigurationError(f"http={text!r}: write HOST:PORT, such as 127.0.0.1:8080")
    return host.removeprefix("[").removesuffix("]"), int(port)


class Probes:
    """The server as its supervisor sees it. Owned by the supervisor."""

    def __init__(self, where: str, clock: Clock) -> None:
        """Raises `ConfigurationError` when nobody can listen there."""
        host, port = address(where)
        both = not host and socket.has_dualstack_ipv6()
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe = -1
        self._rest = b""
        self._start_at = 0.0
        try:
            self._socket = socket.create_server(
                (host, port),
                family=socket.AF_INET6 if ":" in host or both else socket.AF_INET,
                dualstack_ipv6=both,
            )
        except OSError as error:
            if error.errno is not None and error.errno < 0:  # of getaddrinfo, not of the system
                raise ConfigurationError(f"http={where!r}: there is no host {host}") from None
            raise ConfigurationError(
                f"http={where!r}: {os.strerror(error.errno) if error.errno else error}"
            ) from None
        name, port, *_ = self._socket.getsockname()
        shown = f"[{name}]" if ":" in name else name
        log.info("this worker says how it is at http://%s:%d/readyz", shown, port)

    def tell(self, status: Status) -> None:
        """Give the server the newest status; starts it, also when it has ended."""
        now = self._clock.monotonic()
        if self._process is not None and self._process.poll() is not None:
            log.warning("the server of probes ended (%s)", self._process.returncode)
            self._end()
        if self._process is None:
            if now < self._start_at:
                return
            self._start_at = now + START_EVERY
            try:
                self._start()
            except OSError as error:
                log.error("the server of probes cannot be started: %s", error.strerror)
                return
        if not self._rest:
            self._rest = msgspec.json.encode(status) + b"\n"
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            self._rest = self._rest[os.write(self._pipe, self._rest) :]

    def only_parent(self) -> None:
        """Let a forked process keep nothing of it."""
        self._socket.close()
        if self._pipe >= 0:
            os.close(self._pipe)

    def close(self) -> None:
        """End the server."""
        self._socket.close()
        self._end()

    def _start(self) -> None:
        read_end, pipe = os.pipe()
        fds = (self._socket.fileno(), read_end)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "taskline.worker.parent.server", *map(str, fds)],
                pass_fds=fds,
            )
        except OSError:
            os.close(pipe)
            raise
        finally:
            os.close(read_end)
        os.set_blocking(pipe, False)
        self._pipe = pipe

    def _end(self) -> None:
        if self._process is None:
            return
        os.close(self._pipe)
        self._pipe, self._rest = -1, b""
        try:
            self._process.wait(END_WITHIN)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
