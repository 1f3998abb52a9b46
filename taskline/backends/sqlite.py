"""Outcomes in one SQLite file, for many processes of one machine."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from taskline.backends.base import Backend, Revocation
from taskline.backends.keys import KeyStore
from taskline.backends.sqlite_keys import SQLiteKeys
from taskline.clock import SYSTEM_CLOCK, Clock
from taskline.errors import BackendError
from taskline.message import FINAL_STATES, Outcome
from taskline.registry import Spec
from taskline.sqlite.database import Database, as_json, insert
from taskline.sqlite.location import Location, locate
from taskline.sqlite.outcomes import store
from taskline.sqlite.wake import OUTCOMES, Bell, Waiter

if TYPE_CHECKING:
    from typing_extensions import Self

RECHECK = 1.0
"""Seconds after which a waiter looks into the file though nothing woke it."""

_SWEEP_LIMIT = 1000
"""Rows that one upkeep deletes from a table at most."""

_IDS = "id IN (SELECT value FROM json_each(?))"
_LIVE = "(expires IS NULL OR expires > ?)"
_FINAL = "state IN ({})".format(", ".join(f"'{state}'" for state in sorted(FINAL_STATES)))
_FETCH = f"SELECT id, state, sent, deliveries, ttl, frame FROM outcomes WHERE {_IDS} AND {_LIVE}"
_NEWER = f"SELECT id FROM outcomes WHERE seq > ? AND {_FINAL}"
_ENDED = """
    SELECT EXISTS (SELECT 1 FROM outcomes WHERE expires <= ?)
        OR EXISTS (SELECT 1 FROM revocations WHERE expires <= ?)
        OR EXISTS (SELECT 1 FROM counters WHERE expires <= ?)
        OR EXISTS (SELECT 1 FROM keys WHERE expires <= ?)
        OR EXISTS (SELECT 1 FROM locks WHERE expires <= ?)
