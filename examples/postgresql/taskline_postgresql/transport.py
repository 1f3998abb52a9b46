"""The transport `postgresql://user:password@host:port/database`.

A message is a row of `schema.sql`. Every call is one statement, and so happens
wholly or not at all. A receipt is (`seq`, `deliveries`). When its time is over a
lease still holds until the next `receive` of anybody ends it. Time is the
server's; a test's clock takes its place.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from taskline.clock import SYSTEM_CLOCK, Clock
from taskline.message import DeadLetter, Delivery, Message, Outcome
from taskline.registry import Spec, options_of
from taskline.transports.base import QueueStats, StoredMessage, Transport
from taskline_postgresql.database import Database, Listener, Location

if TYPE_CHECKING:
    from typing_extensions import Self

LOOK_EVERY = 1.0
"""Seconds after which one who waits looks though nothing woke it: timers end silently."""

NEW = """
    unnest(CAST(:ids AS text[]), CAST(:queues AS text[]), CAST(:priorities AS smallint[]),
           CAST(:etas AS float8[]), CAST(:sent AS float8[]), CAST(:counts AS integer[]),
           CAST(:frames AS bytea[])) WITH ORDINALITY
    AS new (id, queue, priority, eta, sent, deliveries, frame, place)"""
INSERT = """
    INSERT INTO taskline_messages (id, queue, priority, state, due, since, deliveries, frame)
    SELECT id, queue, priority, CAST(eta > taskline_time(:at) AS integer), eta,
           greatest(sent, eta), {count}, frame
    FROM {new} ORDER BY place ON CONFLICT (id) DO NOTHING"""
SEND = INSERT.format(new=NEW, count="deliveries")

CLAIM = "SELECT * FROM taskline_claim(CAST(:queues AS text[]), :most, :lease, :consumer, :at)"
NEXT_TIMER = """
    SELECT min(due) - taskline_time(:at) FROM unnest(CAST(:queues AS text[])) AS names (name)
    CROSS JOIN LATERAL (
        SELECT due FROM taskline_messages WHERE queue = name AND state > 0 ORDER BY due LIMIT 1
    ) AS timers"""

# What follows names the rows of the receipts that still hold.
HELD = """
    unnest(CAST(:seqs AS bigint[]), CAST(:tokens AS integer[])) AS held (seq, token)
    WHERE m.seq = held.seq AND m.deliveries = held.token AND m.state = 2"""
ACK = f"DELETE FROM taskline_messages AS m USING {HELD} RETURNING held.seq, token"
EXTEND = f"""
    UPDATE taskline_messages AS m SET due = taskline_time(:at) + :lease FROM {HELD}
    RETURNING held.seq, token"""
RELEASE = f"""
    UPDATE taskline_messages AS m
    SET state = CAST(CAST(:delay AS float8) > 0 AS integer),
        due = taskline_time(:at) + :delay, owner = '' FROM {HELD}
    RETURNING held.seq, token"""
REPLACE = f"""
    UPDATE taskline_messages AS m
    SET seq = nextval('taskline_messages_seq_seq'), queue = new.queue, priority = new.priority,
        state = CAST(new.eta > taskline_time(:at) AS integer), due = new.eta,
        since = greatest(new.sent, new.eta), owner = '', lost = 0, frame = new.frame
    FROM {NEW}
    JOIN unnest(CAST(:seqs AS bigint[]), CAST(:tokens AS integer[])) WITH ORDINALITY
        AS held (seq, token, place) USING (place)
    WHERE m.seq = held.seq AND m.deliveries = held.token AND m.state = 2
    RETURNING held.seq, token"""
BURY = """
    WITH gone AS (
        DELETE FROM taskline_messages AS m USING
            unnest(CAST(:queues AS text[]), CAST(:letters AS bytea[]), CAST(:frames AS bytea[]))
                WITH ORDINALITY AS last (queue, letter, frame, place)
            JOIN unnest(CAST(:seqs AS bigint[]), CAST(:tokens AS integer[])) WITH ORDINALITY
                AS held (seq, token, place) USING (place)
        WHERE m.seq = held.seq AND m.deliveries = held.token AND m.state = 2
        RETURNING m.seq, m.id, last.queue, m.deliveries, letter, last.frame, place
    ), dead AS (
        INSERT INTO taskline_dead (id, queue, deliveries, letter, frame)
        SELECT id, queue, deliveries, letter, frame FROM gone ORDER BY place
        ON CONFLICT (id) DO UPDATE SET (seq, queue, deliveries, letter, frame) =
            (excluded.seq, excluded.queue, excluded.deliveries, excluded.letter, excluded.frame)
    )
    SELECT seq, deliveries FROM gone"""
RECOVER = """
    UPDATE taskline_messages SET state = 0, owner = '',
        lost = lost + CAST(id = ANY(CAST(:started AS text[])) AS integer)
    WHERE state = 2 AND owner = :consumer RETURNING seq"""

STATS = """
    SELECT queue, count(*) FILTER (WHERE ready), count(*) FILTER (WHERE state = 1 AND NOT ready),
           count(*) FILTER (WHERE state = 2 AND NOT ready),
           taskline_time(:at) - min(since) FILTER (WHERE ready)
    FROM (SELECT *, state = 0 OR due <= taskline_time(:at) AS ready FROM taskline_messages) AS m
    WHERE CAST(:queues AS text[]) IS NULL OR queue = ANY(:queues) GROUP BY queue"""
DEAD_COUNTS = """
    SELECT queue, count(*) FROM taskline_dead
    WHERE CAST(:queues AS text[]) IS NULL OR queue = ANY(:queues) GROUP BY queue"""
PEEK = """
    SELECT id, CASE WHEN waits THEN state ELSE 0 END, due, deliveries, frame FROM (
        SELECT *, state > 0 AND due > taskline_time(:at) AS waits FROM taskline_messages
        WHERE queue = :queue
    ) AS m
    ORDER BY waits, CASE WHEN waits THEN due END, priority DESC, seq LIMIT :limit OFFSET :offset"""
FREE = "(state < 2 OR due <= taskline_time(:at))"
PURGE = f"DELETE FROM taskline_messages WHERE queue = :queue AND {FREE} RETURNING seq"
DELETE = f"""
    DELETE FROM taskline_messages WHERE id = ANY(CAST(:ids AS text[])) AND {FREE} RETURNING id"""

LETTERS = """
    SELECT letter, frame FROM taskline_dead
    WHERE CAST(:queue AS text) IS NULL OR queue = :queue
    ORDER BY seq DESC LIMIT :limit OFFSET :offset"""
LETTER = "SELECT letter, frame FROM taskline_dead WHERE id = :id"
RESEND = INSERT.format(
    new=f"{NEW} JOIN gone USING (id)", count="greatest(new.deliveries, gone.deliveries)"
)
REQUEUE = f"""
    WITH gone AS (
        DELETE FROM taskline_dead WHERE id = ANY(CAST(:ids AS text[])) RETURNING id, deliveries
    ), sent AS ({RESEND})
    SELECT id FROM gone"""
PURGE_DEAD = "DELETE FROM taskline_dead WHERE id = ANY(CAST(:ids AS text[])) RETURNING id"

_STATES = ("ready", "delayed", "leased")
_decode_letter = msgspec.json.Decoder(DeadLetter).decode


class PostgreSQLTransport(Transport):
    """Messages in two tables of a PostgreSQL database; see the module's docstring."""

    scheme = "postgresql"

    def __init__(self, location: Location, clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__(clock)
        self._database = Database(location)
        self._run = self._database.run
        self._listener = Listener(self._database)

    @classmethod
    def from_spec(cls, spec: Spec, clock: Clock) -> Self:
        """`postgresql://user:password@host:port/database?schema=NAME&tls=true`, or a mapping."""
        options = options_of(spec, rest="address", schema=str, tls=lambda text: text == "true")
        return cls(Location(**options), clock)

    def send(self, messages: Sequence[Message]) -> None:
        if messages:
            self._run(SEND, at=self._now(), **_columns(messages))

    def receive(
        self, queues: Sequence[str], limit: int, lease: float, wait: float, consumer: str
    ) -> list[Delivery]:
        clock, listener, names = self.clock, self._listener, list(queues)
        until = clock.monotonic() + wait
        while True:
            if wait > 0:
                listener.listen(names)
            rows = self._run(
                CLAIM, queues=names, most=limit, lease=lease, consumer=consumer, at=self._now()
            )
            if rows:
                listener.interrupted()
                return [
                    Delivery(key, queue, frame, deliveries, lost, (seq, deliveries))
                    for seq, key, queue, deliveries, lost, frame in rows
                ]
            patience = until - clock.monotonic()
            if listener.interrupted() or patience <= 0:
                return []
            ((timer,),) = self._run(NEXT_TIMER, queues=names, at=self._now())
            due = LOOK_EVERY if timer is None else min(timer, LOOK_EVERY)
            listener.wait(clock.bound(min(patience, due)))

    def interrupt(self) -> None:
        self._listener.interrupt()

    def ack(
        self, deliveries: Sequence[Delivery], outcomes: Sequence[Outcome] = ()
    ) -> list[Delivery]:
        return self._settle(ACK, deliveries)

    def release(self, deliveries: Sequence[Delivery], delay: float = 0.0) -> list[Delivery]:
        return self._settle(RELEASE, deliveries, delay=delay, at=self._now())

    def extend(self, deliveries: Sequence[Delivery], lease: float) -> list[Delivery]:
        return self._settle(EXTEND, deliveries, lease=lease, at=self._now())

    def replace(self, pairs: Sequence[tuple[Delivery, Message]]) -> list[Delivery]:
        successors = _columns([message for _, message in pairs])
        del successors["ids"], successors["counts"]
        held = [delivery for delivery, _ in pairs]
        return self._settle(
            REPLACE,
            held,
            ids=[each.id for each in held],
            counts=[each.deliveries for each in held],
            at=self._now(),
            **successors,
        )

    def bury(self, burials: Sequence[tuple[Delivery, DeadLetter]]) -> list[Delivery]:
        bare = (msgspec.structs.replace(letter, frame=b"") for _, letter in burials)
        return self._settle(
            BURY,
            [delivery for delivery, _ in burials],
            queues=[letter.queue for _, letter in burials],
            letters=[msgspec.json.encode(each) for each in bare],
            frames=[bytes(letter.frame) for _, letter in burials],
        )

    def _settle(self, sql: str, deliveries: Sequence[Delivery], **params: Any) -> list[Delivery]:
        """Change the rows of those deliveries that are held; returns the others."""
        if not deliveries:
            return []
        seqs = [delivery.receipt[0] for delivery in deliveries]
        tokens = [delivery.receipt[1] for delivery in deliveries]
        held = {tuple(row) for row in self._run(sql, seqs=seqs, tokens=tokens, **params)}
        return [delivery for delivery in deliveries if delivery.receipt not in held]

    def recover(self, consumer: str, started: Collection[str]) -> int:
        return len(self._run(RECOVER, consumer=consumer, started=list(started)))

    def stats(self, queues: Sequence[str] | None = None) -> list[QueueStats]:
        names = None if queues is None else list(queues)
        found = {name: QueueStats(queue=name) for name in names or ()}
        for queue, ready, delayed, leased, age in self._run(STATS, queues=names, at=self._now()):
            found[queue] = QueueStats(queue=queue, ready=ready, delayed=delayed, leased=leased)
            found[queue].oldest = None if age is None else max(0.0, age)
        for queue, dead in self._run(DEAD_COUNTS, queues=names):
            found.setdefault(queue, QueueStats(queue=queue)).dead = dead
        return [found[name] for name in sorted(found)]

    def peek(self, queue: str, limit: int = 10, offset: int = 0) -> list[StoredMessage]:
        rows = self._run(PEEK, queue=queue, limit=limit, offset=offset, at=self._now())
        return [
            StoredMessage(
                id=key,
                queue=queue,
                state=_STATES[state],
                due=due if state else None,
                deliveries=deliveries,
                frame=frame,
            )
            for key, state, due, deliveries, frame in rows
        ]

    def purge(self, queue: str) -> int:
        return len(self._run(PURGE, queue=queue, at=self._now()))

    def delete(self, ids: Sequence[str]) -> list[str]:
        return [key for (key,) in self._run(DELETE, ids=list(ids), at=self._now())]

    def dead_letters(
        self, queue: str | None = None, limit: int = 100, offset: int = 0
    ) -> list[DeadLetter]:
        return _letters(self._run(LETTERS, queue=queue, limit=limit, offset=offset))

    def dead_letter(self, id: str) -> DeadLetter | None:
        found = _letters(self._run(LETTER, id=id))
        return found[0] if found else None

    def requeue(self, messages: Sequence[Message]) -> list[str]:
        rows = self._run(REQUEUE, at=self._now(), **_columns(messages)) if messages else []
        return [key for (key,) in rows]

    def purge_dead(self, ids: Sequence[str]) -> int:
        return len(self._run(PURGE_DEAD, ids=list(ids)))

    def ping(self) -> None:
        """A number of the sequence is taken, which a server that only reads refuses."""
        self._run("SELECT nextval('taskline_messages_seq_seq')")

    def info(self) -> dict[str, Any]:
        ((version,),) = self._run("SELECT current_setting('server_version')")
        location = self._database.location
        return {
            "transport": self.scheme,
            "address": str(location),
            "version": version,
            "schema": location.schema,
        }

    def close(self) -> None:
        self._database.close()
        self._listener.close()

    def _now(self) -> float | None:
        """None for the server's own time; a test's clock tells its time instead."""
        return None if type(self.clock) is Clock else self.clock.time()


def _columns(messages: Sequence[Message]) -> dict[str, list[Any]]:
    headers = [message.header for message in messages]
    return {
        "ids": [header.id for header in headers],
        "queues": [header.queue for header in headers],
        "priorities": [header.priority for header in headers],
        "etas": [header.eta or 0.0 for header in headers],
        "sent": [header.sent for header in headers],
        "counts": [header.deliveries for header in headers],
        "frames": [bytes(message.frame) for message in messages],
    }


def _letters(rows: Iterable[Sequence[Any]]) -> list[DeadLetter]:
    return [msgspec.structs.replace(_decode_letter(row[0]), frame=row[1]) for row in rows]
