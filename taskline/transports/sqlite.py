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
from taskline.sqlite import messages as rows
from taskline.sqlite import outbox
from taskline.sqlite.database import Database, as_json, insert
from taskline.sqlite.location import Location, locate
from taskline.sqlite.outcomes import store
from taskline.sqlite.schema import DELAYED, LEASED, READY
from taskline.sqlite.wake import MESSAGES, OUTCOMES, Bell, Waiter
from taskline.transports.base import Capabilities, QueueStats, StoredMessage, Transport

if TYPE_CHECKING:
    from typing_extensions import Self

    from taskline.backends.base import Backend

RECHECK = 1.0
"""Seconds after which a waiter looks into the file though nothing woke it."""

_RECOVER = """
    UPDATE messages SET state = 0, at = sent, owner = '',
        lost = lost + (id IN (SELECT value FROM json_each(?)))
    WHERE state > 0 AND state = 2 AND at > 0 AND owner = ?
"""
# A row whose time has come is as good as ready. `at > 0` lets SQLite use the index on timers.
_STATS = """
    SELECT queue, 0, count(*), min(at) FROM messages WHERE state = 0 GROUP BY queue
    UNION ALL
    SELECT queue, iif(at <= ?, 0, state), count(*), min(iif(state = 1, at, sent))
    FROM messages WHERE state > 0 AND at > 0 GROUP BY 1, 2
    UNION ALL
    SELECT queue, 3, count(*), NULL FROM dead GROUP BY queue
"""
_PEEK = """
    SELECT id, shown.state, shown.due, deliveries, CAST(frame AS BLOB) FROM (
        SELECT * FROM (
            SELECT seq, 0 AS state, NULL AS due, priority
            FROM messages WHERE queue = :queue AND state = 0
            ORDER BY priority, seq LIMIT :limit + :offset)
        UNION ALL
        SELECT seq, 0, NULL, priority
        FROM messages WHERE state > 0 AND at > 0 AND at <= :now AND queue = :queue
        UNION ALL
        SELECT seq, state, at, 0 FROM messages WHERE state > 0 AND at > :now AND queue = :queue
        ORDER BY 3, 4, 1 LIMIT :limit OFFSET :offset) AS shown
    JOIN messages USING (seq) ORDER BY shown.due, shown.priority, seq
"""
_FREE = "(state < 2 OR at <= ?)"
_PURGE = """
    DELETE FROM messages WHERE seq IN (
        SELECT seq FROM messages WHERE queue = ? AND state = 0
        UNION ALL
        SELECT seq FROM messages WHERE state > 0 AND at > 0 AND queue = ?
            AND (state = 1 OR at <= ?))
"""
_INSERT_DEAD = "INSERT INTO dead (id, queue, deliveries, letter, frame) VALUES {rows}"
_IDS = "id IN (SELECT value FROM json_each(?))"

_STATE_NAMES = {READY: "ready", DELAYED: "delayed", LEASED: "leased"}
_STAT_NAMES = ("ready", "delayed", "leased", "dead")

_decode_letter = msgspec.json.Decoder(DeadLetter).decode


