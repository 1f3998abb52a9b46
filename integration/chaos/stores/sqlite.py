"""One SQLite file, or two: on a small disk of its own where we may mount one."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from integration.chaos.stores.base import PRODUCERS, Store, Trouble
from taskline import Taskline

DISK = 1024
"""Megabytes. While a process is stopped in the middle of a read the write-ahead log is not written
from its start again, and grows by some megabytes a second."""
PATIENCE = 0.5
"""Seconds for which a producer waits for a locked file before its send raises."""


class SQLiteStore(Store):
    """Broker and backend in one file; `apart`: in two."""

    name = "sqlite"
    faults: Mapping[str, int] = {"lock file": 2, "fill disk": 1}
    answers_lost = False

    def __init__(
        self,
        directory: Path,
        *,
        lease: float | None = None,
        pace: float = 1.0,
        apart: bool = False,
    ) -> None:
        super().__init__(directory, lease=lease, pace=pace)
        self.together = not apart
        self._apart = apart
        self._disk = directory / "disk"
        self._mounted = False
        self._locked = self._full = False

    @property
    def file(self) -> Path:
        return self._disk / "chaos.db"

    def open(self) -> None:
        self._disk.mkdir(exist_ok=True)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}m", "tmpfs", str(self._disk)]
        if sys.platform == "linux":
            self._mounted = subprocess.run(mount, capture_output=True).returncode == 0

    def close(self) -> None:
        if self._mounted:
            subprocess.run(["umount", "--lazy", str(self._disk)], check=True)

    def urls(self, who: str) -> tuple[str, str]:
        options = f"busy_timeout={PATIENCE if who == PRODUCERS else 30}"
        broker = backend = f"sqlite:///{self.file}?{options}"
        if self._apart:
            backend = f"sqlite:///{self._disk}/results.db?{options}"
        return broker, backend

    def strike(self, what: str, which: float, size: float) -> Trouble | None:
        if what == "lock file":
            return None if self._locked else self._lock(self.lease * (0.25 + 1.25 * size))
        if what == "fill disk" and self._mounted:
            return None if self._full else self._fill(self.lease * (0.1 + size))
        return None

    def _lock(self, seconds: float) -> Trouble:
        """Be another program that writes to the file, slowly."""
        connection = sqlite3.connect(self.file, timeout=30, isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        self._locked = True

        def release() -> bool:
            connection.execute("ROLLBACK")
            connection.close()
            self._locked = False
            return True

        return Trouble("pause", seconds, release)

    def _fill(self, seconds: float) -> Trouble:
        """Leave no free byte on the disk."""
        filler = self._disk / "filler"
        self._full = True
        filled = 0
        with filler.open("wb") as file:
            for size in (1 << 24, 1 << 12):
                with contextlib.suppress(OSError):
                    while True:
                        os.posix_fallocate(file.fileno(), filled, size)
                        filled += size

        def free() -> bool:
            filler.unlink()
            self._full = False
            return True

        return Trouble("pause", seconds, free)

    @property
    def answers(self) -> bool:
        return not self._full

    def held(self) -> bool:
        connection = sqlite3.connect(self.file, timeout=0, isolation_level=None)
        try:
            for _ in range(10):
                try:
                    connection.execute("BEGIN IMMEDIATE")
                except sqlite3.OperationalError:
                    time.sleep(0.005)
                else:
                    connection.execute("ROLLBACK")
                    return False
            return True
        finally:
            connection.close()

    def integrity(self, app: Taskline, waiting: int) -> str:
        connection = sqlite3.connect(self.file)
        try:
            return str(connection.execute("PRAGMA integrity_check").fetchone()[0])
        finally:
            connection.close()

    def excuses(self, line: str) -> bool:
        return "the disk is full" in line


CLASS = SQLiteStore
