"""What the processes of a worker ask of its supervisor, through one pipe that all write to.

They hear what is told from afar; the supervisor has no connection. A request is one line,
short enough to be written whole, so that no death of its writer tears it.
"""

from __future__ import annotations

import contextlib
import os
import select
from typing import Literal

import msgspec

READ_AT_ONCE = 65536


class Request(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One request. Several processes may pass on the same one: it has one id."""

    id: str
    what: Literal["shutdown", "restart", "scale", "load"]
    now: bool = False
    """Of a shutdown: without time for what runs."""
    grace: float | None = None
    """Of a restart: seconds for what runs; None for the worker's own."""
    count: int = 0
    """Of scaling: how many processes there shall be."""
    ready: int = 0
    """Of the load: how many messages wait."""
    oldest: float = 0.0
    """Of the load: for how many seconds one of them has."""


class Requests:
    """The pipe, and which requests were read from it before. Owned by the supervisor."""

    def __init__(self) -> None:
        self._read_end, self.write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        os.set_blocking(self.write_end, False)
        self._rest = b""
        self._seen: dict[str, None] = {}

    def fileno(self) -> int:
        """For `select`."""
        return self._read_end

    def take(self) -> list[Request]:
        """What was asked and not taken yet, each once."""
        with contextlib.suppress(BlockingIOError):
            self._rest += os.read(self._read_end, READ_AT_ONCE)
        *lines, self._rest = self._rest.split(b"\n")
        fresh = []
        for line in lines:
            request = msgspec.json.decode(line, type=Request)
            if request.id not in self._seen:
                self._seen[request.id] = None
                fresh.append(request)
        while len(self._seen) > 1000:
            del self._seen[next(iter(self._seen))]
        return fresh

    def only_write(self) -> None:
        """Let a forked process keep its end alone."""
        os.close(self._read_end)

    def close(self) -> None:
        """Give both ends back."""
        os.close(self._read_end)
        os.close(self.write_end)


def ask(pipe: int, request: Request) -> bool:
    """Ask the supervisor that reads this pipe; false when it reads none, or not now."""
    line = msgspec.json.encode(request) + b"\n"
    if len(line) > select.PIPE_BUF:
        raise ValueError(f"a request of {len(line)} bytes")
    try:
        os.write(pipe, line)
    except (BlockingIOError, BrokenPipeError):
        return False
    return True
