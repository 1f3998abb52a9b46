"""Messages as a part of the user's own transaction: both are committed, or neither is."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from taskline import Taskline
from taskline.errors import ConfigurationError, NotSupported, TransportError
from taskline.sqlite import outbox, schema
from taskline.sqlite.location import Location, locate
from taskline.transports.sqlite import SQLiteTransport

from .helpers import Diary, fork, until


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "shop.db"


@pytest.fixture
def app(file: Path) -> Iterator[Taskline]:
    with Taskline("shop", broker=f"sqlite:///{file}", backend=f"sqlite:///{file}") as app:
        app.task(name="mail")(lambda number: number)
        app.transport.ping()
        yield app


@pytest.fixture
def orders(app: Taskline, file: Path) -> Iterator[sqlite3.Connection]:
    """The user's own connection, to a table of the user's own beside ours."""
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE orders (number INTEGER)")
        yield connection


def order(connection: sqlite3.Connection, number: int) -> None:
    connection.execute("INSERT INTO orders VALUES (?)", (number,))


def ordered(file: Path) -> list[int]:
    with closing(sqlite3.connect(file)) as connection:
        return [number for (number,) in connection.execute("SELECT number FROM orders")]


def waiting(app: Taskline) -> int:
    return sum(stats.ready or 0 for stats in app.transport.stats())


def test_messages_are_sent_when_the_transaction_commits(
    app: Taskline, orders: sqlite3.Connection, file: Path
) -> None:
    mail = app.tasks["mail"]
    with orders:
        with app.batch(connection=orders) as results:
            order(orders, 1)
            mail.delay(1)
            app.send_task("elsewhere", (2,))
            mail.map(range(3))
        assert len(results) == 5
        assert (waiting(app), ordered(file)) == (0, [])
    assert (waiting(app), ordered(file)) == (5, [1])
    ids = {each.id for each in app.transport.peek("default", 10)}
    assert {result.id for result in results} == ids


def test_what_is_rolled_back_was_never_sent(
    app: Taskline, orders: sqlite3.Connection, file: Path
) -> None:
    with suppress(ZeroDivisionError), orders:
        with app.batch(connection=orders):
            order(orders, 1)
            app.tasks["mail"].delay(1)
        raise ZeroDivisionError
    assert (waiting(app), ordered(file)) == (0, [])


def test_when_the_block_raises_nothing_is_sent(
    app: Taskline, orders: sqlite3.Connection, file: Path
) -> None:
    with orders:
        order(orders, 1)
        with suppress(ZeroDivisionError), app.batch(connection=orders):
            app.tasks["mail"].delay(1)
            raise ZeroDivisionError
    assert (waiting(app), ordered(file)) == (0, [1])


def test_a_large_batch_is_one_transaction(
    app: Taskline, orders: sqlite3.Connection, file: Path
) -> None:
    with orders, app.batch(connection=orders) as results:
        order(orders, 1)
        app.tasks["mail"].map(range(2500))
    assert (waiting(app), len(results)) == (2500, 2500)


def test_an_id_that_is_stored_already_changes_nothing(
    app: Taskline, orders: sqlite3.Connection
) -> None:
    once = app.tasks["mail"].options(task_id="order-1")
    once.delay(1)
    with orders, app.batch(connection=orders):
        order(orders, 1)
        once.delay(2)
    (stored,) = app.transport.peek("default")
    assert b"[1]" in stored.frame


def test_a_plain_batch_inside_leaves_with_the_transaction(
    app: Taskline, orders: sqlite3.Connection
) -> None:
    with orders:
        with app.batch(connection=orders) as outer:
            order(orders, 1)
            with app.batch():
                app.tasks["mail"].delay(1)
        assert (waiting(app), len(outer)) == (0, 1)
    assert waiting(app) == 1


def test_a_transaction_inside_a_plain_batch_is_its_own(
    app: Taskline, orders: sqlite3.Connection
) -> None:
    mail = app.tasks["mail"]
    with suppress(ZeroDivisionError), app.batch():
        mail.delay(1)
        with orders, app.batch(connection=orders) as inner:
            order(orders, 1)
            mail.delay(2)
        assert (waiting(app), len(inner)) == (1, 1)
        raise ZeroDivisionError
    assert waiting(app) == 1


@pytest.mark.parametrize("mode", ["legacy", "BEGIN", "autocommit=False", "autocommit=True"])
def test_each_way_of_python_to_hold_a_transaction(app: Taskline, file: Path, mode: str) -> None:
    options: dict[str, Any] = {}
    if mode.startswith("autocommit"):
        if sys.version_info < (3, 12):
            pytest.skip("sqlite3 has autocommit= since Python 3.12")
        options = {"autocommit": mode.endswith("True")}
    elif mode == "BEGIN":
        options = {"isolation_level": None}
    with closing(sqlite3.connect(file, **options)) as connection:
        if mode in ("BEGIN", "autocommit=True"):
            connection.execute("BEGIN")
        with app.batch(connection=connection):
            connection.execute("CREATE TABLE orders (number)")
            order(connection, 1)
            app.tasks["mail"].delay(1)
        assert waiting(app) == 0
        if mode == "autocommit=True":
            connection.execute("COMMIT")
        else:
            connection.commit()
    assert (waiting(app), ordered(file)) == (1, [1])


def test_factories_of_the_users_do_not_matter(app: Taskline, orders: sqlite3.Connection) -> None:
    orders.row_factory = lambda cursor, row: {"a": "dict"}
    orders.text_factory = bytes
    with orders, app.batch(connection=orders):
        order(orders, 1)
        app.tasks["mail"].delay(1)
    assert waiting(app) == 1


def test_a_receive_that_waits_is_woken_by_the_commit(
    app: Taskline, orders: sqlite3.Connection, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by its own look into the file, which here comes too late."""
    monkeypatch.setattr("taskline.transports.sqlite.RECHECK", 600.0)
    monkeypatch.setattr(outbox, "PATIENCE", 60.0)
    transport = SQLiteTransport(Location(str(file)))
    taken: list[Any] = []
    worker = threading.Thread(
        target=lambda: taken.extend(transport.receive(["default"], 1, 30, 30, "w")), daemon=True
    )
    worker.start()
    until(lambda: list(file.parent.glob("shop.db-wake/q-*")))
    with orders, app.batch(connection=orders):
        order(orders, 1)
        app.tasks["mail"].delay(1)
    worker.join(20)
    assert len(taken) == 1
    until(lambda: "taskline-outbox" not in {thread.name for thread in threading.enumerate()})
    transport.close()


