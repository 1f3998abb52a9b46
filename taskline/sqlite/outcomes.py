"""Storing outcomes within a transaction, for the backend and a transport that shares its file."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from taskline.message import FINAL_STATES, Outcome
from taskline.sqlite.database import as_json, insert

_STORED = """
    SELECT id, sent, deliveries, state, expires FROM outcomes
    WHERE id IN (SELECT value FROM json_each(?))
"""
_DELETE = "DELETE FROM outcomes WHERE id IN (SELECT value FROM json_each(?))"
_INSERT = """
    INSERT INTO outcomes (id, state, sent, deliveries, ttl, expires, frame) VALUES {rows}
"""


def store(connection: sqlite3.Connection, outcomes: Sequence[Outcome], now: float) -> list[Outcome]:
    """Store those outcomes that the stored ones do not outrank; returns the others."""
    ids = as_json({outcome.id for outcome in outcomes})
    found = connection.execute(_STORED, (ids,)).fetchall()
    ranks = {
        key: (sent, deliveries, state in FINAL_STATES)
        for key, sent, deliveries, state, expires in found
        if expires is None or expires > now
    }
    accepted: dict[str, Outcome] = {}
    refused = []
    for outcome in outcomes:
        rank = (outcome.sent, outcome.deliveries, outcome.state in FINAL_STATES)
        if rank < ranks.get(outcome.id, rank):
            refused.append(outcome)
        else:
            ranks[outcome.id] = rank
            accepted[outcome.id] = outcome
    if found:
        connection.execute(_DELETE, (as_json(row[0] for row in found if row[0] in accepted),))
    params: list[object] = []
    for key, outcome in accepted.items():
        ttl = outcome.ttl
        expires = None if ttl is None else now + ttl
        params += (
            key, outcome.state, outcome.sent, outcome.deliveries, ttl, expires, outcome.frame,
        )  # fmt: skip
    insert(connection, _INSERT, 7, params)
    return refused
