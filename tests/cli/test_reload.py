"""`taskline worker --reload`: what a developer sees who changes the code."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from taskline import Taskline
from taskline.cli.reload import look

CODE = """
from taskline import Taskline
app = Taskline("proj", broker="sqlite:///proj.db", backend="sqlite:///proj.db")

@app.task
def version() -> int:
    return {}
"""
PATIENCE = 60.0


class Project:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.write(CODE.format(1))
        url = f"sqlite:///{directory}/proj.db"
        self.app = Taskline("proj", broker=url, backend=url)
        self.log = directory / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "taskline", "worker", "-A", "proj", "--reload"],
                cwd=directory,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def write(self, code: str) -> None:
        beside = self.directory / "proj.new"
        beside.write_text(code)
        beside.rename(self.directory / "proj.py")

    def version(self) -> int:
        result = self.app.send_task("proj.version")
        found: int = result.get(timeout=PATIENCE)
        return found

    def until(self, condition: Callable[[], bool]) -> None:
        by = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < by, self.log.read_text()
            time.sleep(0.02)

    def says(self, text: str) -> None:
        self.until(lambda: text in self.log.read_text())

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=PATIENCE)
        self.app.close()


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    project = Project(tmp_path)
    yield project
    project.end()


def test_changed_code_runs_and_broken_code_is_waited_for(project: Project) -> None:
    assert project.version() == 1
    project.write(CODE.format(2))
    project.says("proj.py changed")
    project.until(lambda: project.version() == 2)
    project.write("def broken(:")
    project.says("waiting for the next change")
    assert "SyntaxError" in project.log.read_text() or "invalid syntax" in project.log.read_text()
    result = project.app.send_task("proj.version")
    project.write(CODE.format(3))
    assert result.get(timeout=PATIENCE) == 3
    project.process.send_signal(signal.SIGTERM)
    assert project.process.wait(timeout=PATIENCE) == 0
    with pytest.raises(ProcessLookupError):
        os.killpg(project.process.pid, 0)


def test_code_and_configuration_are_watched_and_nothing_else(tmp_path: Path) -> None:
    for name in ("a.py", "b.toml", "deep/er/c.py", "d.txt", ".git/e.py", "venv/f.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = {os.path.relpath(name, tmp_path) for name, _ in look(tmp_path)}
    assert found == {"a.py", "b.toml", "deep/er/c.py"}
