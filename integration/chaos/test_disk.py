"""A disk that is full, a file or a directory that must not be written."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from taskline import Taskline, TransportError
from taskline.sqlite.pool import Pool
from taskline.worker import Worker, WorkerOptions

pytestmark = pytest.mark.serial

PAD = "x" * 2000
"""Makes messages and results large enough that a full disk is soon noticed."""


class SmallDisk:
    """A file system of four megabytes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._filler = directory / "filler"

    def fill(self) -> None:
        """Leave no free byte."""
        with self._filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(512))
            except OSError:
                return

    def free(self) -> None:
        """Let space return."""
        self._filler.unlink()


class LimitedFile(SmallDisk):
    """The same for whoever must not mount: SQLite is told that the file cannot grow."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(directory)
        self._limit = 0
        take = Pool.take

        def limited(pool: Pool) -> sqlite3.Connection:
            connection = take(pool)
            if self._limit:
                connection.execute(f"PRAGMA max_page_count = {self._limit}")
            return connection

        monkeypatch.setattr(Pool, "take", limited)

    def fill(self) -> None:
        self._limit = 1  # SQLite takes the present size, which is more

    def free(self) -> None:
        self._limit = 1_000_000


@pytest.fixture(params=["small disk", "limited file"])
def disk(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SmallDisk]:
    directory = tmp_path / "disk"
    directory.mkdir()
    if request.param == "limited file":
        yield LimitedFile(directory, monkeypatch)
        return
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(directory)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root on Linux")
    yield SmallDisk(directory)
    subprocess.run(["umount", "--lazy", str(directory)], check=True)


@pytest.fixture
def make_app() -> Iterator[Callable[[Path], Taskline]]:
    apps = []

    def make(path: Path) -> Taskline:
        url = f"sqlite:///{path}"
        app = Taskline("test", broker=url, backend=url, lease=2.0)
        apps.append(app)

        @app.task(name="echo")
        def echo(number: int, pad: str) -> str:
            time.sleep(0.002)
            return pad

        return app

    yield make
    for app in apps:
        app.close()


@contextmanager
def working(app: Taskline) -> Iterator[Worker]:
    worker = Worker(app, WorkerOptions(threads=2))
    worker.start()
    try:
        yield worker
    finally:
        worker.stop(5.0)


def wait_for(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, f"not within {seconds:g} s"
        time.sleep(0.01)
    return found


def stored(app: Taskline) -> int:
    return sum((each.ready or 0) + (each.delayed or 0) for each in app.transport.stats())


def fill_until_refused(app: Taskline, path: Path, size: int) -> int:
    """Send batches until one is refused; returns how many were accepted."""
    echo = app.tasks["echo"]
    accepted = 0
    while accepted < 5000:
        try:
            with app.batch():
                for number in range(size):
                    echo.apply_async((number, PAD), countdown=3600)
        except TransportError as error:
            refused = error
            break
        accepted += 1
    else:
        raise AssertionError("the disk is never full")
    assert str(refused) == f"{path} cannot grow: the disk is full; free some space"
    assert not refused.retryable
    return accepted


@pytest.mark.parametrize("size", [1, 50])
def test_a_send_to_a_full_disk_raises_and_stores_nothing(
    disk: SmallDisk, make_app: Callable[[Path], Taskline], size: int
) -> None:
    path = disk.directory / "a.db"
    app = make_app(path)
    app.transport.ping()
    disk.fill()
    accepted = fill_until_refused(app, path, size)
    assert stored(app) == accepted * size, "half a batch"
    with pytest.raises(TransportError, match="free some space"):
        app.tasks["echo"].delay(1, PAD * 100)
    disk.free()
    with app.batch():
        for number in range(size):
            app.tasks["echo"].delay(number, PAD)
    assert stored(app) == (accepted + 1) * size
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_worker_survives_a_full_disk_and_goes_on(
    disk: SmallDisk, make_app: Callable[[Path], Taskline], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="taskline")
    path = disk.directory / "a.db"
    app = make_app(path)
    echo = app.tasks["echo"]
    with working(app):
        assert echo.delay(0, "ready").get(timeout=30) == "ready"
        results = [echo.apply_async((n, PAD), countdown=0.5 + n / 100) for n in range(100)]
        disk.fill()
        fill_until_refused(app, path, 1)
        wait_for(lambda: any(record.levelno >= logging.ERROR for record in caplog.records))
        time.sleep(2.5)  # longer than a lease, which cannot be renewed meanwhile
        disk.free()
        assert [result.get(timeout=60) for result in results] == [PAD] * 100
    troubles = [record.getMessage() for record in caplog.records if record.levelno > logging.INFO]
    assert len(troubles) == 1, troubles
    assert str(path) in troubles[0]
    assert "free some space" in troubles[0]


@pytest.fixture
def plain_user() -> Iterator[Path]:
    """A directory of a user whom file modes bind, and being that user."""
    directory = Path(tempfile.mkdtemp(prefix="taskline-chaos-"))
    root = os.geteuid() == 0
    try:
        if root:
            os.chown(directory, 65534, 65534)
            os.seteuid(65534)
        yield directory
    finally:
        if root:
            os.seteuid(0)
        shutil.rmtree(directory)


def refusal(app: Taskline) -> str:
    """What `delay` says when it is refused, on one line."""
    with pytest.raises(TransportError) as caught:
        app.tasks["echo"].delay(1, PAD)
    assert not caught.value.retryable
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("what", ["file", "directory", "both"])
def test_a_send_to_what_must_not_be_written_raises(
    plain_user: Path, make_app: Callable[[Path], Taskline], what: str
) -> None:
    path = plain_user / "a.db"
    app = make_app(path)
    app.tasks["echo"].delay(0, PAD)
    app.close()
    if what != "directory":
        path.chmod(0o444)
    if what != "file":
        plain_user.chmod(0o555)
    text = refusal(app)
    assert str(path) in text
    assert "let this user" in text
    assert "write" in text
    app.close()
    plain_user.chmod(0o755)
    for file in plain_user.glob("a.db*"):
        file.chmod(0o644)
    assert stored(app) == 1
    app.tasks["echo"].delay(1, PAD)
    assert stored(app) == 2


def test_a_directory_in_which_no_file_can_be_made(
    plain_user: Path, make_app: Callable[[Path], Taskline]
) -> None:
    plain_user.chmod(0o555)
    text = refusal(make_app(plain_user / "a.db"))
    assert str(plain_user / "a.db") in text
    assert "let this user" in text
    plain_user.chmod(0o755)
    assert list(plain_user.iterdir()) == []


def test_a_worker_waits_for_a_file_that_it_may_write(
    plain_user: Path, make_app: Callable[[Path], Taskline], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="taskline")
    path = plain_user / "a.db"
    app = make_app(path)
    result = app.tasks["echo"].delay(0, "at last")
    app.close()
    path.chmod(0o444)
    worker = Worker(app, WorkerOptions())
    starting = threading.Thread(target=worker.start, name="starting")
    starting.start()
    wait_for(lambda: any(record.levelno >= logging.ERROR for record in caplog.records))
    time.sleep(1.0)  # several attempts, and not a word about them
    path.chmod(0o644)
    starting.join(timeout=30)
    assert result.get(timeout=30) == "at last"
    worker.stop(5.0)
    [trouble] = [record.getMessage() for record in caplog.records if record.levelno > logging.INFO]
    assert str(path) in trouble
    assert "let this user" in trouble
