"""What the SQLite backend promises beyond the seam: what waiting and upkeep cost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlite.helpers import BOUND, Statements, outcome

from taskline.backends import sqlite as module
from taskline.backends.base import Revocation
from taskline.backends.sqlite import SQLiteBackend
from taskline.clock import ManualClock
from taskline.sqlite.location import Location


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> Statements:
    return Statements(monkeypatch)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def backend(tmp_path: Path, statements: Statements, clock: ManualClock) -> Iterator[SQLiteBackend]:
    backend = SQLiteBackend(Location(str(tmp_path / "results.db")), clock)
    backend.ping()
    statements.clear()
    yield backend
    backend.close()


def rows(backend: SQLiteBackend, table: str) -> int:
    count = f"SELECT count(*) FROM {table}"
    return int(backend._database.read(lambda db: db.execute(count).fetchone()[0]))


def test_a_batch_is_one_transaction(backend: SQLiteBackend, statements: Statements) -> None:
    many = [outcome(str(number), ttl=3600.0) for number in range(1000)]
    assert backend.store(many) == []
    assert backend.store([outcome(each.id, deliveries=2) for each in many]) == []
    assert statements.transactions() == 2
    assert len(statements.all) < 60
    assert rows(backend, "outcomes") == 1000


# Waiting.


def test_who_waits_for_many_looks_up_only_what_is_new(
    backend: SQLiteBackend, statements: Statements
) -> None:
    wanted = {str(number) for number in range(500)}
    assert backend.wait(wanted, 0) == {}
    backend.store([outcome("7"), outcome("not ours")])
    statements.clear()
    found = backend.wait(wanted, 0)
    assert found.keys() == {"7"}
    assert not [text for _, text in statements.all if '"499"' in text]
    # As a caller does: what came is not asked for again, and others are.
    wanted = (wanted - {"7"}) | {"late"}
    backend.store([outcome("8"), outcome("late")])
    assert backend.wait(wanted, 0).keys() == {"8", "late"}


def test_what_was_not_waited_for_in_between_is_not_missed(backend: SQLiteBackend) -> None:
    assert backend.wait({"a", "b", "c"}, 0) == {}
    assert backend.wait({"c"}, 0) == {}
    backend.store([outcome("a")])
    assert backend.wait({"c"}, 0) == {}
    assert backend.wait({"a", "b"}, 0).keys() == {"a"}
    # A caller may ask again for what it has.
    assert backend.wait({"a"}, 0).keys() == {"a"}


def test_far_behind_a_waiter_looks_its_ids_up(backend: SQLiteBackend) -> None:
    assert backend.wait({"a", "b"}, 0) == {}
    backend.store([outcome(f"other-{number}") for number in range(3000)])
    backend.store([outcome("b")])
    assert backend.wait({"a", "b"}, 0).keys() == {"b"}


def test_an_outcome_that_was_forgotten_and_came_again_is_seen(backend: SQLiteBackend) -> None:
    """Its row gets a number that no row had before."""
    backend.store([outcome("a")])
    assert backend.wait({"a", "b"}, 0).keys() == {"a"}
    assert backend.wait({"b"}, 0) == {}
    backend.forget(["a"])
    backend.store([outcome("b")])
    assert backend.wait({"b"}, 0).keys() == {"b"}


def test_a_state_that_becomes_final_is_seen(backend: SQLiteBackend) -> None:
    backend.store([outcome("a", "STARTED"), outcome("b", "STARTED")])
    assert backend.wait({"a", "b"}, 0) == {}
    backend.store([outcome("a", "RETRY")])
    assert backend.wait({"a", "b"}, 0) == {}
    backend.store([outcome("a", "SUCCESS")])
    assert backend.wait({"a", "b"}, 0).keys() == {"a"}


def test_one_waits_while_others_store_and_wait_in_turn(tmp_path: Path) -> None:
    """A thousand outcomes from another connection, waited for as a result set does it."""
    location = Location(str(tmp_path / "results.db"))
    waiting, storing = SQLiteBackend(location), SQLiteBackend(location)
    wanted = {str(number) for number in range(1000)}
    found: set[str] = set()

    def collect() -> None:
        while found < wanted:
            found.update(waiting.wait(wanted - found, BOUND))

    thread = threading.Thread(target=collect)
    thread.start()
    for number in range(0, 1000, 10):
        storing.store([outcome(str(number + each)) for each in range(10)])
    thread.join(BOUND)
    assert found == wanted
    waiting.close()
    storing.close()


# Upkeep.


def test_upkeep_deletes_what_has_ended_a_part_at_a_time(
    backend: SQLiteBackend, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SWEEP_LIMIT", 10)
    backend.store([outcome(f"short-{number}", ttl=10.0) for number in range(25)])
    backend.store([outcome("long", ttl=1000.0), outcome("for ever")])
    backend.revoke([Revocation(f"short-{number}") for number in range(15)], 10.0)
    backend.revoke([Revocation("long")], 1000.0)
    for number in range(25):
        backend.count("short", f"member-{number}", 10.0)
    backend.count("long", "member", 1000.0)
    clock.advance(11)
    left = []
    for _ in range(4):
        backend.maintain()
        left.append(tuple(rows(backend, table) for table in ("outcomes", "revocations", "members")))
    assert left == [(17, 6, 16), (7, 1, 6), (2, 1, 1), (2, 1, 1)]
    assert rows(backend, "counters") == 1
    assert backend.fetch(["long", "for ever"]).keys() == {"long", "for ever"}


def test_upkeep_with_nothing_to_do_writes_nothing(
    backend: SQLiteBackend, statements: Statements
) -> None:
    backend.store([outcome("a", ttl=10.0)])
    statements.clear()
    for _ in range(5):
        backend.maintain()
    assert statements.transactions() == 0


def test_an_ended_set_starts_anew_however_large_it_was(
    backend: SQLiteBackend, clock: ManualClock
) -> None:
    for number in range(30):
        assert backend.count("group", str(number), 10.0) == number + 1
    clock.advance(11)
    assert backend.count("group", "5", 10.0) == 1
    assert backend.count("group", "6", 10.0) == 2
