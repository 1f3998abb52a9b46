"""What happened, as the processes under test wrote it down themselves.

Each process appends to a file of its own, one `write` a record: what was written
is kept when the process is killed in the next instant. Nothing here passes through
Taskline. Times `t` are of the monotonic clock, which all processes share.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class History:
    """Appends records to `<directory>/<role>-<pid>.jsonl`; any process and thread may."""

    def __init__(self, directory: str | Path, role: str) -> None:
        self._directory = Path(directory)
        self._role = role
        self._pid = 0
        self._fd = -1
        self._lock = threading.Lock()

    def write(self, kind: str, **fields: Any) -> None:
        """Append one record; it is in the file, whole, when this returns."""
        with self._lock:
            if self._pid != os.getpid():
                # A fork has the parent's descriptor: each process gets a file of its own.
                self._pid = os.getpid()
                path = self._directory / f"{self._role}-{self._pid}.jsonl"
                self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
            record = {"kind": kind, "t": time.monotonic(), **fields}
            os.write(self._fd, json.dumps(record).encode() + b"\n")


class Reader:
    """Reads what was added to a directory's histories since it was last asked."""

    def __init__(self, directory: str | Path) -> None:
        self._directory = Path(directory)
        self._read: dict[Path, int] = {}

    def new(self, role: str = "") -> Iterator[dict[str, Any]]:
        """The whole records that were added to the files of one role, or of all."""
        for path in sorted(self._directory.glob(f"{role}*.jsonl")):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                # A killed writer may leave a torn last line: what it told had not begun.
                whole, newline, _ = file.read().rpartition(b"\n")
            self._read[path] = self._read.get(path, 0) + len(whole) + len(newline)
            for line in whole.splitlines():
                yield json.loads(line)
