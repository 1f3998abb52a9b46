"""Supervisors and their processes on a stage of their own; `program.py` is what runs in them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from program import make_app
from workbench import until

from taskline.result import AsyncResult

PROGRAM = Path(__file__).with_name("program.py")
PATIENCE = 60.0
"""Seconds for which anything is waited for: far more than it takes."""
LONG = 600.0
"""A lease that no test outlives: what comes back before was handed back."""

WAYS: list[dict[str, str]] = [
    {},
    {"start_method": "forkserver", "app_path": "program:app"},
    {"start_method": "spawn", "app_path": "program:app"},
]
all_ways = pytest.mark.parametrize("way", WAYS, ids=["fork", "forkserver", "spawn"])


class Group:
    """A supervisor (or a worker without one) with its processes, in a group of their own."""

    def __init__(self, stage: Stage, command: list[str], environment: dict[str, str]) -> None:
        self.log_file = stage.directory / f"log-{len(stage.groups)}"
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=PROGRAM.parent,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                    "PROGRAM_DIRECTORY": str(stage.directory),
                    **environment,
                },
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def signal(self, number: int) -> None:
        """To the supervisor alone."""
        self.process.send_signal(number)

    def signal_all(self, number: int) -> None:
        """To the whole group, as a terminal and some service managers do it."""
        os.killpg(self.process.pid, number)

    def exit_code(self) -> int:
        try:
            return self.process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end; its log:\n{self.log}") from None

    def alive(self) -> list[int]:
        """The processes of the group that have not ended."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                except (FileNotFoundError, ProcessLookupError):
                    continue
                if int(fields[2]) == self.process.pid and fields[0] != "Z":
                    found.append(int(entry.name))
        return found

    def end(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        finally:
            self.process.wait(timeout=PATIENCE)


class Stage:
    """A directory with the broker and the notes of the tasks, and the groups that work there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.app = make_app(str(directory))
        self.groups: list[Group] = []

    def start(
        self, kind: str = "supervisor", *, env: dict[str, str] | None = None, **options: Any
    ) -> Group:
        command = [sys.executable, str(PROGRAM), kind, json.dumps({"lease": LONG, **options})]
        return self.launch(command, env)

    def launch(self, command: list[str], env: dict[str, str] | None = None) -> Group:
        group = Group(self, command, env or {})
        self.groups.append(group)
        return group

    def call(self, task: str, *args: Any, **options: Any) -> AsyncResult[Any]:
        return self.app.tasks[task].apply_async(args, **options)

    def notes(self) -> list[list[str]]:
        file = self.directory / "notes"
        return [line.split() for line in file.read_text().splitlines()] if file.exists() else []

    def begun(self, name: str, times: int = 1) -> int:
        """Wait until this run has begun so often; the process it runs in."""

        def look() -> list[str]:
            pids = [pid for what, which, pid in self.notes() if (what, which) == ("begin", name)]
            return pids if len(pids) >= times else []

        try:
            return int(until(look, PATIENCE)[times - 1])
        except AssertionError:
            logs = "\n".join(group.log for group in self.groups)
            raise AssertionError(f"{name} has not begun {times} times; logs:\n{logs}") from None

    def count(self, name: str) -> int:
        return sum(note[:2] == ["begin", name] for note in self.notes())

    def release(self, name: str) -> None:
        (self.directory / f"release-{name}").touch()

    def get(self, result: AsyncResult[Any]) -> Any:
        return result.get(timeout=PATIENCE)

    def left(self) -> dict[str, int]:
        """What is in the broker and not held: ids, and how often each was lost."""
        taken = self.app.transport.receive(["default"], 1000, 0.001, 0.0, "test")
        return {delivery.id: delivery.lost for delivery in taken}

    def end(self) -> None:
        for group in self.groups:
            group.end()
        self.app.close()
