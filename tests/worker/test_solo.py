"""`taskline worker --solo`: a debugger in the main thread, seen through a terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from taskline import ConfigurationError, Taskline
from taskline.worker import Worker, WorkerOptions

PROGRAM = """
import asyncio, time
from taskline import Depends, Taskline, current_task

app = Taskline("proj", broker="sqlite:///proj.db", backend="sqlite:///proj.db", lease=1)

async def client():
    yield asyncio.get_running_loop()
    print("closed", asyncio.get_running_loop().is_running(), flush=True)

@app.task(timeout=0.1)
def debug(x: int) -> tuple[int, int]:
    y = x * 2
    breakpoint()
    return y, current_task.deliveries

@app.task(timeout=0.1)
async def debug_async(x: int, loop=Depends(client)) -> tuple[int, int]:
    await asyncio.sleep(0.001)
    breakpoint()
    await asyncio.sleep(0.001)
    assert asyncio.get_running_loop() is loop
    return x * 3, current_task.deliveries

@app.task
def nap() -> None:
    print("napping", flush=True)
    time.sleep(3600)

@app.task
async def nap_async() -> None:
    print("napping", flush=True)
    await asyncio.sleep(3600)
"""
PATIENCE = 60.0


class Terminal:
    """A worker that was started in a terminal, with the person before it."""

    def __init__(self, directory: Path) -> None:
        (directory / "proj.py").write_text(PROGRAM)
        self._unread = self._seen = b""
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }
        command = [sys.executable, "-m", "taskline", "worker", "-A", "proj", "--solo"]
        self.pid, self._fd = pty.fork()
        if not self.pid:
            os.chdir(directory)
            os.execve(command[0], command, environment)
        attributes = termios.tcgetattr(self._fd)
        attributes[3] |= termios.NOFLSH  # else Ctrl-C takes what is printed just then with it
        termios.tcsetattr(self._fd, termios.TCSANOW, attributes)
        url = f"sqlite:///{directory}/proj.db"
        self.app = Taskline("proj", broker=url, backend=url)

    def _read(self, by: float) -> bool:
        readable, _, _ = select.select([self._fd], [], [], max(0.0, by - time.monotonic()))
        if not readable:
            raise AssertionError(f"it says no more than {self._seen.decode()}")
        try:
            found = os.read(self._fd, 4096)
        except OSError:  # how the end of a terminal shows
            return False
        self._unread += found
        self._seen += found
        return bool(found)

    def expect(self, text: str) -> None:
        by = time.monotonic() + PATIENCE
        while text.encode() not in self._unread:
            assert self._read(by), f"it ended with {self._seen.decode()}"
        _, _, self._unread = self._unread.partition(text.encode())

    def say(self, text: str) -> None:
        with contextlib.suppress(OSError):  # it has ended
            os.write(self._fd, text.encode())

    def exit_code(self, *, press: str = "") -> int:
        """Wait for the end, pressing a key again and again: Python may lose a KeyboardInterrupt,
        for instance where it comes in a destructor."""
        by, again = time.monotonic() + PATIENCE, 0.0
        while True:
            if time.monotonic() > again:
                self.say(press)
                again = time.monotonic() + 5.0
            readable, _, _ = select.select([self._fd], [], [], 1.0)
            if readable and not self._read(by):
                break
            assert time.monotonic() < by, f"it does not end: {self._seen.decode()}"
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        assert code == 0, f"{code}: {self._seen.decode()}"
        return code

    @property
    def seen(self) -> str:
        return self._seen.decode()

    def close(self) -> None:
        try:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
        os.close(self._fd)
        self.app.close()


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path)
    terminal.expect("time limits are off")
    yield terminal
    terminal.close()


def test_a_debugger_takes_its_time(terminal: Terminal) -> None:
    """Longer than the time limit, and than the lease."""
    for task, times in (("proj.debug", 2), ("proj.debug_async", 3), ("proj.debug", 2)):
        result = terminal.app.send_task(task, (21,))
        terminal.expect("(Pdb)")
        terminal.say("import time; time.sleep(1.5)\n")
        terminal.expect("(Pdb)")
        terminal.say("\x03")
        terminal.expect("--KeyboardInterrupt--")
        terminal.expect("(Pdb)")
        terminal.say("p x + 1000\n")
        terminal.expect("1021")
        terminal.expect("(Pdb)")
        terminal.say("c\n")
        assert result.get(timeout=PATIENCE) == [21 * times, 1]
    assert terminal.exit_code(press="\x03") == 0
    assert "closed True" in terminal.seen


@pytest.mark.parametrize(
    ("task", "args", "when", "how"),
    [
        ("proj.nap", (), "napping", "\x03"),
        ("proj.nap_async", (), "napping", "\x03"),
        ("proj.debug", (1,), "(Pdb)", "q\n"),
        ("proj.debug_async", (1,), "(Pdb)", "q\n"),
    ],
)
def test_a_task_that_is_left_is_handed_back(
    terminal: Terminal, task: str, args: Any, when: str, how: str
) -> None:
    result = terminal.app.send_task(task, args)
    terminal.expect(when)
    assert terminal.exit_code(press=how) == 0
    (delivery,) = terminal.app.transport.receive(["default"], 10, 60.0, 5.0, "test")
    assert (delivery.id, delivery.lost) == (result.id, 0)


def test_revoked_runs_end(terminal: Terminal) -> None:
    for task in ("proj.nap", "proj.nap_async"):
        result = terminal.app.send_task(task)
        terminal.expect("napping")
        result.revoke(terminate=True)
        terminal.expect("was revoked")
    assert terminal.exit_code(press="\x03") == 0


@pytest.mark.parametrize(
    ("options", "named"),
    [({"processes": 2}, "processes=2"), ({"threads": 4}, "threads=4"), ({"max_tasks": 1}, "max")],
)
def test_what_needs_a_supervisor_or_more_slots_is_refused(
    make_memory_app: Any, options: Any, named: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"leave out {named}"):
        Worker(make_memory_app(), WorkerOptions(solo=True, **options))


def test_it_cannot_be_started_in_the_background(make_memory_app: Any) -> None:
    worker = Worker(make_memory_app(), WorkerOptions(solo=True))
    with pytest.raises(ConfigurationError, match="main thread"):
        worker.start()