class SQLiteTransport(Transport):
    """One SQLite file; see the module's docstring."""

    scheme = "sqlite"
    capabilities = Capabilities(outbox="connection")

    def __init__(self, location: Location, clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__(clock)
        self.location = location
        self._database = Database(location, TransportError)
        self._bell = Bell(location.path)
        self._waiter = Waiter(self._database, MESSAGES)
        self._commits = outbox.Commits(self._database, self._bell)

    @classmethod
    def from_spec(cls, spec: Spec, clock: Clock) -> Self:
        """`sqlite:///file.db?durability=full&busy_timeout=SECONDS&shared=true`, or a mapping."""
        return cls(locate(spec), clock)

    def send(self, messages: Sequence[Message]) -> None:
        now = self.clock.time()
        if len(messages) == 1:
            (message,) = messages
            self._database.run(rows.INSERT_ONE, (*rows.row(message, now), message.header.id))
        elif messages:
            new = [rows.row(message, now) for message in messages]
            self._database.write(lambda db: rows.add(db, new))
        self._ring(messages, now)

    def send_within(self, transaction: Any, messages: Sequence[Message]) -> None:
        path = self.location.path
        if not messages:
            self._database.read(lambda db: None)  # there is a file, with our tables
            outbox.check(transaction, path)
            return
        now = self.clock.time()
        connection = outbox.check(transaction, path)
        outbox.add(connection, path, [rows.row(message, now) for message in messages])
        queues = _due_soon(messages, now)
        if queues:
            self._commits.expect(messages[-1].header.id, queues)

    def _ring(self, messages: Sequence[Message], now: float) -> None:
        queues = _due_soon(messages, now)
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
            timer, ready = self._database.read(lambda db: rows.look(db, names))
            left = RECHECK if timer is None else timer - clock.time()
            if ready or left <= 0:
                taken = self._claim(queues, limit, lease, consumer, promote=left <= 0)
                if taken:
                    waiter.interrupted()
                    return taken
            patience = until - clock.monotonic()
            if waiter.interrupted() or patience <= 0:
                return []
            if left > 0:
                waiter.wait(clock.bound(min(patience, left, RECHECK)))

    def _claim(
        self, queues: Sequence[str], limit: int, lease: float, consumer: str, promote: bool
    ) -> list[Delivery]:
        def work(db: sqlite3.Connection) -> list[Delivery]:
            now = self.clock.time()
            if promote:
                rows.promote(db, now)
            return rows.claim(db, queues, limit, now + lease, consumer)

        return self._database.write(work)

    def interrupt(self) -> None:
        self._waiter.interrupt()

    def ack(
        self, deliveries: Sequence[Delivery], outcomes: Sequence[Outcome] = ()
    ) -> list[Delivery]:
        def keep(db: sqlite3.Connection, held: Sequence[Delivery]) -> None:
            ids = {delivery.id for delivery in held}
            wanted = [outcome for outcome in outcomes if outcome.id in ids]
            store(db, wanted, self.clock.time())

        lost = self._settle(deliveries, rows.DELETE, (), keep if outcomes else None)
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
            lost = self._settle(deliveries, rows.DELAY, (self.clock.time() + delay,))
        else:
            lost = self._settle(deliveries, rows.RELEASE)
        if delay <= RECHECK:
            self._bell.ring(MESSAGES, {delivery.queue for delivery in deliveries})
        return lost

    def replace(self, pairs: Sequence[tuple[Delivery, Message]]) -> list[Delivery]:
        now = self.clock.time()

        def succeed(db: sqlite3.Connection, held: Sequence[Delivery]) -> None:
            there = {delivery.receipt for delivery in held}
            rows.add(
                db,
                (
                    rows.row(message, now, delivery.deliveries)
                    for delivery, message in pairs
                    if delivery.receipt in there
                ),
            )

        lost = self._settle([delivery for delivery, _ in pairs], rows.DELETE, (), succeed)
        self._ring([message for _, message in pairs], now)
        return lost

    def extend(self, deliveries: Sequence[Delivery], lease: float) -> list[Delivery]:
        return self._settle(deliveries, rows.EXTEND, (self.clock.time() + lease,))

    def bury(self, burials: Sequence[tuple[Delivery, DeadLetter]]) -> list[Delivery]:
        def lay(db: sqlite3.Connection, held: Sequence[Delivery]) -> None:
            there = {delivery.receipt for delivery in held}
            letters = {
                letter.id: (delivery.deliveries, letter)
                for delivery, letter in burials
                if delivery.receipt in there
            }
            db.execute(f"DELETE FROM dead WHERE {_IDS}", (as_json(letters),))
            params: list[Any] = []
            for key, (count, letter) in letters.items():
                bare = msgspec.structs.replace(letter, frame=b"")
                params += (key, letter.queue, count, msgspec.json.encode(bare), letter.frame)
            insert(db, _INSERT_DEAD, 5, params)

        return self._settle([delivery for delivery, _ in burials], rows.DELETE, (), lay)

    def _settle(
        self,
        deliveries: Sequence[Delivery],
        change: str,
        params: Sequence[Any] = (),
        then: Callable[[sqlite3.Connection, Sequence[Delivery]], None] | None = None,
    ) -> list[Delivery]:
        """Change the rows of those deliveries that are held, `then` do more; returns the others."""

        def work(db: sqlite3.Connection, all_held: bool) -> list[Delivery]:
            held, lost = (deliveries, []) if all_held else rows.held_and_lost(db, deliveries)
            rows.change(db, held, change, params)
            if then is not None:
                then(db, held)
            return lost

        if not deliveries:
            return []
        try:
            return self._database.write(lambda db: work(db, all_held=True))
        except rows.NotHeld:
            return self._database.write(lambda db: work(db, all_held=False))

    def recover(self, consumer: str, started: Collection[str]) -> int:
        recovered = self._database.run(_RECOVER, (as_json(started), consumer))
        if recovered:
            self._bell.ring(MESSAGES)
        return recovered

    def stats(self, queues: Sequence[str] | None = None) -> list[QueueStats]:
        now = self.clock.time()
        counts = self._database.read(lambda db: db.execute(_STATS, (now,)).fetchall())
        found: dict[str, QueueStats] = {name: QueueStats(queue=name) for name in queues or ()}
        for queue, state, n, since in counts:
            if queues is not None and queue not in found:
                continue
            stats = found.setdefault(queue, QueueStats(queue=queue))
            name = _STAT_NAMES[state]
            setattr(stats, name, getattr(stats, name) + n)
            if state == READY:
                stats.oldest = max(now - since, stats.oldest or 0.0)
        return [found[name] for name in sorted(found)]

    def peek(self, queue: str, limit: int = 10, offset: int = 0) -> list[StoredMessage]:
        params = {"queue": queue, "now": self.clock.time(), "limit": limit, "offset": offset}
        found = self._database.read(lambda db: db.execute(_PEEK, params).fetchall())
        return [
            StoredMessage(
                id=key,
                queue=queue,
                state=_STATE_NAMES[state],
                due=due,
                deliveries=deliveries,
                frame=frame,
            )
            for key, state, due, deliveries, frame in found
        ]

    def purge(self, queue: str) -> int:
        return self._database.run(_PURGE, (queue, queue, self.clock.time()))

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
        found = self._database.read(lambda db: db.execute(statement, params).fetchall())
        return [
            msgspec.structs.replace(_decode_letter(letter), frame=frame) for letter, frame in found
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
            rows.add(db, (rows.row(wanted[key], now, counts[key]) for key in requeued))
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
        self._commits.close()
        self._database.close()
        self._waiter.close()


def _due_soon(messages: Sequence[Message], now: float) -> set[str]:
    """The queues to wake: waiters look by themselves before a message that is due later."""
    soon = now + RECHECK
    return {
        message.header.queue
        for message in messages
        if message.header.eta is None or message.header.eta <= soon
    }