def test_whoever_looks_for_a_commit_gives_up(
    app: Taskline, orders: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "PATIENCE", 0.05)
    with app.batch(connection=orders):
        order(orders, 1)
        app.tasks["mail"].delay(1)
    until(lambda: "taskline-outbox" not in {thread.name for thread in threading.enumerate()})
    orders.rollback()


def test_eager_mode_runs_the_tasks_and_asks_for_nothing(file: Path) -> None:
    app = Taskline("shop", broker="memory://", eager=True)
    mail = app.task(name="mail")(lambda number: number)
    with closing(sqlite3.connect(file)) as connection, app.batch(connection=connection) as results:
        assert mail.delay(1).get() == 1
    assert results.get() == [1]


# What is refused, in one line


def refusal(app: Taskline, error: type[Exception], **transaction: Any) -> str:
    with pytest.raises(error) as caught, app.batch(**transaction):
        pytest.fail("the block must not begin")
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_transport_without_transactions_names_those_that_have_them() -> None:
    with Taskline("shop", broker="memory://") as app:
        for name in ("connection", "session"):
            text = refusal(app, NotSupported, **{name: object()})
            assert "the memory transport cannot" in text
            assert "sqlite:///file.db, with connection=" in text
            assert "mongodb://, with session=" in text


def test_the_argument_is_the_brokers(app: Taskline) -> None:
    text = refusal(app, NotSupported, session=object())
    assert "the sqlite transport takes connection= for a transaction of yours, not session=" in text


