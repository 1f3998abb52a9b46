"""Shared memory in which a worker process notes what its slots run.

The process writes, its supervisor reads, also after the process was killed:
that is how a message that kills its worker is told from those that only waited
beside it, and how a hard time-out is enforced on code that holds the interpreter.
One record a slot, written by that slot only.
"""

from __future__ import annotations

import mmap
import struct
import tempfile
from typing import NamedTuple

_RECORD = struct.Struct("=dd128s")
_FLAG = struct.Struct("=d")
_NOTHING = bytes(_RECORD.size)
ID_BYTES = 128


class Running(NamedTuple):
    """What one slot runs: the message's id, and two times of the monotonic clock."""

    id: str
    started: float
    deadline: float
    """0 where the task has no time limit."""


class Ledger:
    """The records of all slots of one process, and whether it got ready."""

    def __init__(self, slots: int, fd: int | None = None) -> None:
        size = _FLAG.size + slots * _RECORD.size
        if fd is None:
            self._file = tempfile.TemporaryFile(prefix="taskline-ledger-")  # noqa: SIM115
            self._file.truncate(size)
            self._map = mmap.mmap(self._file.fileno(), size)
        else:
            self._map = mmap.mmap(fd, size)
        self._slots = slots

    def fileno(self) -> int:
        """The descriptor that a spawned process opens the ledger by."""
        return self._file.fileno()

    def start(self, slot: int, id: str, started: float, deadline: float = 0.0) -> None:
        """Note that a slot begins to run a message."""
        _RECORD.pack_into(
            self._map, _FLAG.size + slot * _RECORD.size, started, deadline, id.encode()
        )

    def clear(self, slot: int) -> None:
        """Note that a slot runs nothing."""
        at = _FLAG.size + slot * _RECORD.size
        self._map[at : at + _RECORD.size] = _NOTHING

    def mark_ready(self, now: float) -> None:
        """Note that the process has started and reached its broker."""
        _FLAG.pack_into(self._map, 0, now)

    @property
    def ready(self) -> bool:
        return bool(_FLAG.unpack_from(self._map, 0)[0])

    def running(self) -> list[Running]:
        """What runs now, or ran when the process died."""
        found = []
        for slot in range(self._slots):
            started, deadline, raw = _RECORD.unpack_from(
                self._map, _FLAG.size + slot * _RECORD.size
            )
            if started:
                found.append(Running(raw.rstrip(b"\0").decode(errors="replace"), started, deadline))
        return found

    def reset(self) -> None:
        """Make it new, for the next process."""
        self._map[:] = bytes(len(self._map))
