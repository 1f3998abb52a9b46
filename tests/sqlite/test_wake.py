from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from taskline.clock import Clock
from taskline.errors import TransportError
from taskline.sqlite import wake
from taskline.sqlite.database import Database
from taskline.sqlite.location import Location
from taskline.sqlite.wake import MESSAGES, OUTCOMES, Bell, Waiter
from taskline.transports.sqlite import SQLiteTransport

from .helpers import BOUND, Statements, fork, message, until

LONG = 600.0


class Sleeper:
    """A thread in `waiter.wait`, once at a time."""

    def __init__(self, waiter: Waiter, *queues: str) -> None:
        self.waiter = waiter
        waiter.listen(queues)
        self._woken = threading.Event()
        self._thread = threading.Thread(target=self._sleep, name="sleeper")
        self._thread.start()

    def _sleep(self) -> None:
        self.waiter.wait(LONG)
        self._woken.set()

    def wakes(self) -> bool:
        woken = self._woken.wait(BOUND)
        self._thread.join(BOUND)
        return woken

    @property
    def sleeps(self) -> bool:
        return not self._woken.is_set()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(Location(str(tmp_path / "tasks.db")), TransportError)
    database.ping()
    yield database
    database.close()


@pytest.fixture
def new_waiter(database: Database) -> Iterator[Callable[..., Waiter]]:
    made: list[Waiter] = []

    def new_waiter(kind: str = MESSAGES) -> Waiter:
        made.append(Waiter(database, kind))
        return made[-1]

    yield new_waiter
    for waiter in made:
        waiter.close()


@pytest.fixture
def bell(database: Database) -> Bell:
    return Bell(database.path)


def directory(database: Database) -> Path:
    return Path(wake.wake_directory(database.path))


