from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import taskline
from taskline.clock import SYSTEM_CLOCK, Clock
from taskline.errors import BackendError, ConfigurationError, TransportError
from taskline.message import Message
from taskline.sqlite import database as module
from taskline.sqlite.database import Database, insert
from taskline.sqlite.location import Location
from taskline.transports.sqlite import SQLiteTransport

from .helpers import Statements, fork, message, until


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tasks.db"


@pytest.fixture
def open_transport(file: Path) -> Iterator[Callable[..., SQLiteTransport]]:
    made: list[SQLiteTransport] = []

    def open_transport(**options: Any) -> SQLiteTransport:
        made.append(SQLiteTransport(Location(str(file), **options)))
        return made[-1]

    yield open_transport
    for transport in made:
        transport.close()


def stored(file: Path) -> list[str]:
    """The ids in the file, as another process sees them."""
    connection = sqlite3.connect(file)
    rows = connection.execute("SELECT id FROM messages ORDER BY seq").fetchall()
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
    return [key for (key,) in rows]


class Watched(Clock):
    """Tells how long was slept, and lets something happen at the first sleep."""

    def __init__(self, at_first_sleep: Callable[[], None]) -> None:
        self.pauses: list[float] = []
        self._at_first_sleep = at_first_sleep

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        if len(self.pauses) == 1:
            self._at_first_sleep()


# Another writer.


@pytest.mark.parametrize("batch", [1, 10])
def test_a_busy_file_is_waited_for(
    file: Path,
    open_transport: Callable[..., SQLiteTransport],
    monkeypatch: pytest.MonkeyPatch,
    batch: int,
) -> None:
    transport = open_transport()
    transport.ping()
    writer = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    writer.execute("BEGIN IMMEDIATE")
    clock = Watched(lambda: writer.execute("ROLLBACK"))
    monkeypatch.setattr(module, "SYSTEM_CLOCK", clock)
    transport.send([message(str(number)) for number in range(batch)])
    assert len(stored(file)) == batch
    assert len(clock.pauses) == 1
    assert 0 < clock.pauses[0] < 0.001
    writer.close()


