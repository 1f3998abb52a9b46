"""Messages in one SQLite file, for many processes of one machine.

A row is a message. Claims, acknowledgements and all else that workers do take a
batch in one short transaction. A receipt is the pair (`seq`, `deliveries`): `seq`
is never used twice and `deliveries` grows with each handing-over. When its time
is over a lease still holds until the next `receive` of anybody ends it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from taskline.clock import SYSTEM_CLOCK, Clock
from taskline.errors import TransportError
from taskline.message import DeadLetter, Delivery, Message, Outcome
from taskline.registry import Spec
from taskline.sqlite.database import Database, as_json, insert
from taskline.sqlite.location import Location, locate
from taskline.sqlite.outcomes import store
from taskline.sqlite.schema import DELAYED, LEASED, READY
from taskline.sqlite.wake import MESSAGES, OUTCOMES, Bell, Waiter
from taskline.transports.base import QueueStats, StoredMessage, Transport

if TYPE_CHECKING:
    from typing_extensions import Self

    from taskline.backends.base import Backend

RECHECK = 1.0
"""Seconds after which a waiter looks into the file though nothing woke it."""

_CLAIM_LIMIT = 1000
_PROMOTE_LIMIT = 5000

_INSERT = """
    INSERT INTO messages (id, queue, priority, state, at, deliveries, sent, frame)
"""
# A message whose id has a dead letter goes on counting deliveries.
_ROW = "(?,?,?,?,?,max(?, coalesce((SELECT deliveries FROM dead WHERE id = ?), 0)),?,?)"
_NEW_ID = "ON CONFLICT (id) DO NOTHING"
_INSERT_ONE = f"{_INSERT} VALUES {_ROW} {_NEW_ID}"

_LOOK = """
    SELECT
        (SELECT min(at) FROM messages WHERE state > 0),
        EXISTS (SELECT 1 FROM messages WHERE state = 0
                AND queue IN (SELECT value FROM json_each(?)))
"""
_PROMOTE = f"""
    UPDATE messages SET state = 0, lost = lost + (state = 2), at = iif(state = 1, at, NULL)
    WHERE seq IN (SELECT seq FROM messages WHERE state > 0 AND at <= ?
                  ORDER BY at LIMIT {_PROMOTE_LIMIT})
"""
# All rows as one JSON text, because each row of its own is a step (see `insert`). JSON has no
# bytes, so frames are in hexadecimal; the large ones are read one by one.
_CLAIM = """
    SELECT json_group_array(json_array(seq, id, deliveries, lost, frame)) FROM (
        SELECT seq, id, deliveries, lost, iif(length(frame) <= 4096, hex(frame), NULL) AS frame
        FROM messages WHERE queue = ? AND state = 0 ORDER BY priority, seq LIMIT ?)
"""
_LEASE = """
    UPDATE messages SET state = 2, at = ?, owner = ?, deliveries = deliveries + 1
    WHERE seq IN (SELECT value FROM json_each(?))
"""
_HELD = "seq IN (SELECT value FROM json_each(?)) AND deliveries = ? AND state = 2"
_DELETE = "DELETE FROM messages"
_RECOVER = """
    UPDATE messages SET state = 0, at = NULL, owner = '',
        lost = lost + (id IN (SELECT value FROM json_each(?)))
    WHERE state > 0 AND at > 0 AND state = 2 AND owner = ?
"""
# `due` is when a message that is not ready will be; a row whose time has come is as good as ready.
_STATS = """
    SELECT queue, state, n, (SELECT iif(state = 2, sent, coalesce(at, sent)) FROM messages
                             WHERE seq = first)
    FROM (
        SELECT queue, 0 AS state, count(*) AS n, min(seq) AS first
        FROM messages WHERE state = 0 GROUP BY queue, priority
        UNION ALL
        SELECT queue, iif(at <= ?1, 0, state), count(*), min(seq)
        FROM messages WHERE state > 0 AND at > 0 GROUP BY 1, 2
        UNION ALL
        SELECT queue, 3, count(*), NULL FROM dead GROUP BY queue)
"""
_PEEK = """
    SELECT id, state, at, deliveries, frame FROM (
        SELECT * FROM (
            SELECT 0 AS rank, 0 AS due, priority, seq, id, 0 AS state, NULL AS at, deliveries, frame
            FROM messages WHERE queue = ?1 AND state = 0 ORDER BY priority, seq LIMIT ?3 + ?4)
        UNION ALL
        SELECT at > ?2, iif(at > ?2, at, 0), priority, seq, id, iif(at > ?2, state, 0),
            iif(at > ?2, at, NULL), deliveries, frame
        FROM messages WHERE state > 0 AND at > 0 AND queue = ?1)
    ORDER BY rank, due, priority, seq LIMIT ?3 OFFSET ?4
