"""Locks, keys and counters in one SQLite file, for many processes of one machine."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Sequence
from typing import Any

from taskline.backends.keys import KeyStore, Lease, Step, Watch, added, next_fence
from taskline.clock import Clock
from taskline.sqlite.database import Database
from taskline.sqlite.wake import LOCKS, Bell, Waiter

_LIVE = "(expires IS NULL OR expires > ?)"
_SET = "INSERT INTO keys (key, value, expires) VALUES (?, ?, ?)"
_REPLACE = "ON CONFLICT (key) DO UPDATE SET value = excluded.value, expires = excluded.expires"
_LEASE = "SELECT token, fence, expires FROM locks WHERE name = ? AND expires > ?"
_HELD = "name = ? AND token = ? AND expires > ?"
_LAST_FENCE = "SELECT seq FROM sqlite_sequence WHERE name = 'locks'"
_TAKE = "INSERT OR REPLACE INTO locks (fence, name, token, expires) VALUES (?, ?, ?, ?)"


class SQLiteKeys(KeyStore):
    """The key store of one backend."""

    def __init__(self, database: Database, bell: Bell, clock: Clock) -> None:
        self._database = database
        self._bell = bell
        self._clock = clock

    def time(self) -> float:
        return self._clock.time()

    def get(self, key: str) -> bytes | None:
        row: tuple[bytes] | None = self._row("value", key)
        return None if row is None else row[0]

    def set(self, key: str, value: bytes, ttl: float | None, *, if_absent: bool = False) -> bool:
        params: list[object] = [key, value, self._end(ttl)]
        statement = f"{_SET} {_REPLACE}"
        if if_absent:
            statement += " WHERE keys.expires <= ?"
            params.append(self._clock.time())
        return self._database.run(statement, params) > 0

    def swap(
        self, key: str, expected: bytes | None, value: bytes | None, ttl: float | None
    ) -> bool:
        if expected is None:
            if value is None:
                return self.get(key) is None
            return self.set(key, value, ttl, if_absent=True)
        where = f"WHERE key = ? AND value = ? AND {_LIVE}"
        params = (key, expected, self._clock.time())
        if value is None:
            return self._database.run(f"DELETE FROM keys {where}", params) > 0
        change = f"UPDATE keys SET value = ?, expires = ? {where}"
        return self._database.run(change, (value, self._end(ttl), *params)) > 0

    def delete(self, key: str) -> bool:
        statement = f"DELETE FROM keys WHERE key = ? AND {_LIVE}"
        return self._database.run(statement, (key, self._clock.time())) > 0

    def increment(self, key: str, by: int, ttl: float | None) -> int:
        select = f"SELECT value, expires FROM keys WHERE key = ? AND {_LIVE}"

        def work(db: sqlite3.Connection) -> int:
            row = db.execute(select, (key, self._clock.time())).fetchone()
            value, end = (b"0", self._end(ttl)) if row is None else row
            total = added(key, value, by)
            db.execute(f"{_SET} {_REPLACE}", (key, b"%d" % total, end))
            return total

        return self._database.write(work)

    def ttl(self, key: str) -> float | None:
        row: tuple[float | None] | None = self._row("expires", key)
        if row is None:
            return None
        return math.inf if row[0] is None else row[0] - self._clock.time()

    def expire(self, key: str, ttl: float | None) -> bool:
        statement = f"UPDATE keys SET expires = ? WHERE key = ? AND {_LIVE}"
        return self._database.run(statement, (self._end(ttl), key, self._clock.time())) > 0

    def _change(self, steps: Sequence[tuple[str, Step]]) -> None:
        select = f"SELECT value FROM keys WHERE key = ? AND {_LIVE}"

        def work(db: sqlite3.Connection) -> None:
            now = self._clock.time()
            for key, step in steps:
                row = db.execute(select, (key, now)).fetchone()
                value, ttl = step(None if row is None else row[0], now)
                if row is not None and value == row[0]:
                    continue
                if value is not None:
                    db.execute(f"{_SET} {_REPLACE}", (key, value, self._end(ttl)))
                elif row is not None:
                    db.execute("DELETE FROM keys WHERE key = ?", (key,))

        self._database.write(work)

    def acquire(self, name: str, token: str, ttl: float) -> Lease:
        # Who finds the lock held, as most who wait do, need not lock the file.
        held = self.holder(name)
        if held is not None:
            return held

        def work(db: sqlite3.Connection) -> Lease:
            now = self._clock.time()
            held = _lease(db, name, now)
            if held is not None:
                return held
            (last,) = db.execute(_LAST_FENCE).fetchone() or (0,)
            fence = next_fence(last, now)
            db.execute(_TAKE, (fence, name, token, now + ttl))
            return Lease(token, fence, ttl)

        return self._database.write(work)

    def renew(self, name: str, token: str, ttl: float) -> bool:
        now = self._clock.time()
        statement = f"UPDATE locks SET expires = ? WHERE {_HELD}"
        return self._changed(statement, (now + ttl, name, token, now), name)

    def release(self, name: str, token: str) -> bool:
        params = (name, token, self._clock.time())
        return self._changed(f"DELETE FROM locks WHERE {_HELD}", params, name)

    def holder(self, name: str) -> Lease | None:
        now = self._clock.time()
        return self._database.read(lambda db: _lease(db, name, now))

    def watch(self, name: str) -> Watch:
        return _SQLiteWatch(self._database, self._clock, name)

    def _row(self, column: str, key: str) -> Any:
        statement = f"SELECT {column} FROM keys WHERE key = ? AND {_LIVE}"
        params = (key, self._clock.time())
        return self._database.read(lambda db: db.execute(statement, params).fetchone())

    def _end(self, ttl: float | None) -> float | None:
        return None if ttl is None else self._clock.time() + ttl

    def _changed(self, statement: str, params: tuple[object, ...], name: str) -> bool:
        changed = self._database.run(statement, params) > 0
        if changed:
            self._bell.ring(LOCKS, (name,))
        return changed


def _lease(db: sqlite3.Connection, name: str, now: float) -> Lease | None:
    row = db.execute(_LEASE, (name, now)).fetchone()
    return None if row is None else Lease(row[0], row[1], row[2] - now)


class _SQLiteWatch(Watch):
    def __init__(self, database: Database, clock: Clock, name: str) -> None:
        self._clock = clock
        self._names = (name,)
        self._waiter = Waiter(database, LOCKS)
        self._waiter.listen(self._names)

    def wait(self, seconds: float) -> None:
        self._waiter.wait(self._clock.bound(seconds))
        self._waiter.listen(self._names)

    def interrupt(self) -> None:
        self._waiter.interrupt()

    def close(self) -> None:
        self._waiter.close()
