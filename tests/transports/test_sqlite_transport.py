"""What the SQLite transport promises beyond the seam: costs, sizes, sharing, order."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlite.helpers import Statements, message, outcome

from taskline.backends import open_backend
from taskline.backends.sqlite import SQLiteBackend
from taskline.clock import ManualClock
from taskline.message import DeadLetter, Header, Message
from taskline.sqlite import messages as rows
from taskline.sqlite.location import Location
from taskline.transports import open_transport
from taskline.transports.sqlite import SQLiteTransport


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tasks.db"


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> Statements:
    return Statements(monkeypatch)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def transport(file: Path, statements: Statements, clock: ManualClock) -> Iterator[SQLiteTransport]:
    transport = SQLiteTransport(Location(str(file)), clock)
    transport.ping()
    statements.clear()
    yield transport
    transport.close()


@pytest.fixture
def backend(file: Path, clock: ManualClock) -> Iterator[SQLiteBackend]:
    backend = SQLiteBackend(Location(str(file)), clock)
    yield backend
    backend.close()


# Budgets.


def test_a_send_is_one_transaction_of_one_statement(
    transport: SQLiteTransport, statements: Statements
) -> None:
    transport.send([message("a")])
    assert statements.transactions() == 1
    assert len(statements.all) == 1


def test_a_batch_is_one_transaction(transport: SQLiteTransport, statements: Statements) -> None:
    transport.send([message(str(number)) for number in range(5000)])
    assert statements.transactions() == 1
    assert len(statements.all) < 50
    assert transport.stats(["q"])[0].ready == 5000


def test_an_empty_batch_is_no_transaction(
    transport: SQLiteTransport, statements: Statements
) -> None:
    transport.send([])
    assert transport.ack([]) == transport.release([]) == transport.extend([], 30) == []
    assert transport.replace([]) == transport.bury([]) == []
    assert statements.transactions() == 0


def test_a_drain_with_results_costs_two_transactions_a_batch(
    transport: SQLiteTransport, backend: SQLiteBackend, statements: Statements
) -> None:
    transport.send([message(str(number)) for number in range(1000)])
    statements.clear()
    done = 0
    while taken := transport.receive(["q"], 100, 30, 0, "w"):
        outcomes = [outcome(each.id, ttl=3600.0) for each in taken]
        assert transport.ack(taken, outcomes) == []
        done += len(taken)
    assert done == 1000
    assert statements.transactions() == 20
    # Few steps too: each lets other threads run, and may have to wait for them.
    assert len(statements.all) < 200
    assert len(backend.fetch([str(number) for number in range(1000)])) == 1000


def test_nothing_to_do_is_no_transaction(
    transport: SQLiteTransport, statements: Statements, clock: ManualClock
) -> None:
    """Many idle workers do not keep one another, or a sender, from the file."""
    transport.send([message("later", eta=clock.time() + 60), message("other", "other")])
    statements.clear()
    for _ in range(10):
        assert transport.receive(["q", "p"], 100, 30, 0, "w") == []
    assert statements.transactions() == 0
    assert len(statements.all) == 10


@pytest.mark.parametrize("call", ["release", "extend", "replace", "bury", "recover"])
def test_each_call_for_a_batch_is_one_transaction(
    transport: SQLiteTransport, statements: Statements, call: str
) -> None:
    transport.send([message(str(number)) for number in range(300)])
    taken = transport.receive(["q"], 300, 30, 0, "w")
    statements.clear()
    if call == "release":
        assert transport.release(taken) == []
    elif call == "extend":
        assert transport.extend(taken, 60) == []
    elif call == "replace":
        assert transport.replace([(each, message(each.id)) for each in taken]) == []
    elif call == "bury":
        letters = [DeadLetter(id=each.id, queue="q", reason="r", at=0.0) for each in taken]
        assert transport.bury(list(zip(taken, letters, strict=True))) == []
    else:
        assert transport.recover("w", [each.id for each in taken[:100]]) == 300
    assert statements.transactions() == 1
    assert len(statements.all) < 20


def test_what_is_lost_in_a_batch_costs_one_more(
    transport: SQLiteTransport, statements: Statements
) -> None:
    transport.send([message(str(number)) for number in range(10)])
    taken = transport.receive(["q"], 10, 30, 0, "w")
    assert transport.ack(taken[3:5]) == []
    statements.clear()
    assert transport.ack(taken) == taken[3:5]
    assert statements.count("BEGIN") == 2
    assert transport.stats(["q"])[0].leased == 0


# Claims.


@pytest.mark.parametrize("size", [0, 1, 4096, 4097, 100_000, 3_000_000])
def test_frames_of_all_sizes_keep_their_order(transport: SQLiteTransport, size: int) -> None:
    frames = [bytes([number % 256]) * (size if number % 2 else number) for number in range(9)]
    transport.send([message(str(number), frame=frame) for number, frame in enumerate(frames)])
    taken = transport.receive(["q"], 9, 30, 0, "w")
    assert [delivery.id for delivery in taken] == [str(number) for number in range(9)]
    assert [delivery.frame for delivery in taken] == frames
    assert [each.frame for each in transport.peek("q")] == frames


@pytest.mark.parametrize("key", ["a'b\"c", "line\nbreak", "tab\t", "ü€😀", " ", "\\u0041", "\x01"])
def test_ids_and_queues_are_any_text(transport: SQLiteTransport, key: str) -> None:
    transport.send([message(key, key), message("x" + key, key)])
    assert [each.id for each in transport.peek(key)] == [key, "x" + key]
    taken = transport.receive([key], 2, 30, 0, key)
    assert [(delivery.id, delivery.queue) for delivery in taken] == [(key, key), ("x" + key, key)]
    assert transport.recover(key, [key]) == 2
    taken = transport.receive([key], 2, 30, 0, "w")
    assert [delivery.lost for delivery in taken] == [1, 0]
    assert transport.ack(taken, [outcome(key)]) == []


def test_a_claim_is_bounded(transport: SQLiteTransport) -> None:
    transport.send([message(str(number)) for number in range(rows.CLAIM_LIMIT + 10)])
    assert len(transport.receive(["q"], 10**6, 30, 0, "w")) == rows.CLAIM_LIMIT
    assert len(transport.receive(["q"], 10**6, 30, 0, "w")) == 10


def test_no_more_is_taken_of_many_queues_than_the_limit(transport: SQLiteTransport) -> None:
    transport.send([message(f"{queue}{number}", queue) for queue in "abc" for number in range(3)])
    taken = transport.receive(["c", "a", "b"], 5, 30, 0, "w")
    assert [delivery.id for delivery in taken] == ["c0", "c1", "c2", "a0", "a1"]


def test_more_than_one_claim_makes_ready_come_due_at_once(
    transport: SQLiteTransport, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "_PROMOTE", rows._PROMOTE.replace("5000", "10"))
    due = clock.time() + 60
    others = [message(f"other-{number}", "other", eta=due) for number in range(25)]
    transport.send([*others, *(message(f"{n}", eta=due + 1) for n in range(25))])
    clock.advance(100)
    taken = []
    # Those of another queue come first, and nobody else makes them ready.
    while got := transport.receive(["q"], 100, 30, 5.0, "w"):
        taken += got
        if len(taken) == 25:
            break
    assert sorted(delivery.id for delivery in taken) == sorted(f"{n}" for n in range(25))


def test_a_receipt_names_one_handing_over_for_ever(
    transport: SQLiteTransport, clock: ManualClock
) -> None:
    """Though the row that it names was deleted, and another one is the newest now."""
    transport.send([message("first")])
    (stale,) = transport.receive(["q"], 1, 10, 0, "w")
    clock.advance(11)
    (held,) = transport.receive(["q"], 1, 10, 0, "other")
    assert transport.ack([held]) == []
    transport.send([message("second")])
    (new,) = transport.receive(["q"], 1, 10, 0, "w")
    assert new.deliveries == stale.deliveries
    assert transport.ack([stale]) == [stale]
    assert transport.ack([new]) == []


def test_a_late_receipt_holds_until_somebody_looks_for_work(
    transport: SQLiteTransport, clock: ManualClock
) -> None:
    transport.send([message("a"), message("b")])
    first, second = transport.receive(["q"], 2, 10, 0, "w")
    clock.advance(60)
    assert transport.extend([first, second], 10) == []
    clock.advance(60)
    assert transport.receive(["other"], 1, 10, 0, "w") == []
    assert transport.ack([first, second]) == [first, second]


# People.


def test_the_age_of_a_queue_is_that_of_its_oldest_message(
    transport: SQLiteTransport, clock: ManualClock
) -> None:
    now = clock.time()
    transport.send(
        [
            message("due", sent=now - 500, eta=now + 10, priority=9),
            message("young", sent=now - 1),
            message("old", sent=now - 300, priority=0),
            message("elsewhere", "other", sent=now - 900),
        ]
    )
    (taken,) = transport.receive(["q"], 1, 600, 0, "w")
    assert taken.id == "young"
    assert transport.stats(["q"])[0].oldest == pytest.approx(300)
    clock.advance(100)
    # Come due, a message is as old as its eta is past.
    transport.delete(["old"])
    assert transport.stats(["q"])[0].oldest == pytest.approx(90)
    transport.release([taken])
    assert transport.stats(["q"])[0].oldest == pytest.approx(101)


def test_a_message_that_is_sent_again_counts_on_from_its_dead_letter(
    transport: SQLiteTransport,
) -> None:
    transport.send([message("a")])
    for deliveries in range(1, 4):
        (taken,) = transport.receive(["q"], 1, 600, 0, "w")
        assert taken.deliveries == deliveries
        letter = DeadLetter(id="a", queue="q", reason=f"r{deliveries}", at=0.0, frame=b"\x00\xff")
        assert transport.bury([(taken, letter)]) == []
        transport.send([message("a")] if deliveries % 2 else [message("b", "x"), message("a")])
    assert transport.dead_letter("a") == letter
    assert transport.dead_letters() == [letter]


def test_peek_shows_far_pages(transport: SQLiteTransport, clock: ManualClock) -> None:
    now = clock.time()
    transport.send([message(f"r{n:02}") for n in range(20)])
    transport.send([message(f"d{n:02}", eta=now + 100 - n) for n in range(20)])
    transport.send([message(f"due{n:02}", eta=now + 1 + n / 100, priority=9) for n in range(20)])
    clock.advance(2)
    expected = [
        *(f"due{n:02}" for n in range(20)),
        *(f"r{n:02}" for n in range(20)),
        *(f"d{n:02}" for n in reversed(range(20))),
    ]
    pages = [transport.peek("q", 7, offset) for offset in range(0, 63, 7)]
    assert [each.id for page in pages for each in page] == expected
    assert [each.state for each in transport.peek("q", 2, 39)] == ["ready", "delayed"]
    assert transport.peek("q", 5, 60) == []


# Sharing.


@pytest.mark.parametrize(
    ("broker", "results", "shared"),
    [
        ("a.db", "a.db", True),
        ("a.db", "link.db", True),
        ("a.db", "b.db", False),
        ("a.db?durability=full", "a.db", True),
        ("a.db?durability=full", "a.db?durability=full", True),
        ("a.db", "a.db?durability=full", False),
    ],
)
def test_one_file_is_shared(tmp_path: Path, broker: str, results: str, shared: bool) -> None:
    (tmp_path / "link.db").symlink_to(tmp_path / "a.db")
    transport = open_transport(f"sqlite:///{tmp_path}/{broker}")
    backend = open_backend(f"sqlite:///{tmp_path}/{results}")
    assert transport.shares(backend) is shared
    assert not transport.shares(open_backend("memory://"))


def test_a_shared_ack_is_all_or_nothing(
    transport: SQLiteTransport, backend: SQLiteBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport.send([message("a"), message("b")])
    taken = transport.receive(["q"], 2, 30, 0, "w")
    monkeypatch.setattr("taskline.transports.sqlite.store", None)
    with pytest.raises(TypeError):
        transport.ack(taken, [outcome("a"), outcome("b")])
    monkeypatch.undo()
    assert transport.stats(["q"])[0].leased == 2
    assert backend.fetch(["a", "b"]) == {}
    assert transport.ack(taken, [outcome("a"), outcome("b")]) == []
    assert backend.fetch(["a", "b"]).keys() == {"a", "b"}


def test_outcomes_of_others_are_not_stored(
    transport: SQLiteTransport, backend: SQLiteBackend
) -> None:
    transport.send([message("a")])
    taken = transport.receive(["q"], 1, 30, 0, "w")
    assert transport.ack(taken, [outcome("a"), outcome("stranger")]) == []
    assert backend.fetch(["a", "stranger"]).keys() == {"a"}


@pytest.mark.parametrize("size", [10, 5000])
def test_a_frame_that_was_inserted_as_text_is_read_as_bytes(tmp_path: Path, size: int) -> None:
    """By hand, with the sqlite3 program: one such row must not end the worker that reads it."""
    path = tmp_path / "tasks.db"
    transport = SQLiteTransport(Location(str(path)))
    frame = "é" * size
    transport.send([Message(Header(1, "a", "t", "q", 1.0), frame.encode())])
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE messages SET frame = CAST(frame AS TEXT)")
    connection.close()
    assert [message.frame for message in transport.peek("q")] == [frame.encode()]
    [delivery] = transport.receive(["q"], 1, 30.0, 0.0, "me")
    assert delivery.frame == frame.encode()
    transport.close()