"""
_FREE = "(state < 2 OR at <= ?)"
_PURGE = """
    DELETE FROM messages WHERE seq IN (
        SELECT seq FROM messages WHERE queue = ?1 AND state = 0
        UNION ALL
        SELECT seq FROM messages WHERE state > 0 AND at > 0 AND queue = ?1
            AND (state = 1 OR at <= ?2))
"""
_INSERT_DEAD = "INSERT INTO dead (id, queue, deliveries, letter, frame)"
_IDS = "id IN (SELECT value FROM json_each(?))"

_STATE_NAMES = {READY: "ready", DELAYED: "delayed", LEASED: "leased"}
_STAT_NAMES = ("ready", "delayed", "leased", "dead")

_decode_claim = msgspec.json.Decoder(list[tuple[int, str, int, int, str | None]]).decode
_decode_letter = msgspec.json.Decoder(DeadLetter).decode


class _Lost(Exception):
    """Not all of a batch was held: it is rolled back and done anew, with what is held."""


class SQLiteTransport(Transport):
    """One SQLite file; see the module's docstring."""

    scheme = "sqlite"

    def __init__(self, location: Location, clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__(clock)
        self.location = location
        self._database = Database(location, TransportError)
        self._bell = Bell(location.path)
        self._waiter = Waiter(self._database, MESSAGES)

    @classmethod
    def from_spec(cls, spec: Spec, clock: Clock) -> Self:
        """`sqlite:///file.db?durability=normal|full&busy_timeout=SECONDS`, or a mapping."""
        return cls(locate(spec), clock)

    def send(self, messages: Sequence[Message]) -> None:
        now = self.clock.time()
        if len(messages) == 1:
            self._database.run(_INSERT_ONE, _row(messages[0], now))
        elif messages:
            params = _rows(messages, now)
            self._database.write(lambda db: insert(db, _INSERT, _ROW, params, _NEW_ID))
        self._ring(messages, now)

    def _ring(self, messages: Sequence[Message], now: float) -> None:
        # Waiters look by themselves before a message that is not due soon.
        soon = now + RECHECK
        queues = {
            message.header.queue
            for message in messages
            if message.header.eta is None or message.header.eta <= soon
        }
        if queues:
            self._bell.ring(MESSAGES, queues)

    def receive(
        self, queues: Sequence[str], limit: int, lease: float, wait: float, consumer: str
    ) -> list[Delivery]:
        clock, waiter = self.clock, self._waiter
        until = clock.monotonic() + wait
        names = as_json(queues)
        while True:
            if wait > 0:
                waiter.listen(queues)
            now = clock.time()
            next_timer, ready = self._database.read(
                lambda db: db.execute(_LOOK, (names,)).fetchone()
            )
            due = next_timer is not None and next_timer <= now
            if ready or due:
                taken = self._database.write(
                    lambda db: self._claim(db, queues, min(limit, _CLAIM_LIMIT), lease, consumer)
                )
                if taken:
                    waiter.interrupted()
                    return taken
            left = until - clock.monotonic()
            if waiter.interrupted() or left <= 0:
                return []
            if not due:
                timer = RECHECK if next_timer is None else next_timer - now
                waiter.wait(clock.bound(min(left, timer, RECHECK)))

    def _claim(
        self, db: sqlite3.Connection, queues: Sequence[str], limit: int, lease: float, consumer: str
    ) -> list[Delivery]:
        now = self.clock.time()
        db.execute(_PROMOTE, (now,))
        taken: list[Delivery] = []
        for queue in queues:
            if len(taken) >= limit:
                break
            (text,) = db.execute(_CLAIM, (queue, limit - len(taken))).fetchone()
            for seq, key, deliveries, lost, frame in _decode_claim(text):
                if frame is None:
                    read = db.execute("SELECT frame FROM messages WHERE seq = ?", (seq,))
                    content = read.fetchone()[0]
                else:
                    content = bytes.fromhex(frame)
                receipt = (seq, deliveries + 1)
                taken.append(Delivery(key, queue, content, deliveries + 1, lost, receipt))
        if taken:
            seqs = as_json(delivery.receipt[0] for delivery in taken)
            db.execute(_LEASE, (now + lease, consumer, seqs))
        return taken

    def interrupt(self) -> None:
        self._waiter.interrupt()

    def ack(
        self, deliveries: Sequence[Delivery], outcomes: Sequence[Outcome] = ()
    ) -> list[Delivery]:
        def keep(db: sqlite3.Connection, held: Sequence[Delivery]) -> None:
            ids = {delivery.id for delivery in held}
            wanted = [outcome for outcome in outcomes if outcome.id in ids]
            store(db, wanted, self.clock.time())

        lost = self._settle(deliveries, _DELETE, (), keep if outcomes else None)
        if outcomes:
            self._bell.ring(OUTCOMES)
        return lost

    def shares(self, backend: Backend) -> bool:
        """Whether the backend's file is this one, and no more durable than this one is opened."""
        other = getattr(backend, "location", None)
        return (
            isinstance(other, Location)
            and other.path == self.location.path
            and (other.durability == "normal" or self.location.durability == "full")
        )

    def release(self, deliveries: Sequence[Delivery], delay: float = 0.0) -> list[Delivery]:
        if delay > 0:
            state, at = DELAYED, self.clock.time() + delay
        else:
            state, at = READY, None
        change = "UPDATE messages SET state = ?, at = ?, owner = ''"
        lost = self._settle(deliveries, change, (state, at))
        if delay <= RECHECK:
            self._bell.ring(MESSAGES, {delivery.queue for delivery in deliveries})
        return lost

    def replace(self, pairs: Sequence[tuple[Delivery, Message]]) -> list[Delivery]:
        now = self.clock.time()

        def succeed(db: sqlite3.Connection, held: Sequence[Delivery]) -> None:
            params: list[Any] = []
            there = {delivery.receipt for delivery in held}
            for delivery, message in pairs:
                if delivery.receipt in there:
                    params += _row(message, now, delivery.receipt[1])
            insert(db, _INSERT, _ROW, params, _NEW_ID)

        lost = self._settle([delivery for delivery, _ in pairs], _DELETE, (), succeed)
        self._ring([message for _, message in pairs], now)
        return lost

    def extend(self, deliveries: Sequence[Delivery], lease: float) -> list[Delivery]:
        change = "UPDATE messages SET at = ?"
        return self._settle(deliveries, change, (self.clock.time() + lease,))

    def bury(self, burials: Sequence[tuple[Delivery, DeadLetter]]) -> list[Delivery]:
        def lay(db: sqlite3.Connection, held: Sequence[Delivery]) -> None:
            there = {delivery.receipt for delivery in held}
            rows = {
                letter.id: (delivery.receipt[1], letter)
                for delivery, letter in burials
                if delivery.receipt in there
            }
            db.execute(f"DELETE FROM dead WHERE {_IDS}", (as_json(rows),))
            params: list[Any] = []
            for key, (count, letter) in rows.items():
                bare = msgspec.structs.replace(letter, frame=b"")
                params += (key, letter.queue, count, msgspec.json.encode(bare), letter.frame)
            insert(db, _INSERT_DEAD, "(?,?,?,?,?)", params)

        return self._settle([delivery for delivery, _ in burials], _DELETE, (), lay)

    def _settle(
        self,
        deliveries: Sequence[Delivery],
        change: str,
        params: Sequence[Any] = (),
        then: Callable[[sqlite3.Connection, Sequence[Delivery]], None] | None = None,
    ) -> list[Delivery]:
        """Change the rows of those deliveries that are held, `then` do more; returns the others."""
        if not deliveries:
            return []
        try:
            self._database.write(lambda db: self._change(db, deliveries, change, params, then))
            return []
        except _Lost:
            return self._database.write(
                lambda db: self._change_held(db, deliveries, change, params, then)
            )

    def _change(
        self,
        db: sqlite3.Connection,
        deliveries: Sequence[Delivery],
        change: str,
        params: Sequence[Any],
        then: Callable[[sqlite3.Connection, Sequence[Delivery]], None] | None,
    ) -> None:
        statement = f"{change} WHERE {_HELD}"
        for count, seqs in _by_count(deliveries).items():
            changed = db.execute(statement, (*params, as_json(seqs), count)).rowcount
            if changed < len(seqs):
                raise _Lost
        if then is not None:
            then(db, deliveries)

    def _change_held(
        self,
        db: sqlite3.Connection,
        deliveries: Sequence[Delivery],
        change: str,
        params: Sequence[Any],
        then: Callable[[sqlite3.Connection, Sequence[Delivery]], None] | None,
    ) -> list[Delivery]:
        there: set[tuple[int, int]] = set()
        for count, seqs in _by_count(deliveries).items():
            rows = db.execute(f"SELECT seq FROM messages WHERE {_HELD}", (as_json(seqs), count))
            there.update((seq, count) for (seq,) in rows)
        held: list[Delivery] = []
        lost: list[Delivery] = []
        for delivery in deliveries:
            (held if delivery.receipt in there else lost).append(delivery)
        self._change(db, held, change, params, then)
        return lost

    def recover(self, consumer: str, started: Collection[str]) -> int:
        recovered = self._database.run(_RECOVER, (as_json(started), consumer))
        if recovered:
            self._bell.ring(MESSAGES)
        return recovered

    def stats(self, queues: Sequence[str] | None = None) -> list[QueueStats]:
        now = self.clock.time()
        rows = self._database.read(lambda db: db.execute(_STATS, (now,)).fetchall())
        found: dict[str, QueueStats] = {name: QueueStats(queue=name) for name in queues or ()}
        for queue, state, n, since in rows:
            if queues is not None and queue not in found:
                continue
            stats = found.setdefault(queue, QueueStats(queue=queue))
            name = _STAT_NAMES[state]
            setattr(stats, name, getattr(stats, name) + n)
            if state == READY:
                stats.oldest = max(now - since, stats.oldest or 0.0)
        return [found[name] for name in sorted(found)]

    def peek(self, queue: str, limit: int = 10, offset: int = 0) -> list[StoredMessage]:
        params = (queue, self.clock.time(), limit, offset)
        rows = self._database.read(lambda db: db.execute(_PEEK, params).fetchall())
        return [
            StoredMessage(
                id=key,
                queue=queue,
                state=_STATE_NAMES[state],
                due=due,
                deliveries=deliveries,
                frame=frame,
            )
            for key, state, due, deliveries, frame in rows
        ]

    def purge(self, queue: str) -> int:
        return self._database.run(_PURGE, (queue, self.clock.time()))

    def delete(self, ids: Sequence[str]) -> list[str]:
        statement = f"DELETE FROM messages WHERE {_IDS} AND {_FREE} RETURNING id"
        params = (as_json(ids), self.clock.time())
        return self._database.write(
            lambda db: [key for (key,) in db.execute(statement, params).fetchall()]
        )

    def dead_letters(
        self, queue: str | None = None, limit: int = 100, offset: int = 0
    ) -> list[DeadLetter]:
        where = "" if queue is None else "WHERE queue = ?"
        params = (limit, offset) if queue is None else (queue, limit, offset)
        return self._letters(f"{where} ORDER BY seq DESC LIMIT ? OFFSET ?", params)

    def dead_letter(self, id: str) -> DeadLetter | None:
        found = self._letters("WHERE id = ?", (id,))
        return found[0] if found else None

    def _letters(self, which: str, params: Sequence[Any]) -> list[DeadLetter]:
        statement = f"SELECT letter, frame FROM dead {which}"
        rows = self._database.read(lambda db: db.execute(statement, params).fetchall())
        return [
            msgspec.structs.replace(_decode_letter(letter), frame=frame) for letter, frame in rows
        ]

    def requeue(self, messages: Sequence[Message]) -> list[str]:
        now = self.clock.time()
        wanted = {message.header.id: message for message in messages}
        ids = as_json(wanted)

        def work(db: sqlite3.Connection) -> list[str]:
            statement = f"SELECT id, deliveries FROM dead WHERE {_IDS}"
            counts: dict[str, int] = dict(db.execute(statement, (ids,)).fetchall())
            db.execute(f"DELETE FROM dead WHERE {_IDS}", (ids,))
            requeued = [key for key in wanted if key in counts]
            params: list[Any] = []
            for key in requeued:
                params += _row(wanted[key], now, counts[key])
            insert(db, _INSERT, _ROW, params, _NEW_ID)
            return requeued

        requeued = self._database.write(work)
        self._ring([wanted[key] for key in requeued], now)
        return requeued

    def purge_dead(self, ids: Sequence[str]) -> int:
        return self._database.run(f"DELETE FROM dead WHERE {_IDS}", (as_json(ids),))

    def ping(self) -> None:
        self._database.ping()

    def info(self) -> dict[str, Any]:
        waking = "poll" if self._waiter.polls else "fifo"
        return {"transport": self.scheme, **self._database.info(), "waking": waking}

    def maintain(self) -> None:
        """Copy the write-ahead log into the file, so that senders need not."""
        self._database.maintain()

    def close(self) -> None:
        self._database.close()
        self._waiter.close()


def _row(message: Message, now: float, deliveries: int = 0) -> tuple[Any, ...]:
    """The parameters of `_ROW`."""
    header = message.header
    eta = header.eta
    if eta is None or eta <= now:
        state, eta = READY, None
    else:
        state = DELAYED
    deliveries = max(deliveries, header.deliveries)
    return (
        header.id, header.queue, -header.priority, state, eta, deliveries, header.id,
        header.sent, message.frame,
    )  # fmt: skip


def _rows(messages: Sequence[Message], now: float) -> list[Any]:
    params: list[Any] = []
    for message in messages:
        params += _row(message, now)
    return params


def _by_count(deliveries: Sequence[Delivery]) -> dict[int, set[int]]:
    """The receipts by how often their messages were handed over: mostly once."""
    groups: dict[int, set[int]] = {}
    for delivery in deliveries:
        seq, count = delivery.receipt
        groups.setdefault(count, set()).add(seq)
    return groups
