"""Process groups under test: started, found, signalled, and in the end surely gone."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

YOUNG = 10.0
"""Seconds in which Python starts and imports, on a busy machine."""
ROOT = Path(__file__).resolve().parents[2]


class Member(NamedTuple):
    """A living process of a group."""

    pid: int
    parent: int


MARK = "TASKLINE_CHAOS_GROUP"
"""In the environment of a group's processes, so that no other that has got the same number since
is taken for one of them."""


def members(group: int, mark: str) -> list[Member]:
    """The processes of a group that are not dead, from Linux's /proc."""
    found = []
    wanted = f"{MARK}={mark}".encode()
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        process = Path("/proc", name)
        try:
            state, parent, its_group = (process / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(its_group) != group or state in "ZX":
                continue
            if wanted in (process / "environ").read_bytes().split(b"\0"):
                found.append(Member(int(name), int(parent)))
        except OSError:
            continue  # It has just ended.
    return found


class Group:
    """A command in a process group of its own, its output in a file."""

    def __init__(self, module: str, arguments: list[str], log: Path) -> None:
        self._mark = secrets.token_hex(8)
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), MARK: self._mark},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.id = self.process.pid
        self.started = time.monotonic()
        self.terminated = 0
        """How often it was told to stop."""
        self.terminated_young = False
        """Told when it may not have been listening yet."""
        self.killed = False

    def note_termination(self) -> None:
        """Remember that it is told to stop now."""
        self.terminated += 1
        self.terminated_young = time.monotonic() - self.started < YOUNG

    def members(self) -> list[Member]:
        """The processes of the group that live; also after their leader has ended."""
        return members(self.id, self._mark)

    def children(self) -> list[int]:
        """The processes that the leader has started, if it lives."""
        found: list[int] = []
        if self.process.poll() is None:
            for task in Path(f"/proc/{self.id}/task").glob("*/children"):
                with contextlib.suppress(OSError):  # a thread that has just ended
                    found += map(int, task.read_text().split())
        return found

    def signal_leader(self, number: signal.Signals) -> None:
        """Signal the process that was started; nothing if it has ended."""
        self.process.send_signal(number)

    def signal_all(self, number: signal.Signals) -> None:
        """Signal the whole group at once; nothing if its leader has ended."""
        if self.process.poll() is None:
            os.killpg(self.id, number)

    def end(self) -> None:
        """Kill what is left of the group and wait until it is gone."""
        until = time.monotonic() + 10
        while (left := self.members()) and time.monotonic() < until:
            for member in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(member.pid, signal.SIGKILL)
            time.sleep(0.01)
        self.process.wait(timeout=10)


def signal_one(pid: int, group: int, number: signal.Signals) -> bool:
    """Signal a process if it still is of this group; whether it was."""
    try:
        if os.getpgid(pid) != group:
            return False
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
