"""`--pidfile`: one worker for one file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from taskline.cli import pidfiles
from taskline.errors import ConfigurationError


def test_the_file_holds_our_process_id_while_we_run(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with pidfiles.hold(str(path)):
        assert path.read_text() == f"{os.getpid()}\n"
    assert not path.exists()


def test_without_a_name_there_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pidfiles.hold(None):
        assert not [*tmp_path.iterdir()]


def test_the_file_goes_when_the_worker_fails(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with pytest.raises(ZeroDivisionError), pidfiles.hold(str(path)):
        _ = 1 / 0
    assert not path.exists()


def test_a_running_process_keeps_its_file(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    path.write_text(f"{os.getppid()}\n")
    with (
        pytest.raises(ConfigurationError, match=rf"process {os.getppid()} is running with it"),
        pidfiles.hold(str(path)),
    ):
        pass
    assert path.read_text() == f"{os.getppid()}\n"


def test_the_file_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(timeout=60)
    path.write_text(f"{process.pid}\n")
    with pidfiles.hold(str(path)):
        assert path.read_text() == f"{os.getpid()}\n"


def test_the_file_of_an_earlier_process_with_our_id_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    path.write_text(f"{os.getpid()}\n")
    with pidfiles.hold(str(path)):
        assert path.exists()
    assert not path.exists()


@pytest.mark.parametrize("text", ["", "hello", "-1", "0", "12 13", "9" * 40])
def test_a_file_without_a_process_id_is_not_overwritten(tmp_path: Path, text: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(text)
    with (
        pytest.raises(ConfigurationError, match="the file exists and holds no process id"),
        pidfiles.hold(str(path)),
    ):
        pass
    assert path.read_text() == text


def test_a_file_that_another_took_meanwhile_stays(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with pidfiles.hold(str(path)):
        path.write_text("1\n")
    assert path.read_text() == "1\n"


@pytest.mark.parametrize(
    ("name", "why"), [("no/such/directory", "No such file"), ("file/pid", "Not a directory")]
)
def test_a_place_that_cannot_be_written(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(ConfigurationError, match=rf"--pidfile .*: {why}"),
        pidfiles.hold(str(tmp_path / name)),
    ):
        pass
