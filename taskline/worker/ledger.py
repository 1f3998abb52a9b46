"""Shared memory in which a worker process notes what its slots run.

The process writes, its supervisor reads, also after the process was killed:
that is how a message that kills its worker is told from those that only waited
beside it, and how a hard time-out is enforced on code that holds the interpreter.
One record a slot, written by that slot only, but for `pardon`.
"""

from __future__ import annotations

import mmap
import struct
import tempfile
import weakref
from typing import NamedTuple

ID_BYTES = 800
"""What 200 characters, the longest id that is accepted, can need."""
CONDEMNED = 64

# Native layout: an aligned double is written and read whole.
_RECORD = struct.Struct(f"@dd{ID_BYTES}s")
_FLAG = _DEADLINE = struct.Struct("@d")
_SIGN = struct.Struct("@dddd")
_HEAD = 2 * _FLAG.size + _SIGN.size
"""Three times: when the process was ready, when it took no more, its last sign of life; and with
that how many messages ended well, were put back for another attempt and failed for good."""
_NOTHING = bytes(_RECORD.size)


class Running(NamedTuple):
    """What one slot runs."""

    id: str
    started: float
    """Unix seconds."""
    deadline: float
    """By the monotonic clock; 0 where the task has no time limit."""


class _Shared:
    """Memory that several processes see, given on by its descriptor."""

    def __init__(self, size: int, fd: int | None) -> None:
        self._file = None
        if fd is None:
            self._file = tempfile.TemporaryFile(prefix="taskline-")  # noqa: SIM115
            weakref.finalize(self, self._file.close)
            self._file.truncate(size)
            fd = self._file.fileno()
        self.map = mmap.mmap(fd, size)

    def fileno(self) -> int:
        assert self._file is not None
        return self._file.fileno()


class Condemned:
    """The ids of messages that a process was killed for: their runs were over their time limit.

    The supervisor adds them, before the messages are handed back; whichever of its
    processes receives one ends it instead of running it.
    """

    def __init__(self, fd: int | None = None) -> None:
        self._shared = _Shared(CONDEMNED * (ID_BYTES + 2), fd)
        self._map = self._shared.map
        self._next = 0

    def fileno(self) -> int:
        """The descriptor that a spawned process opens it by."""
        return self._shared.fileno()

    def add(self, id: str) -> None:
        """Note an id; the oldest of many is forgotten."""
        entry = _delimited(id)
        at = self._next * (ID_BYTES + 2)
        self._map[at : at + ID_BYTES + 2] = entry.ljust(ID_BYTES + 2, b"\0")
        self._next = (self._next + 1) % CONDEMNED

    def take(self, id: str) -> bool:
        """Whether the id was noted; it is not any more."""
        entry = _delimited(id)
        at = self._map.find(entry, 0)
        if at < 0:
            return False
        self._map[at : at + len(entry)] = bytes(len(entry))
        return True


def _delimited(id: str) -> bytes:
    return b"\0" + id.encode()[:ID_BYTES] + b"\0"


class Ledger:
    """The records of all slots of one process, and whether it got ready."""

    def __init__(self, slots: int, fd: int | None = None) -> None:
        self._slots = slots
        self._shared = _Shared(_HEAD + slots * _RECORD.size, fd)
        self._map = self._shared.map

    def fileno(self) -> int:
        """The descriptor that a spawned process opens the ledger by."""
        return self._shared.fileno()

    def start(self, slot: int, id: str, started: float, deadline: float = 0.0) -> None:
        """Note that a slot begins to run a message."""
        _RECORD.pack_into(self._map, _HEAD + slot * _RECORD.size, started, deadline, id.encode())

    def clear(self, slot: int) -> None:
        """Note that a slot runs nothing."""
        at = _HEAD + slot * _RECORD.size
        self._map[at : at + _RECORD.size] = _NOTHING

    def pardon(self, slot: int) -> None:
        """Take the time limit off what a slot runs: it has been given up without it."""
        at = _HEAD + slot * _RECORD.size + _DEADLINE.size
        _DEADLINE.pack_into(self._map, at, 0.0)

    def mark_ready(self, now: float) -> None:
        """Note that the process has started and reached its broker."""
        _FLAG.pack_into(self._map, 0, now)

    @property
    def ready(self) -> bool:
        """Whether the process has reached its broker."""
        return bool(_FLAG.unpack_from(self._map, 0)[0])

    def mark_leaving(self, now: float) -> None:
        """Note that the process takes no more tasks, and ends after those that it runs."""
        _FLAG.pack_into(self._map, _FLAG.size, now)

    @property
    def leaving(self) -> bool:
        """Whether the process takes no more tasks."""
        return bool(_FLAG.unpack_from(self._map, _FLAG.size)[0])

    def beat(self, now: float, done: int = 0, retried: int = 0, failed: int = 0) -> None:
        """Give a sign of life of the I/O thread, with what it has counted so far."""
        _SIGN.pack_into(self._map, 2 * _FLAG.size, now, done, retried, failed)

    @property
    def beaten(self) -> float:
        """When the last sign of life was given, by the monotonic clock."""
        return float(_FLAG.unpack_from(self._map, 2 * _FLAG.size)[0])

    @property
    def ended(self) -> tuple[int, int, int]:
        """How many messages ended well, were put back for another attempt, failed for good."""
        _, done, retried, failed = _SIGN.unpack_from(self._map, 2 * _FLAG.size)
        return int(done), int(retried), int(failed)

    def running(self) -> list[Running]:
        """What runs now, or ran when the process died."""
        found = []
        for slot in range(self._slots):
            started, deadline, raw = _RECORD.unpack_from(self._map, _HEAD + slot * _RECORD.size)
            if started:
                found.append(Running(raw.rstrip(b"\0").decode(errors="replace"), started, deadline))
        return found

    def reset(self) -> None:
        """Make it new, for the next process."""
        self._map[:] = bytes(len(self._map))
