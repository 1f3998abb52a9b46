"""What a transaction does to the messages of the file: add, claim, and change what is held."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from taskline.message import Delivery, Message
from taskline.sqlite.database import as_json, insert
from taskline.sqlite.schema import DELAYED, READY

CLAIM_LIMIT = 1000
"""Messages in one claim at most."""
PROMOTE_LIMIT = 5000
"""Messages that one claim makes ready at most."""

DELETE = "DELETE FROM messages"
RELEASE = "UPDATE messages SET state = 0, at = sent, owner = ''"
DELAY = "UPDATE messages SET state = 1, at = ?, owner = ''"
EXTEND = "UPDATE messages SET at = ?"

# A message whose id has a dead letter goes on counting deliveries.
_INSERT = """
    INSERT INTO messages (id, queue, priority, state, at, sent, frame, deliveries)
    SELECT column1, column2, column3, column4, column5, column6, column7,
        max(column8, coalesce((SELECT deliveries FROM dead WHERE id = column1), 0))
    FROM (VALUES {rows}) WHERE true ON CONFLICT (id) DO NOTHING
"""
# Its parameters are a row and the id again: of `?1` Python before 3.12.4 warns at each use.
INSERT_ONE = """
    INSERT INTO messages (id, queue, priority, state, at, sent, frame, deliveries)
    VALUES (?, ?, ?, ?, ?, ?, ?, max(?, coalesce((SELECT deliveries FROM dead WHERE id = ?), 0)))
    ON CONFLICT (id) DO NOTHING
"""
_LOOK = """
    SELECT
        (SELECT min(at) FROM messages WHERE state > 0),
        EXISTS (SELECT 1 FROM messages WHERE state = 0
                AND queue IN (SELECT value FROM json_each(?)))
"""
_PROMOTE = f"""
    UPDATE messages SET state = 0, lost = lost + (state = 2), at = iif(state = 1, at, sent)
    WHERE seq IN (SELECT seq FROM messages WHERE state > 0 AND at <= ?
                  ORDER BY at LIMIT {PROMOTE_LIMIT})
"""
# All rows as one JSON text, because each row of its own is a step (see `insert`). JSON has no
# bytes, so frames are in hexadecimal; the large ones are read one by one.
_CLAIM = """
    SELECT json_group_array(json_array(seq, id, deliveries, lost, frame)) FROM (
        SELECT seq, id, deliveries, lost, iif(length(frame) <= 4096, hex(frame), NULL) AS frame
        FROM messages WHERE queue = ? AND state = 0 ORDER BY priority, seq LIMIT ?)
"""
# A frame that was inserted by hand may be text.
_FRAME = "SELECT CAST(frame AS BLOB) FROM messages WHERE seq = ?"
_LEASE = """
    UPDATE messages SET state = 2, at = ?, owner = ?, deliveries = deliveries + 1
    WHERE seq IN (SELECT value FROM json_each(?))
"""
_HELD = "seq IN (SELECT value FROM json_each(?)) AND deliveries = ? AND state = 2"

_decode = msgspec.json.Decoder(list[tuple[int, str, int, int, str | None]]).decode


class NotHeld(Exception):
    """Not all of a batch is held."""


def row(message: Message, now: float, deliveries: int = 0) -> tuple[Any, ...]:
    """What is stored of a message."""
    header = message.header
    at = header.sent if header.eta is None else header.eta
    state = READY if header.eta is None or at <= now else DELAYED
    count = max(deliveries, header.deliveries)
    return (
        header.id, header.queue, -header.priority, state, at, header.sent, message.frame, count,
    )  # fmt: skip


def add(db: sqlite3.Connection | sqlite3.Cursor, rows: Iterable[tuple[Any, ...]]) -> None:
    """Store messages, each of them a `row`; one whose id is stored changes nothing."""
    params: list[Any] = []
    for each in rows:
        params += each
    insert(db, _INSERT, 8, params)


def look(db: sqlite3.Connection, queues: str) -> tuple[float | None, bool]:
    """When the next timer of any queue is due, and whether these queues have ready messages."""
    timer, ready = db.execute(_LOOK, (queues,)).fetchone()
    return timer, bool(ready)


def promote(db: sqlite3.Connection, now: float) -> None:
    """Make ready what came due and whose lease ended."""
    db.execute(_PROMOTE, (now,))


def claim(
    db: sqlite3.Connection, queues: Sequence[str], limit: int, lease_end: float, consumer: str
) -> list[Delivery]:
    """Lease up to `limit` ready messages to the consumer."""
    limit = min(limit, CLAIM_LIMIT)
    taken: list[Delivery] = []
    for queue in queues:
        if len(taken) >= limit:
            break
        (text,) = db.execute(_CLAIM, (queue, limit - len(taken))).fetchone()
        for seq, key, deliveries, lost, frame in _decode(text):
            if frame is None:
                content = db.execute(_FRAME, (seq,)).fetchone()[0]
            else:
                content = bytes.fromhex(frame)
            count = deliveries + 1
            taken.append(Delivery(key, queue, content, count, lost, (seq, count)))
    if taken:
        seqs = as_json(delivery.receipt[0] for delivery in taken)
        db.execute(_LEASE, (lease_end, consumer, seqs))
    return taken


def change(
    db: sqlite3.Connection, deliveries: Sequence[Delivery], what: str, params: Sequence[Any]
) -> None:
    """Do `what` (`DELETE`, `RELEASE`, …) to these; raises `NotHeld` if one is not held."""
    statement = f"{what} WHERE {_HELD}"
    for count, seqs in _by_count(deliveries).items():
        changed = db.execute(statement, (*params, as_json(seqs), count)).rowcount
        if changed < len(seqs):
            raise NotHeld


def held_and_lost(
    db: sqlite3.Connection, deliveries: Sequence[Delivery]
) -> tuple[list[Delivery], list[Delivery]]:
    """Those that are held, and those that are not."""
    there: set[tuple[int, int]] = set()
    for count, seqs in _by_count(deliveries).items():
        rows = db.execute(f"SELECT seq FROM messages WHERE {_HELD}", (as_json(seqs), count))
        there.update((seq, count) for (seq,) in rows)
    held: list[Delivery] = []
    lost: list[Delivery] = []
    for delivery in deliveries:
        (held if delivery.receipt in there else lost).append(delivery)
    return held, lost


def _by_count(deliveries: Sequence[Delivery]) -> dict[int, set[int]]:
    """The receipts by how often their messages were handed over: mostly once."""
    groups: dict[int, set[int]] = {}
    for delivery in deliveries:
        seq, count = delivery.receipt
        groups.setdefault(count, set()).add(seq)
    return groups