def test_a_file_that_stays_busy_is_told_and_may_be_tried_again(
    file: Path, open_transport: Callable[..., SQLiteTransport]
) -> None:
    transport = open_transport(busy_timeout=0.05)
    transport.ping()
    writer = sqlite3.connect(file, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    for batch in ([message("a")], [message("b"), message("c")]):
        with pytest.raises(TransportError, match=r"busy for 0\.05 s") as caught:
            transport.send(batch)
        assert caught.value.retryable
    # Who only reads is not held up.
    assert transport.stats(["q"])[0].ready == 0
    writer.execute("ROLLBACK")
    writer.close()
    transport.send([message("d")])
    assert stored(file) == ["d"]


def test_pauses_grow_and_stay_short(
    file: Path, open_transport: Callable[..., SQLiteTransport], monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = open_transport(busy_timeout=0.5)
    transport.ping()
    writer = sqlite3.connect(file, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    pauses = []

    class Slept(Clock):
        now = 0.0

        def monotonic(self) -> float:
            return self.now

        def sleep(self, seconds: float) -> None:
            pauses.append(seconds)
            self.now += seconds

    monkeypatch.setattr(module, "SYSTEM_CLOCK", Slept())
    with pytest.raises(TransportError, match="busy"):
        transport.send([message("a")])
    assert pauses[0] < 0.0001
    assert 0.002 < max(pauses) < 0.0101
    assert 0.5 <= sum(pauses) < 0.52
    writer.close()


def test_threads_share_few_connections(
    open_transport: Callable[..., SQLiteTransport], monkeypatch: pytest.MonkeyPatch
) -> None:
    statements = Statements(monkeypatch)
    transport = open_transport()
    for number in range(20):
        thread = threading.Thread(target=transport.send, args=([message(str(number))],))
        thread.start()
        thread.join()
    assert len({connection for connection, _ in statements.all}) == 1
    assert transport.stats(["q"])[0].ready == 20


# All or nothing.


def test_rows_are_inserted_in_few_statements(
    file: Path, open_transport: Callable[..., SQLiteTransport], monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = open_transport()
    transport.ping()
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE pairs (a, b)")
    for size in (0, 1, 3, 5, 255, 256, 257, 1000):
        steps: list[str] = []
        connection.execute("DELETE FROM pairs")
        connection.set_trace_callback(steps.append)
        params = [value for number in range(size) for value in (number, str(number))]
        insert(connection, "INSERT INTO pairs VALUES {rows}", 2, params)
        connection.set_trace_callback(None)
        assert sum(step.startswith("INSERT") for step in steps) <= 16
        rows = connection.execute("SELECT a, b FROM pairs ORDER BY rowid").fetchall()
        assert rows == [(number, str(number)) for number in range(size)]


def test_work_that_fails_leaves_nothing_and_the_connection_serves_on(
    file: Path, open_transport: Callable[..., SQLiteTransport], monkeypatch: pytest.MonkeyPatch
) -> None:
    statements = Statements(monkeypatch)
    database = Database(Location(str(file)), TransportError)

    def work(db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO counters VALUES ('a', 1, 1.0)")
        raise LookupError("no")

    with pytest.raises(LookupError):
        database.write(work)
    count = "SELECT count(*) FROM counters"
    assert database.read(lambda db: db.execute(count).fetchone()) == (0,)
    database.ping()
    assert len({connection for connection, _ in statements.all}) == 1
    database.close()


def limit_pages(monkeypatch: pytest.MonkeyPatch, spare: int) -> None:
    """As if the disk had room for so many pages more."""
    connect = Database.connect

    def limited(database: Database) -> sqlite3.Connection:
        connection = connect(database)
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages + spare}")
        return connection

    monkeypatch.setattr(Database, "connect", limited)


def test_a_full_disk_refuses_a_batch_as_a_whole(
    file: Path, open_transport: Callable[..., SQLiteTransport], monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_pages(monkeypatch, spare=20)
    transport = open_transport()
    transport.send([message("first")])
    with pytest.raises(TransportError, match=r"disk is full; free some space") as caught:
        transport.send([message(str(number), frame=bytes(500)) for number in range(1000)])
    assert str(file) in str(caught.value)
    assert not caught.value.retryable
    with pytest.raises(TransportError, match="disk is full"):
        transport.send([message("large", frame=bytes(100_000))])
    assert stored(file) == ["first"]
    transport.send([message("small")])
    assert stored(file) == ["first", "small"]


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of one megabyte."""
    directory = tempfile.mkdtemp()
    try:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", directory],
            capture_output=True,
            check=False,
        )
    except FileNotFoundError:
        mounted = None
    if mounted is None or mounted.returncode:
        shutil.rmtree(directory)
        pytest.skip("may not mount a file system")
    try:
        yield Path(directory)
    finally:
        subprocess.run(["umount", "-l", directory], check=True)
        os.rmdir(directory)


def fill(directory: Path) -> None:
    """Leave no room in a small file system."""
    with open(directory / "filler", "wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


def batches(number: int) -> Iterator[list[Message]]:
    for each in range(number):
        yield [message(f"{each}-{part}", frame=os.urandom(2000)) for part in range(5)]


def drain(transport: SQLiteTransport) -> list[str]:
    found = []
    while taken := transport.receive(["q"], 20, 30, 0, "w"):
        assert transport.ack(taken) == []
        found += [delivery.id for delivery in taken]
    return found


def test_a_disk_that_is_really_full(small_disk: Path) -> None:
    other = small_disk / "other"
    other.write_bytes(bytes(500_000))
    transport = SQLiteTransport(Location(str(small_disk / "tasks.db")))
    sent: list[str] = []

    def send_all() -> None:
        for batch in batches(1000):
            transport.send(batch)
            sent.extend(each.header.id for each in batch)

    with pytest.raises(TransportError, match="disk is full; free some space"):
        send_all()
    assert stored(small_disk / "tasks.db") == sent
    # With room again it goes on with what it had.
    other.unlink()
    transport.maintain()
    assert drain(transport) == sent
    transport.close()


def test_a_full_disk_does_not_stop_what_needs_no_room(small_disk: Path) -> None:
    """The write-ahead log is started anew before it would have to grow."""
    transport = SQLiteTransport(Location(str(small_disk / "tasks.db")))
    for _ in range(2):
        # All pages get their room in the file; those that the drain frees are used again.
        for batch in batches(20):
            transport.send(batch)
        copy_log(small_disk / "tasks.db")
        assert len(transport.receive(["q"], 100, 30, 0, "w")) == 100
        copy_log(small_disk / "tasks.db")
        assert transport.recover("w", []) == 100
        assert len(drain(transport)) == 100
        copy_log(small_disk / "tasks.db")
    fill(small_disk)
    for batch in batches(100):
        transport.send(batch)
        assert drain(transport) == [each.header.id for each in batch]
    transport.close()


def copy_log(file: Path) -> None:
    connection = sqlite3.connect(file)
    assert connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[0] == 0
    connection.close()


# What is wrong with the file.


def test_a_directory_that_is_missing(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    transport = SQLiteTransport(Location(str(missing / "tasks.db")))
    for _ in range(2):
        with pytest.raises(TransportError, match="make it first") as caught:
            transport.send([message("a")])
        assert f"no directory {missing}" in str(caught.value)
        assert not caught.value.retryable
    missing.mkdir()
    transport.send([message("a")])
    transport.close()


def test_a_directory_in_place_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(TransportError, match="is a directory"):
        SQLiteTransport(Location(str(tmp_path))).ping()


def test_a_damaged_file(file: Path, open_transport: Callable[..., SQLiteTransport]) -> None:
    transport = open_transport()
    transport.send([message(str(number), frame=bytes(3000)) for number in range(100)])
    transport.close()
    with open(file, "r+b") as damaged:
        damaged.seek(2048)
        damaged.write(b"\xff" * 100_000)
    with pytest.raises(TransportError, match="damaged") as caught:
        open_transport().receive(["q"], 100, 30, 0, "w")
    assert not caught.value.retryable


def test_a_library_without_json(file: Path) -> None:
    """Before 3.38 a build could leave it out."""
    database = Database(Location(str(file)), TransportError)

    def work(db: sqlite3.Connection) -> None:
        db.execute("SELECT json_of_another_name(1)")

    with pytest.raises(ConfigurationError, match="built without JSON"):
        database.read(work)
    database.close()


def test_errors_of_a_backend_are_its_own(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="make it first"):
        Database(Location(str(tmp_path / "no" / "x.db")), BackendError).ping()


@pytest.fixture
def others_directory() -> Iterator[Path]:
    """A directory that a user without rights can reach."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def _as_nobody(work: Callable[[], None]) -> None:
    """Run the work without the rights of root, which nothing is forbidden to."""

    def child() -> None:
        if os.geteuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        work()

    process = fork.Process(target=child)
    process.start()
    process.join(30)
    assert process.exitcode == 0


def test_a_file_that_may_not_be_written(others_directory: Path) -> None:
    file = others_directory / "tasks.db"
    transport = SQLiteTransport(Location(str(file)))
    transport.send([message("a")])
    transport.close()
    file.chmod(0o444)
    others_directory.chmod(0o555)

    def work() -> None:
        transport = SQLiteTransport(Location(str(file)))
        for batch in ([message("b")], [message("c"), message("d")]):
            with pytest.raises(TransportError, match=r"let this user .*write") as caught:
                transport.send(batch)
            assert not caught.value.retryable
            assert str(file) in str(caught.value)
        with pytest.raises(TransportError, match="let this user"):
            transport.ping()

    _as_nobody(work)
    others_directory.chmod(0o755)
    assert stored(file) == ["a"]


def test_the_error_names_what_may_not_be_written(others_directory: Path) -> None:
    file = others_directory / "tasks.db"
    log, index = Path(f"{file}-wal"), Path(f"{file}-shm")
    keeper = SQLiteTransport(Location(str(file)))
    keeper.send([message("a")])
    others_directory.chmod(0o777)
    for each in (file, log, index):
        each.chmod(0o444)

    def work() -> None:
        with pytest.raises(TransportError) as caught:
            SQLiteTransport(Location(str(file))).send([message("b")])
        names = f"{file} and {log} and {index}"
        assert str(caught.value) == f"{file} cannot be written: let this user write {names}"

    _as_nobody(work)
    keeper.close()


def test_a_file_that_may_not_be_read(others_directory: Path) -> None:
    file = others_directory / "tasks.db"
    file.touch(mode=0o600)
    if os.geteuid() != 0:
        file.chmod(0)

    def work() -> None:
        with pytest.raises(TransportError, match="let this user read and write") as caught:
            SQLiteTransport(Location(str(file))).send([message("b")])
        assert not caught.value.retryable

    _as_nobody(work)


def test_a_file_that_was_removed_is_made_anew(
    file: Path,
    open_transport: Callable[..., SQLiteTransport],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    transport = open_transport()
    transport.send([message("a")])
    for path in file.parent.glob("tasks.db*"):
        path.unlink()

    class Later(Clock):
        def monotonic(self) -> float:
            return SYSTEM_CLOCK.monotonic() + 5

    monkeypatch.setattr(module, "SYSTEM_CLOCK", Later())
    transport.send([message("b")])
    assert stored(file) == ["b"]
    assert "was removed" in caplog.text


# Close.


def test_a_closed_transport_says_so(open_transport: Callable[..., SQLiteTransport]) -> None:
    transport = open_transport()
    transport.send([message("a")])
    transport.close()
    with pytest.raises(TransportError, match="was closed: open it again") as caught:
        transport.send([message("b")])
    assert not caught.value.retryable


def open_files() -> list[str]:
    links = Path("/proc/self/fd")
    if not links.is_dir():
        pytest.skip("this system does not list the open files of a process")
    return [os.readlink(link) for link in links.iterdir() if link.is_symlink()]


def test_closing_leaves_no_open_file(
    file: Path, open_transport: Callable[..., SQLiteTransport]
) -> None:
    transport = open_transport()
    transport.send([message("a")])
    transport.receive(["q"], 1, 30, 0.01, "w")
    transport.close()
    assert not [path for path in open_files() if path.startswith(str(file))]
    assert sorted(path.name for path in file.parent.iterdir()) == ["tasks.db"]


def test_a_connection_in_use_is_closed_when_it_is_returned(file: Path) -> None:
    database = Database(Location(str(file)), TransportError)
    inside, go_on = threading.Event(), threading.Event()
    answers: list[object] = []

    def work(db: sqlite3.Connection) -> None:
        inside.set()
        assert go_on.wait(30)
        answers.append(db.execute("SELECT 1").fetchone())
        answers.append(db)

    thread = threading.Thread(target=database.write, args=(work,))
    thread.start()
    assert inside.wait(30)
    database.close()
    go_on.set()
    thread.join(30)
    assert answers[0] == (1,)

    def is_closed() -> bool:
        try:
            answers[1].execute("SELECT 1")  # type: ignore[attr-defined]
        except sqlite3.ProgrammingError:
            return True
        return False

    until(is_closed)


# Upkeep.


def test_upkeep_empties_the_write_ahead_log(
    file: Path, open_transport: Callable[..., SQLiteTransport]
) -> None:
    transport = open_transport()
    transport.send([message(str(number)) for number in range(100)])
    transport.maintain()
    log, copied = sqlite3.connect(file).execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1:]
    assert log == copied > 0
    shutil.copy(file, file.with_name("copy.db"))
    assert len(stored(file.with_name("copy.db"))) == 100


def test_upkeep_is_paced(
    open_transport: Callable[..., SQLiteTransport], monkeypatch: pytest.MonkeyPatch
) -> None:
    statements = Statements(monkeypatch)
    transport = open_transport()
    for _ in range(10):
        transport.maintain()
    assert sum("wal_checkpoint" in text for _, text in statements.all) == 1


@pytest.mark.parametrize(("durability", "level"), [("normal", 1), ("full", 2)])
def test_durability_is_how_sqlite_syncs(file: Path, durability: str, level: int) -> None:
    database = Database(Location(str(file), durability), TransportError)
    assert database.read(lambda db: db.execute("PRAGMA synchronous").fetchone()) == (level,)
    assert database.info()["durability"] == durability
    database.close()


def test_info_is_for_people(file: Path, open_transport: Callable[..., SQLiteTransport]) -> None:
    transport = open_transport(durability="full")
    transport.send([message("a", frame=bytes(100_000))])
    info = transport.info()
    assert info["transport"] == "sqlite"
    assert info["address"] == str(file)
    assert info["version"] == f"SQLite {sqlite3.sqlite_version}"
    assert (info["journal"], info["durability"], info["waking"]) == ("wal", "full", "fifo")
    assert info["size"] > 100_000


def test_no_statement_numbers_its_parameters() -> None:
    """Of `?1` Python 3.12.0 to 3.12.3 warns at each use, though it is not deprecated."""
    home = Path(taskline.__file__).parent
    files = [path for path in home.rglob("*.py") if "sqlite" in str(path.relative_to(home))]
    assert len(files) > 5
    numbered = re.compile(r"\?\d")
    assert [path.name for path in files if numbered.search(_statements(path))] == []


def _statements(path: Path) -> str:
    lines = path.read_text().splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith("#"))