def test_none_is_no_connection(app: Taskline) -> None:
    """It would be sent outside of any transaction, without a word."""
    assert "connection= is a NoneType" in refusal(app, ConfigurationError, connection=None)


def test_a_message_is_part_of_one_transaction(app: Taskline) -> None:
    with pytest.raises(ConfigurationError, match="not both"):
        app.batch(connection=sqlite3.connect(":memory:"), session=object())


def test_another_file_is_refused(app: Taskline, tmp_path: Path, file: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "other.db")) as other:
        text = refusal(app, ConfigurationError, connection=other)
        assert f"is open on {tmp_path}/other.db, but the broker is {file}" in text
        other.execute("ATTACH ? AS tasks", (str(file),))
        assert f"open on {tmp_path}/other.db" in refusal(app, ConfigurationError, connection=other)
    with closing(sqlite3.connect(":memory:")) as other:
        text = refusal(app, ConfigurationError, connection=other)
        assert "is open on a database in memory" in text


def test_another_way_to_the_same_file_is_not(app: Taskline, file: Path, tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to(file)
    with closing(sqlite3.connect(tmp_path / "link.db")) as connection:
        with connection, app.batch(connection=connection):
            connection.execute("CREATE TABLE orders (number)")
            order(connection, 1)
            app.tasks["mail"].delay(1)
        assert waiting(app) == 1


def test_autocommit_is_refused_before_the_block(app: Taskline, file: Path) -> None:
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        text = refusal(app, ConfigurationError, connection=connection)
        assert 'connection.execute("BEGIN") before the batch' in text
    if sys.version_info >= (3, 12):
        with closing(sqlite3.connect(file, autocommit=True)) as connection:
            assert '"BEGIN"' in refusal(app, ConfigurationError, connection=connection)


def test_a_commit_within_the_block_is_found_out(app: Taskline, orders: sqlite3.Connection) -> None:
    def commit_inside() -> None:
        with app.batch(connection=orders):
            order(orders, 1)
            app.tasks["mail"].delay(1)
            orders.commit()

    with pytest.raises(ConfigurationError, match="at the end of the batch, so nothing was sent"):
        commit_inside()
    assert waiting(app) == 0


def test_a_closed_connection_is_refused(app: Taskline, file: Path) -> None:
    connection = sqlite3.connect(file)
    connection.close()
    assert "connection= is closed" in refusal(app, ConfigurationError, connection=connection)


def test_the_connection_of_another_thread_is_refused(
    app: Taskline, orders: sqlite3.Connection
) -> None:
    texts: list[str] = []
    thread = threading.Thread(
        target=lambda: texts.append(refusal(app, ConfigurationError, connection=orders))
    )
    thread.start()
    thread.join()
    assert "belongs to another thread" in texts[0]


def test_a_busy_file_is_an_error_that_may_be_tried_again(
    app: Taskline, orders: sqlite3.Connection, file: Path
) -> None:
    orders.execute("PRAGMA busy_timeout = 0")
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        orders.execute("BEGIN")
        with pytest.raises(TransportError, match="was busy") as caught:  # noqa: SIM117
            with app.batch(connection=orders):
                app.tasks["mail"].delay(1)
        assert caught.value.retryable
        other.execute("ROLLBACK")
    assert waiting(app) == 0


def test_what_fails_halfway_leaves_nothing_in_the_transaction(
    app: Taskline, orders: sqlite3.Connection, file: Path
) -> None:
    orders.execute(
        "CREATE TEMP TRIGGER half BEFORE INSERT ON main.messages "
        "WHEN (SELECT count(*) FROM main.messages) >= 3 BEGIN SELECT raise(ABORT, 'enough'); END"
    )
    with orders:
        order(orders, 1)
        with pytest.raises(TransportError, match="enough"), app.batch(connection=orders):
            app.tasks["mail"].map(range(5))
    assert (waiting(app), ordered(file)) == (0, [1])


# A file that was the user's first


def test_a_shared_file_keeps_the_tables_of_both(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE orders (number)")
        order(connection, 1)
        connection.commit()
    with pytest.raises(ConfigurationError, match=r"another application.*\?shared=true"):
        SQLiteTransport(locate(f"sqlite:///{file}")).ping()
    transport = SQLiteTransport(locate(f"sqlite:///{file}?shared=true"))
    transport.ping()
    transport.close()
    assert ordered(file) == [1]
    # From now on it is known to be ours as well.
    transport = SQLiteTransport(locate(f"sqlite:///{file}"))
    transport.ping()
    transport.close()


@pytest.mark.parametrize("statement", ["CREATE TABLE Messages (x)", "CREATE VIEW keys AS SELECT 1"])
def test_a_name_that_is_taken_is_told(file: Path, statement: str) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute(statement)
    transport = SQLiteTransport(locate(f"sqlite:///{file}?shared=true"))
    with pytest.raises(ConfigurationError, match=r"has (messages|keys) already"):
        transport.ping()


@pytest.mark.parametrize("pragma", ["application_id = 7", "user_version = 3"])
def test_the_marks_of_a_shared_file_must_be_free(file: Path, pragma: str) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE orders (number)")
        connection.execute(f"PRAGMA {pragma}")
    with pytest.raises(ConfigurationError, match="another application"):
        SQLiteTransport(locate(f"sqlite:///{file}?shared=true")).ping()


def test_the_names_of_ours_are_known() -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        schema.upgrade(connection, "m")
        made = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    assert {name for name in made if not name.startswith("sqlite_")} == schema._OURS


@pytest.mark.parametrize("value", ["1", "yes", ""])
def test_shared_is_true_or_false(value: str) -> None:
    with pytest.raises(ConfigurationError, match="true or false"):
        locate(f"sqlite:///a.db?shared={value}")
    with pytest.raises(ConfigurationError, match="true or false"):
        locate({"type": "sqlite", "path": "a.db", "shared": 1})


# Crashes


def _shop(file: Path) -> tuple[Taskline, sqlite3.Connection]:
    app = Taskline("shop", broker=f"sqlite:///{file}")
    app.task(name="mail")(lambda number: number)
    return app, sqlite3.connect(file)


def _stop_at(file: Path, diary: Path, moment: str) -> None:
    app, connection = _shop(file)
    with connection:
        with app.batch(connection=connection):
            order(connection, 1)
            app.tasks["mail"].delay(1)
        if moment == "before the commit":
            Diary(diary).write("here")
            time.sleep(600)
    Diary(diary).write("here")
    time.sleep(600)


@pytest.mark.parametrize(
    ("moment", "left"), [("before the commit", (0, [])), ("after the commit", (1, [1]))]
)
def test_killed_beside_the_commit(
    app: Taskline,
    orders: sqlite3.Connection,
    file: Path,
    tmp_path: Path,
    moment: str,
    left: tuple[int, list[int]],
) -> None:
    orders.close()
    app.close()
    diary = Diary(tmp_path / "diary")
    child = fork.Process(target=_stop_at, args=(file, diary.path, moment))
    child.start()
    until(diary.lines)
    child.kill()
    child.join()
    diary.close()
    assert (waiting(app), ordered(file)) == left


def _order_on_and_on(file: Path, first: int) -> None:
    app, connection = _shop(file)
    for number in range(first, first + 100_000):
        with connection, app.batch(connection=connection):
            order(connection, number)
            app.tasks["mail"].options(task_id=f"{number}").delay(number)


def test_killed_at_any_moment_both_are_there_or_neither(
    app: Taskline, orders: sqlite3.Connection, file: Path
) -> None:
    orders.close()
    app.close()
    dice = random.Random(7)
    for turn in range(8):
        child = fork.Process(target=_order_on_and_on, args=(file, turn * 100_000))
        child.start()
        begun = len(ordered(file))
        until(lambda begun=begun: len(ordered(file)) > begun)
        time.sleep(dice.random() * 0.02)
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
    numbers = ordered(file)
    sent = {each.id for each in app.transport.peek("default", 10**6)}
    assert len(numbers) >= 8
    assert sent == {str(number) for number in numbers}
