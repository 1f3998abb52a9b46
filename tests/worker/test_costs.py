"""What a task costs, counted: transactions, and calls in Python. Time is for the benchmarks."""

from __future__ import annotations

import sqlite3
import sys
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from workbench import Bench

import taskline
from taskline import Taskline
from taskline.sqlite.database import Database
from taskline.worker.execute import Runner
from taskline.worker.ledger import Ledger

HOME = taskline.__file__.removesuffix("__init__.py")


class Transactions:
    """Counts the transactions of all connections opened from now on, by what they do."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counts: Counter[str] = Counter()
        connect = Database.connect

        def watched(database: Database) -> sqlite3.Connection:
            connection = connect(database)
            connection.set_trace_callback(self._tracer(connection))
            return connection

        monkeypatch.setattr(Database, "connect", watched)

    def _tracer(self, connection: sqlite3.Connection) -> Callable[[str], None]:
        within = [False]

        def trace(statement: str) -> None:
            verb = statement.split(None, 1)[0].upper()
            if verb == "BEGIN":
                within[0] = True
                self.counts["write"] += 1
            elif verb in ("COMMIT", "ROLLBACK"):
                within[0] = False
            elif not within[0] and verb != "PRAGMA":
                self.counts["read" if verb == "SELECT" else "write"] += 1

        return trace


@pytest.mark.parametrize("apart", [False, True])
def test_transactions_for_a_thousand_tasks(
    make_sqlite_app: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, apart: bool
) -> None:
    transactions = Transactions(monkeypatch)
    app: Taskline = make_sqlite_app(
        **({"backend": f"sqlite:///{tmp_path}/results.db"} if apart else {})
    )

    @app.task
    def nothing(number: int) -> int:
        return number

    app.transport.ping()
    transactions.counts.clear()
    results = [nothing.delay(number) for number in range(1000)]
    assert transactions.counts == {"write": 1000}, "one to send, and nothing else"
    bench = Bench(app)
    bench.io._prefetch.observe([0.00001] * 100)  # it knows that they are short
    transactions.counts.clear()
    assert bench.drain() == 1000
    counts = transactions.counts
    assert counts["write"] / 1000 < 0.1
    assert counts["read"] / 1000 < 0.1
    assert counts["write"] <= (8 if apart else 6), "a few for all"
    transactions.counts.clear()
    assert [result.get(timeout=0) for result in results[:10]] == list(range(10))


def test_sending_many_is_one_transaction(
    make_sqlite_app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    transactions = Transactions(monkeypatch)
    app: Taskline = make_sqlite_app()

    @app.task
    def nothing(number: int) -> int:
        return number

    app.transport.ping()
    transactions.counts.clear()
    nothing.map(range(1000))
    assert transactions.counts == {"write": 1}


class Profile:
    """Counts the calls of Taskline's Python functions, but while `user` runs and its run ends."""

    def __init__(self, user: Callable[..., Any]) -> None:
        self.calls: Counter[str] = Counter()
        self._user = user.__code__
        self._counting = True

    def __enter__(self) -> Profile:
        sys.setprofile(self._see)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(None)

    def _see(self, frame: FrameType, event: str, arg: object) -> None:
        code = frame.f_code
        if event == "call":
            if code is self._user:
                self._counting = False
            elif self._counting and code.co_filename.startswith(HOME):
                place = f"{code.co_filename.removeprefix(HOME)}:{code.co_firstlineno}"
                self.calls[f"{place}:{code.co_name}"] += 1
        elif event == "return" and code is Runner.run.__code__:
            self._counting = True


def calls_to_run(app: Taskline, task: Any, count: int) -> Counter[str]:
    """The calls for so many messages, from what was received to the user's function."""
    task.map(range(count))
    bench = Bench(app, ledger=Ledger(2))  # as under a supervisor
    slot = bench.io.slots[0]
    deliveries = bench.transport.receive(["default"], count, 30.0, 0.0, "bench")
    assert len(deliveries) == count
    with Profile(task.function) as profile:
        bench.io._intake.take_in(deliveries)
        bench.exchange.ready.put(None)
        slot.loop()
    bench.drain()
    return profile.calls


def test_calls_from_received_bytes_to_the_users_function(memory_app: Taskline) -> None:
    @memory_app.task
    def nothing(number: int) -> int:
        return number

    calls_to_run(memory_app, nothing, 5)  # what is done once
    few, many = calls_to_run(memory_app, nothing, 50), calls_to_run(memory_app, nothing, 150)
    per_message = {name: (many[name] - few[name]) / 100 for name in many if many[name] > few[name]}
    files = {name.partition(":")[0] for name in per_message}
    assert sum(per_message.values()) <= 20, per_message
    assert len(files) <= 6, per_message