def test_with_nobody_waiting_a_ring_is_one_look(
    database: Database, bell: Bell, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[object] = []
    stat = os.stat

    def counted(path: Any, **options: Any) -> os.stat_result:
        looks.append(path)
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", counted)
    monkeypatch.setattr(os, "listdir", None)
    bell.ring(MESSAGES, {"q"})
    assert len(looks) == 1
    assert not directory(database).exists()


def test_a_ring_wakes_all_who_wait_for_its_kind(
    bell: Bell, new_waiter: Callable[..., Waiter]
) -> None:
    sleepers = [Sleeper(new_waiter(), "q") for _ in range(3)]
    other = Sleeper(new_waiter(OUTCOMES))
    bell.ring(MESSAGES, {"q"})
    assert all(sleeper.wakes() for sleeper in sleepers)
    assert other.sleeps
    bell.ring(OUTCOMES)
    assert other.wakes()


def test_a_ring_before_the_wait_counts(bell: Bell, new_waiter: Callable[..., Waiter]) -> None:
    waiter = new_waiter()
    waiter.listen({"q"})
    for _ in range(3):
        bell.ring(MESSAGES, {"q"})
    waiter.wait(LONG)
    # All three rang at once: the next wait is for a fourth.
    sleeper = Sleeper(waiter, "q")
    assert sleeper.sleeps
    bell.ring(MESSAGES, {"q"})
    assert sleeper.wakes()


def test_only_who_waits_for_the_queue_is_woken(
    bell: Bell, new_waiter: Callable[..., Waiter]
) -> None:
    mail = Sleeper(new_waiter(), "mail", "sms/ü")
    video = Sleeper(new_waiter(), "video")
    many = Sleeper(new_waiter(), *(f"queue-{number}" for number in range(100)))
    bell.ring(MESSAGES, {"other", "sms/ü"})
    assert mail.wakes()
    assert many.wakes(), "a name has no room for a hundred queues: it is for all"
    assert video.sleeps
    bell.ring(MESSAGES)
    assert video.wakes()


def test_a_waiter_may_turn_to_other_queues(
    database: Database, bell: Bell, new_waiter: Callable[..., Waiter]
) -> None:
    waiter = new_waiter()
    for queue in ("a", "b", "a"):
        sleeper = Sleeper(waiter, queue)
        bell.ring(MESSAGES, {"c"})
        bell.ring(MESSAGES, {queue})
        assert sleeper.wakes()
        assert len(list(directory(database).iterdir())) == 1


def test_a_waiter_that_comes_within_the_same_tick_of_the_clock_is_seen(
    database: Database, bell: Bell, new_waiter: Callable[..., Waiter], monkeypatch: Any
) -> None:
    """The directory's time of change tells nothing then."""

    class Now(Clock):
        now = 1_000_000.0

        def time(self) -> float:
            return self.now

    clock = Now()
    monkeypatch.setattr(wake, "SYSTEM_CLOCK", clock)

    def stamp() -> None:
        os.utime(directory(database), (clock.now, clock.now))

    first = Sleeper(new_waiter(), "q")
    stamp()
    bell.ring(MESSAGES, {"q"})
    assert first.wakes()
    second = Sleeper(new_waiter(), "q")
    stamp()
    bell.ring(MESSAGES, {"q"})
    assert second.wakes()
    # When that time is past, the directory is listed once for all rings.
    clock.now += 10
    bell.ring(MESSAGES, {"q"})
    monkeypatch.setattr(os, "listdir", None)
    third = Sleeper(new_waiter(), "q")
    os.utime(directory(database), (1_000_000.0, 1_000_000.0))
    bell.ring(MESSAGES, {"q"})
    assert third.sleeps
    monkeypatch.undo()
    os.utime(directory(database))
    bell.ring(MESSAGES, {"q"})
    assert third.wakes()


def test_what_a_killed_process_left_is_removed(
    database: Database, bell: Bell, new_waiter: Callable[..., Waiter]
) -> None:
    def wait_for_ever() -> None:
        waiter = Waiter(database, MESSAGES)
        waiter.listen({"q"})
        waiter.wait(LONG)

    process = fork.Process(target=wait_for_ever)
    process.start()
    (left,) = until(lambda: directory(database).is_dir() and [*directory(database).glob("q-*")])
    process.kill()
    process.join(BOUND)
    living = Sleeper(new_waiter(), "q")
    bell.ring(MESSAGES, {"q"})
    assert living.wakes()
    assert not left.exists()


def test_writers_survive_a_reader_that_goes_whatever_sigpipe_does(
    database: Database, bell: Bell, new_waiter: Callable[..., Waiter]
) -> None:
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        for _ in range(20):
            waiter = new_waiter()
            waiter.listen({"q"})
            bell.ring(MESSAGES, {"q"})
            waiter.close()
            bell.ring(MESSAGES, {"q"})
    finally:
        signal.signal(signal.SIGPIPE, before)


def test_a_waiter_that_never_looks_holds_nobody_up(
    database: Database, bell: Bell, new_waiter: Callable[..., Waiter]
) -> None:
    waiter = new_waiter()
    waiter.listen({"q"})
    (path,) = directory(database).iterdir()
    fifo = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    with suppress(BlockingIOError):
        while os.write(fifo, bytes(1000)):
            pass
    os.close(fifo)
    bell.ring(MESSAGES, {"q"})
    waiter.wait(LONG)


def test_a_fifo_that_somebody_removed_is_made_again(
    database: Database, bell: Bell, new_waiter: Callable[..., Waiter]
) -> None:
    waiter = new_waiter()
    waiter.listen({"q"})
    for path in directory(database).iterdir():
        path.unlink()
    directory(database).rmdir()
    sleeper = Sleeper(waiter, "q")
    bell.ring(MESSAGES, {"q"})
    assert sleeper.wakes()


def test_a_link_in_place_of_a_fifo_is_not_written_to(
    database: Database, bell: Bell, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    directory(database).mkdir()
    (directory(database) / "q-1-1").symlink_to(victim)
    bell.ring(MESSAGES, {"q"})
    assert victim.read_text() == "precious"


def test_the_last_waiter_takes_the_directory_with_it(
    database: Database, new_waiter: Callable[..., Waiter]
) -> None:
    first, second = new_waiter(), new_waiter()
    first.listen({"q"})
    second.listen({"q"})
    first.close()
    assert directory(database).is_dir()
    second.close()
    assert not directory(database).exists()


def test_interrupts_end_waits(new_waiter: Callable[..., Waiter]) -> None:
    waiter = new_waiter()
    waiter.interrupt()
    assert Sleeper(waiter, "q").wakes()
    assert waiter.interrupted()
    assert not waiter.interrupted()
    sleeper = Sleeper(waiter, "q")
    waiter.interrupt()
    assert sleeper.wakes()
    assert waiter.interrupted()


def test_closing_ends_a_wait(new_waiter: Callable[..., Waiter]) -> None:
    waiter = new_waiter()
    sleeper = Sleeper(waiter, "q")
    waiter.close()
    assert sleeper.wakes()


def test_a_child_leaves_the_fifo_to_its_parent(
    database: Database, bell: Bell, new_waiter: Callable[..., Waiter]
) -> None:
    """Else the FIFO of a killed parent keeps a reader, and nobody removes it."""
    waiter = new_waiter()
    waiter.listen({"q"})
    (path,) = directory(database).iterdir()
    begun, go_on = os.pipe(), os.pipe()

    def live_on() -> None:
        os.write(begun[1], b"!")
        os.read(go_on[0], 1)

    process = fork.Process(target=live_on)
    process.start()
    os.read(begun[0], 1)
    waiter._channel.abandon()  # type: ignore[union-attr]
    with pytest.raises(OSError, match="No such device"):
        os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    os.write(go_on[1], b"!")
    process.join(BOUND)
    for fd in (*begun, *go_on):
        os.close(fd)


def test_a_child_may_wait_with_what_it_inherited(
    database: Database, bell: Bell, new_waiter: Callable[..., Waiter]
) -> None:
    waiter = new_waiter()
    waiter.listen({"q"})
    (own,) = directory(database).iterdir()

    def wait() -> None:
        waiter.listen({"q"})
        waiter.wait(LONG)

    process = fork.Process(target=wait)
    process.start()
    until(lambda: len(list(directory(database).glob("q-*"))) == 2)
    waiter.interrupt()
    assert process.is_alive()
    bell.ring(MESSAGES, {"q"})
    process.join(BOUND)
    assert process.exitcode == 0
    assert own.exists()


def test_a_process_that_ends_without_closing_leaves_nothing(
    database: Database, tmp_path: Path
) -> None:
    code = f"""
from taskline.sqlite.database import Database
from taskline.sqlite.location import Location
from taskline.sqlite.wake import Waiter
waiter = Waiter(Database(Location({database.path!r}), RuntimeError), "q")
waiter.listen()
assert len(__import__("os").listdir({str(directory(database))!r})) == 1
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=BOUND)
    assert not directory(database).exists()


def test_a_missing_directory_is_not_made(tmp_path: Path) -> None:
    transport = SQLiteTransport(Location(str(tmp_path / "missing" / "tasks.db")))
    with pytest.raises(TransportError, match="make it first"):
        transport.receive(["q"], 1, 30, 0.01, "w")
    assert not (tmp_path / "missing").exists()
    transport.close()


# Where there are no FIFOs.


@pytest.fixture(params=["none", "refused"])
def without_fifos(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "none":
        monkeypatch.delattr(os, "mkfifo")
        return

    def refuse(*args: object, **options: object) -> None:
        raise PermissionError("not on this file system")

    monkeypatch.setattr(os, "mkfifo", refuse)


@pytest.mark.usefixtures("without_fifos")
def test_without_fifos_the_files_version_is_watched(tmp_path: Path) -> None:
    location = Location(str(tmp_path / "tasks.db"))
    sender, receiver = SQLiteTransport(location), SQLiteTransport(location)
    taken: list[str] = []

    def receive() -> None:
        while len(taken) < 3:
            taken.extend(each.id for each in receiver.receive(["q"], 1, 30, LONG, "w"))

    thread = threading.Thread(target=receive)
    thread.start()
    for number in range(3):
        sender.send([message(str(number))])
        until(lambda number=number: len(taken) > number)  # type: ignore[misc]
    thread.join(BOUND)
    assert taken == ["0", "1", "2"]
    assert receiver.info()["waking"] == "poll"
    receiver.close()
    sender.close()


@pytest.mark.usefixtures("without_fifos")
def test_without_fifos_interrupts_and_closing_end_waits(
    database: Database, new_waiter: Callable[..., Waiter]
) -> None:
    waiter = new_waiter()
    waiter.interrupt()
    waiter.listen({"q"})
    waiter.wait(LONG)
    assert waiter.interrupted()
    sleeper = Sleeper(waiter, "q")
    waiter.interrupt()
    assert sleeper.wakes()
    assert waiter.interrupted()
    sleeper = Sleeper(waiter, "q")
    waiter.close()
    assert sleeper.wakes()


def test_that_fifos_cannot_be_made_is_logged(
    new_waiter: Callable[..., Waiter],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(*args: object) -> None:
        raise PermissionError("not on this file system")

    monkeypatch.setattr(os, "mkfifo", refuse)
    waiter = new_waiter()
    waiter.listen({"q"})
    assert waiter.polls
    assert "not on this file system" in caplog.text


# What it is for.


def test_an_idle_waiter_hardly_looks_into_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is woken. One second of waiting is one look before and one after."""
    statements = Statements(monkeypatch)
    transport = SQLiteTransport(Location(str(tmp_path / "tasks.db")))
    transport.ping()
    statements.clear()
    assert transport.receive(["q"], 10, 30, 1.0, "w") == []
    assert len(statements.all) <= 3
    transport.close()


def test_a_message_that_is_due_later_wakes_nobody_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rings: list[object] = []
    monkeypatch.setattr(Bell, "ring", lambda bell, *what: rings.append(what))
    transport = SQLiteTransport(Location(str(tmp_path / "tasks.db")))
    transport.send([message("later", eta=transport.clock.time() + 3600)])
    assert rings == []
    transport.send([message("soon", eta=transport.clock.time() + 0.5), message("late", "other")])
    assert rings == [(MESSAGES, {"q", "other"})]
    transport.close()