"""


class SQLiteBackend(Backend):
    """One SQLite file; it may be the transport's."""

    scheme = "sqlite"

    def __init__(self, location: Location, clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__(clock)
        self.location = location
        self._database = Database(location, BackendError)
        self._bell = Bell(location.path)
        self._waiter = Waiter(self._database, OUTCOMES)
        self._keys = SQLiteKeys(self._database, self._bell, clock)
        self._cursor = 0
        self._watched: set[str] = set()
        """Ids that were not final when the outcomes up to the cursor were read."""

    @classmethod
    def from_spec(cls, spec: Spec, clock: Clock) -> Self:
        """`sqlite:///file.db?durability=normal|full&busy_timeout=SECONDS`, or a mapping."""
        return cls(locate(spec), clock)

    def store(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        if not outcomes:
            return []
        now = self.clock.time()
        refused = self._database.write(lambda db: store(db, outcomes, now))
        self._bell.ring(OUTCOMES)
        return refused

    def fetch(self, ids: Collection[str]) -> dict[str, Outcome]:
        return self._fetch(_FETCH, ids)

    def _fetch(self, statement: str, ids: Collection[str]) -> dict[str, Outcome]:
        params = (as_json(ids), self.clock.time())
        rows = self._database.read(lambda db: db.execute(statement, params).fetchall())
        return {row[0]: Outcome(*row) for row in rows}

    def wait(self, ids: Collection[str], timeout: float) -> dict[str, Outcome]:
        clock, waiter = self.clock, self._waiter
        until = clock.monotonic() + timeout
        wanted = set(ids)
        while True:
            waiter.listen()
            found = self._arrived(wanted)
            left = until - clock.monotonic()
            if found or waiter.interrupted() or left <= 0:
                return found
            waiter.wait(clock.bound(min(left, RECHECK)))

    def _arrived(self, wanted: set[str]) -> dict[str, Outcome]:
        """Which of the wanted ids are final.

        Those that an earlier call did not find are looked for among what was
        stored since, so that waiting for many costs no look-up of each at each wake.
        """
        newest, candidates = self._database.read(lambda db: self._candidates(db, wanted))
        found = self._fetch(f"{_FETCH} AND {_FINAL}", candidates) if candidates else {}
        self._cursor = newest
        self._watched = wanted - found.keys()
        return found

    def _candidates(self, db: sqlite3.Connection, wanted: set[str]) -> tuple[int, set[str]]:
        # The cursor is read first: what is stored in between is then seen twice, not missed.
        newest = db.execute("SELECT max(seq) FROM outcomes").fetchone()[0] or 0
        newest = max(newest, self._cursor)
        unknown = wanted - self._watched
        if len(unknown) == len(wanted) or newest - self._cursor > len(wanted) + 1000:
            return newest, wanted
        rows = db.execute(_NEWER, (self._cursor,)).fetchall()
        return newest, unknown.union(key for (key,) in rows if key in wanted)

    def interrupt(self) -> None:
        self._waiter.interrupt()

    def forget(self, ids: Sequence[str]) -> None:
        self._database.run(f"DELETE FROM outcomes WHERE {_IDS}", (as_json(ids),))

    def expire(self, ids: Sequence[str], ttl: float | None) -> None:
        end = None if ttl is None else self.clock.time() + ttl
        self._database.run(
            f"UPDATE outcomes SET expires = ? WHERE {_IDS} AND {_LIVE}",
            (end, as_json(ids), self.clock.time()),
        )

    def revoke(self, revocations: Sequence[Revocation], ttl: float) -> None:
        end = self.clock.time() + ttl
        params: list[Any] = []
        for revocation in revocations:
            params += (revocation.id, revocation.terminate, end)
        statement = "INSERT INTO revocations (id, terminate, expires) VALUES {rows}"
        self._database.write(lambda db: insert(db, statement, 3, params))

    def revoked(self, after: int) -> tuple[int, list[Revocation]]:
        statement = "SELECT seq, id, terminate, expires FROM revocations WHERE seq > ? ORDER BY seq"
        rows = self._database.read(lambda db: db.execute(statement, (after,)).fetchall())
        now = self.clock.time()
        newer = [Revocation(key, bool(hard)) for _, key, hard, end in rows if end > now]
        return rows[-1][0] if rows else after, newer

    def count(self, key: str, member: str, ttl: float) -> int:
        return self.count_all({key: [member]}, ttl)[key]

    def count_all(self, members: Mapping[str, Sequence[str]], ttl: float) -> dict[str, int]:
        now = self.clock.time()

        def work(db: sqlite3.Connection) -> dict[str, int]:
            return {key: self._count(db, key, group, now, ttl) for key, group in members.items()}

        return self._database.write(work)

    def _count(
        self, db: sqlite3.Connection, key: str, members: Sequence[str], now: float, ttl: float
    ) -> int:
        ended = db.execute("DELETE FROM counters WHERE key = ? AND expires <= ?", (key, now))
        if ended.rowcount:
            db.execute("DELETE FROM members WHERE key = ?", (key,))
        added = db.execute(
            "INSERT OR IGNORE INTO members SELECT ?, value FROM json_each(?)",
            (key, as_json(members)),
        ).rowcount
        db.execute(
            "INSERT INTO counters VALUES (?, ?, ?) ON CONFLICT (key) "
            "DO UPDATE SET size = size + excluded.size, expires = excluded.expires",
            (key, added, now + ttl),
        )
        (size,) = db.execute("SELECT size FROM counters WHERE key = ?", (key,)).fetchone()
        return int(size)

    def keys(self) -> KeyStore:
        return self._keys

    def ping(self) -> None:
        self._database.ping()

    def info(self) -> dict[str, Any]:
        waking = "poll" if self._waiter.polls else "fifo"
        return {"backend": self.scheme, **self._database.info(), "waking": waking}

    def maintain(self) -> None:
        """Delete what has expired, a bounded part of it at a time."""
        now = self.clock.time()
        if self._database.read(lambda db: db.execute(_ENDED, (now,) * 5).fetchone()[0]):
            self._database.write(lambda db: self._sweep(db, now))
        self._database.maintain()

    def _sweep(self, db: sqlite3.Connection, now: float) -> None:
        for table in ("outcomes", "revocations", "keys", "locks"):
            ended = f"SELECT rowid FROM {table} WHERE expires <= ? ORDER BY expires LIMIT ?"
            db.execute(f"DELETE FROM {table} WHERE rowid IN ({ended})", (now, _SWEEP_LIMIT))
        row = db.execute("SELECT key FROM counters WHERE expires <= ? LIMIT 1", (now,)).fetchone()
        if row is not None:
            some = "SELECT member FROM members WHERE key = ? LIMIT ?"
            delete = f"DELETE FROM members WHERE key = ? AND member IN ({some})"
            if db.execute(delete, (*row, *row, _SWEEP_LIMIT)).rowcount < _SWEEP_LIMIT:
                db.execute("DELETE FROM counters WHERE key = ?", row)

    def close(self) -> None:
        self._database.close()
        self._waiter.close()
