from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from taskline.errors import ConfigurationError, TransportError
from taskline.sqlite import schema
from taskline.sqlite.database import Database
from taskline.sqlite.location import Location
from taskline.transports.sqlite import SQLiteTransport

from .helpers import message, run


def database(file: Path) -> Database:
    return Database(Location(str(file)), TransportError)


def layout(file: Path) -> tuple[int, int, list[tuple[str, str]]]:
    """The file's marks, and all that was made in it."""
    connection = sqlite3.connect(file)
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (number,) = connection.execute("PRAGMA user_version").fetchone()
    made = connection.execute(
        "SELECT name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite%' ORDER BY name"
    ).fetchall()
    connection.close()
    return application, number, made


def test_a_new_file_is_marked_and_writes_ahead(tmp_path: Path) -> None:
    file = tmp_path / "tasks.db"
    opened = database(file)
    opened.ping()
    assert opened.info()["journal"] == "wal"
    opened.close()
    application, number, made = layout(file)
    assert (application, number) == (schema.APPLICATION_ID, schema.LAYOUT)
    assert {"messages", "outcomes", "dead"} <= {name for name, _ in made}


def test_every_older_layout_is_migrated_and_keeps_its_messages(tmp_path: Path) -> None:
    fresh = tmp_path / "fresh.db"
    opened = database(fresh)
    opened.ping()
    opened.close()
    for old in range(1, schema.LAYOUT):
        file = tmp_path / f"layout{old}.db"
        connection = sqlite3.connect(file)
        for step in schema.STEPS[:old]:
            for statement in step:
                connection.execute(statement)
        connection.execute(
            "INSERT INTO messages (id, queue, priority, state, at, deliveries, sent, frame) "
            "VALUES ('old', 'q', -5, 0, 1.0, 3, 1.0, x'00ff')"
        )
        connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {old}")
        connection.commit()
        connection.close()
        transport = SQLiteTransport(Location(str(file)))
        (delivery,) = transport.receive(["q"], 10, 30, 0, "w")
        assert (delivery.id, delivery.frame, delivery.deliveries) == ("old", b"\x00\xff", 4)
        transport.close()
        assert layout(file) == layout(fresh)


def test_a_migration_that_fails_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "tasks.db"
    opened = database(file)
    opened.ping()
    opened.close()
    before = layout(file)
    later = (*schema.STEPS, ("CREATE TABLE more (x)", "CREATE TABLE messages (y)"))
    monkeypatch.setattr(schema, "STEPS", later)
    monkeypatch.setattr("taskline.sqlite.database.LAYOUT", len(later))
    monkeypatch.setattr(schema, "LAYOUT", len(later))
    with pytest.raises(TransportError, match="already exists"):
        database(file).ping()
    assert layout(file) == before


def test_a_file_from_a_newer_taskline_is_refused_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "tasks.db"
    opened = database(file)
    opened.ping()
    opened.close()
    connection = sqlite3.connect(file)
    connection.execute(f"PRAGMA user_version = {schema.LAYOUT + 1}")
    connection.close()
    before = layout(file)
    with pytest.raises(ConfigurationError, match=r"newer Taskline .*upgrade Taskline") as caught:
        SQLiteTransport(Location(str(file))).send([message("a")])
    assert str(file) in str(caught.value)
    assert layout(file) == before


@pytest.mark.parametrize(
    "statement", ["CREATE TABLE theirs (x)", "PRAGMA application_id = 7", "PRAGMA user_version = 3"]
)
def test_the_database_of_another_application_is_refused(tmp_path: Path, statement: str) -> None:
    file = tmp_path / "theirs.db"
    connection = sqlite3.connect(file)
    connection.execute(statement)
    connection.commit()
    connection.close()
    before = file.read_bytes()
    with pytest.raises(ConfigurationError, match="another application"):
        SQLiteTransport(Location(str(file))).send([message("a")])
    assert file.read_bytes() == before


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("not a database, " * 100)
    with pytest.raises(ConfigurationError, match="not an SQLite database") as caught:
        SQLiteTransport(Location(str(file))).send([message("a")])
    assert str(file) in str(caught.value)
    assert file.read_text() == "not a database, " * 100


def test_an_old_sqlite_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    with pytest.raises(ConfigurationError, match=r"3\.35 or newer"):
        database(tmp_path / "tasks.db")
    assert not (tmp_path / "tasks.db").exists()


def test_many_processes_make_one_file(tmp_path: Path) -> None:
    for attempt in range(10):
        file = tmp_path / f"{attempt}.db"
        run(*((_send_one, (file, str(number))) for number in range(4)))
        transport = SQLiteTransport(Location(str(file)))
        assert transport.stats(["q"])[0].ready == 4
        transport.close()


def _send_one(file: Path, key: str) -> None:
    transport = SQLiteTransport(Location(str(file)))
    transport.send([message(key)])
    transport.close()
