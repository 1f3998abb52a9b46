"""What a batch on SQLite costs by the steps that its statements take, also beside a busy thread.

    python -m benchmarks.sqlite_steps

Prints microseconds per message, the mean of some batches, for the ways that
`docs/decisions/sqlite-few-steps.md` compares.
"""

from __future__ import annotations

import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from taskline.errors import TransportError
from taskline.message import Delivery, Header, Message, new_id
from taskline.sqlite import messages
from taskline.sqlite.database import Database
from taskline.sqlite.location import Location

BATCH = 250
ROUNDS = 20

CLAIM = """
    UPDATE messages SET state = 2, at = 1e12, owner = 'w', deliveries = deliveries + 1
    WHERE seq IN (SELECT seq FROM messages WHERE queue = 'q' AND state = 0
                  ORDER BY priority, seq LIMIT ?)
    RETURNING seq, id, deliveries, lost, frame
"""
DELETE = "DELETE FROM messages WHERE seq = ? AND deliveries = ? AND state = 2"


def new_rows() -> list[tuple[Any, ...]]:
    def row() -> tuple[Any, ...]:
        header = Header(v=1, id=new_id(), task="t", queue="q", sent=time.time())
        return messages.row(Message(header, bytes(200)), time.time())

    return [row() for _ in range(BATCH)]


def claim_row_by_row(db: sqlite3.Connection) -> list[Delivery]:
    return [
        Delivery(key, "q", frame, count, lost, (seq, count))
        for seq, key, count, lost, frame in db.execute(CLAIM, (BATCH,)).fetchall()
    ]


def claim_as_one(db: sqlite3.Connection) -> list[Delivery]:
    return messages.claim(db, ["q"], BATCH, 1e12, "w")


@contextmanager
def busy_thread(interval: float | None) -> Iterator[None]:
    """Another thread that only computes, under a switch interval; without one if None."""
    stop = threading.Event()

    def compute() -> None:
        while not stop.is_set():
            count = 0
            for number in range(1000):
                count += number

    before = sys.getswitchinterval()
    thread = threading.Thread(target=compute, name="busy", daemon=True)
    if interval is not None:
        sys.setswitchinterval(interval)
        thread.start()
    try:
        yield
    finally:
        stop.set()
        sys.setswitchinterval(before)
        if interval is not None:
            thread.join()


def timed(database: Database, work: Callable[[sqlite3.Connection], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = database.write(work)
    return (time.perf_counter() - start) / BATCH * 1e6, result


def measure(database: Database) -> dict[str, float]:
    figures: dict[str, list[float]] = {}

    def note(name: str, work: Callable[[sqlite3.Connection], Any]) -> Any:
        took, result = timed(database, work)
        figures.setdefault(name, []).append(took)
        return result

    for _ in range(ROUNDS):
        one, other = new_rows(), new_rows()
        note("send: executemany", lambda db, rows=one: db.executemany(messages.INSERT_ONE, rows))
        taken = note("claim: UPDATE … RETURNING", claim_row_by_row)
        receipts = [delivery.receipt for delivery in taken]
        note("ack: executemany", lambda db, held=receipts: db.executemany(DELETE, held))
        note("send: many rows in one INSERT", lambda db, rows=other: messages.add(db, rows))
        taken = note("claim: one JSON text", claim_as_one)
        note(
            "ack: json_each", lambda db, held=taken: messages.change(db, held, messages.DELETE, ())
        )
    return {name: statistics.fmean(took) for name, took in figures.items()}


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        database = Database(Location(str(Path(directory) / "tasks.db")), TransportError)
        columns: dict[str, dict[str, float]] = {}
        for name, interval in (("alone", None), ("busy, 5 ms", 0.005), ("busy, 1 ms", 0.001)):
            with busy_thread(interval):
                columns[name] = measure(database)
        database.close()
    print(f"µs per message, batches of {BATCH}, SQLite {sqlite3.sqlite_version}")
    print(f"{'':32}" + "".join(f"{name:>12}" for name in columns))
    for way in columns["alone"]:
        print(f"{way:32}" + "".join(f"{column[way]:12.1f}" for column in columns.values()))


if __name__ == "__main__":
    main()
