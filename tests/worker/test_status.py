"""What a worker says of itself to those who look from outside, and what hangs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from stage import PATIENCE, Stage
from workbench import until

from taskline.clock import ManualClock
from taskline.errors import ConfigurationError
from taskline.worker import WorkerOptions
from taskline.worker.parent import status
from taskline.worker.parent.bulletin import Bulletin
from taskline.worker.parent.child import Child
from taskline.worker.parent.status import ProcessStatus, Status


def status_of(*ready: bool, at: float = 100.0, stopping: bool = False) -> Status:
    processes = [ProcessStatus(number, each, 0.0, []) for number, each in enumerate(ready)]
    return Status("shop-1", 7, at, 2, stopping, processes)


@pytest.mark.parametrize(
    ("said", "now", "alive", "ready"),
    [
        (status_of(True, True), 109.0, "", ""),
        (status_of(True, False), 101.0, "", "1 of 2 processes of worker shop-1 are ready"),
        (status_of(True), 101.0, "", "1 of 2 processes of worker shop-1 are ready"),
        (status_of(True, True, stopping=True), 101.0, "", "worker shop-1 is stopping"),
        (status_of(True, True), 111.0, *["worker shop-1 has not said anything for 11 s"] * 2),
    ],
)
def test_trouble(said: Status, now: float, alive: str, ready: str) -> None:
    assert said.trouble(now) == alive
    assert said.trouble(now, ready=True) == ready


def test_a_status_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = str(tmp_path / "status")
    status.write(file, status_of(True, False))
    assert status.read(file) == status_of(True, False)
    assert os.listdir(tmp_path) == ["status"]


@pytest.mark.parametrize("content", [b"", b"{}", b"hello"])
def test_what_is_no_status_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "status"
    file.write_bytes(content)
    with pytest.raises(ConfigurationError, match="is no status file of a worker"):
        status.read(str(file))


def test_a_file_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="does a worker run with it"):
        status.read(str(tmp_path / "status"))
    with pytest.raises(ConfigurationError, match=r"--status-file .*: No such file or directory"):
        status.write(str(tmp_path / "nowhere" / "status"), status_of())


def test_two_workers_do_not_write_one_file(tmp_path: Path) -> None:
    file = str(tmp_path / "status")
    mine, other = status_of(), status_of()
    mine.pid = os.getpid()
    other.pid, other.name = os.getppid(), "shop-2"
    status.write(file, other)
    with pytest.raises(ConfigurationError, match=r"worker shop-2 \(process \d+\) writes it: give"):
        status.claim(file, mine)
    other.at -= status.STALE_AFTER + 1
    status.write(file, other)
    status.claim(file, mine)
    assert status.read(file) == mine
    status.claim(file, mine)  # as process 1 of a container, after another


def test_a_file_that_cannot_be_written_any_more_ends_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory, clock = tmp_path / "run", ManualClock()
    directory.mkdir()
    options = WorkerOptions(status_file=str(directory / "status"))
    bulletin = Bulletin("shop-1", options, clock)
    bulletin.open()
    directory.rename(tmp_path / "gone")
    for now in (10.0, 20.0):
        bulletin.say(now, [], 1, False)
    assert len(caplog.records) == 1
    assert "No such file or directory; trying again" in caplog.text
    directory.mkdir()
    bulletin.say(30.0, [], 1, False)
    assert status.read(str(directory / "status")).wanted == 1
    with pytest.raises(ConfigurationError, match="No such file or directory"):
        Bulletin("s", WorkerOptions(status_file=str(tmp_path / "no" / "file")), clock).open()


class Watched:
    """One process, at which the test looks when it likes."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.child = Child(0, 1)
        self.child.ledger.mark_ready(1.0)

    def look(self, seconds: float) -> bool:
        self.clock.advance(seconds)
        return self.child.is_hung(self.clock.monotonic(), after=60.0)

    def beat(self) -> None:
        self.child.ledger.beat(self.clock.monotonic())


def test_a_process_without_a_sign_for_a_minute_is_hung() -> None:
    watched = Watched()
    watched.beat()
    looks = [watched.look(1.0) for _ in range(63)]
    assert looks.index(True) == 61


def test_a_sign_starts_the_minute_anew() -> None:
    watched = Watched()
    for _ in range(3):
        watched.beat()
        assert not any(watched.look(1.0) for _ in range(60))


def test_a_machine_that_slept_is_not_hung() -> None:
    watched = Watched()
    watched.beat()
    watched.look(1.0)
    assert not any(watched.look(3600.0) for _ in range(50)), "nobody was watching"


def test_a_process_that_is_not_ready_is_waited_for() -> None:
    watched = Watched()
    watched.child.ledger.reset()
    assert not any(watched.look(1.0) for _ in range(200))


# ---- real processes


def test_a_process_whose_io_thread_hangs_is_replaced(stage: Stage) -> None:
    group = stage.start(env={"PROGRAM_HANGS": "1"}, hung_after=1.5)
    result = stage.call("quick")
    hung = stage.get(stage.call("quick"))
    assert stage.get(result)
    [[_, _, pid]] = [note for note in stage.notes() if note[0] == "hang"]
    assert int(pid) != hung
    assert f"process {pid} gives no sign: its I/O thread has hung" in group.log


def health(file: Path, *arguments: str) -> tuple[int, Any]:
    command = [sys.executable, "-m", "taskline", "health", str(file), "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    return done.returncode, json.loads(done.stdout) if done.stdout else done.stderr


def test_the_command_sees_a_worker_live_stop_and_die(stage: Stage) -> None:
    file = stage.directory / "status"
    code, error = health(file)
    assert code != 0
    assert "is not there: does a worker run with it?" in error
    group = stage.start(processes=2, status_file=str(file), grace=PATIENCE)
    until(lambda: file.exists() and health(file, "--ready")[0] == 0, PATIENCE)
    held = stage.call("hold", "a")
    stage.begun("a")

    def runs() -> bool:
        return [held.id] in [each["running"] for each in health(file)[1]["processes"]]

    until(runs, PATIENCE)
    group.signal(signal.SIGTERM)
    until(lambda: health(file, "--ready")[0] == 1, PATIENCE)
    assert health(file)[0] == 0, "it still lives"
    assert health(file, "--ready")[1]["trouble"].endswith("is stopping")
    stage.release("a")
    assert group.exit_code() == 0
    assert not file.exists()
