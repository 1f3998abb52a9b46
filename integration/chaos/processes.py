"""Process groups under test: started, found, signalled, and in the end surely gone."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

YOUNG = 2.0
"""Seconds in which Python starts and imports, on a busy machine."""
ROOT = Path(__file__).resolve().parents[2]


class Member(NamedTuple):
    """A living process of a group."""

    pid: int
    parent: int


def members(group: int) -> list[Member]:
    """The processes of a group that are not dead, from Linux's /proc."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            stat = Path("/proc", name, "stat").read_text()
        except OSError:
            continue  # It has just ended.
        state, parent, its_group = stat.rpartition(")")[2].split()[:3]
        if int(its_group) == group and state not in "ZX":
            found.append(Member(int(name), int(parent)))
    return found


class Group:
    """A command in a process group of its own, its output in a file."""

    def __init__(self, module: str, arguments: list[str], log: Path) -> None:
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
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

    def children(self) -> list[int]:
        """The processes that the leader has started, if it lives."""
        return [member.pid for member in members(self.id) if member.parent == self.id]

    def signal_leader(self, number: signal.Signals) -> None:
        """Signal the process that was started; nothing if it has ended."""
        self.process.send_signal(number)

    def signal_all(self, number: signal.Signals) -> None:
        """Signal the whole group; nothing if it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.id, number)

    def gone(self) -> bool:
        """Whether no process of the group is left. Its number may then be another's."""
        return self.process.poll() is not None and not members(self.id)

    def end(self) -> None:
        """Kill what is left of the group and wait until it is gone."""
        until = time.monotonic() + 10
        while members(self.id) and time.monotonic() < until:
            self.signal_all(signal.SIGKILL)
            time.sleep(0.01)
        if self.process.poll() is None:
            self.process.kill()
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
