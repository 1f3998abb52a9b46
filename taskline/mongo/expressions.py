"""Time in what the server evaluates: its own, or the tests' where they have one."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

from bson import Int64

from taskline.mongo.client import Server

EPOCH = datetime.fromtimestamp(0, timezone.utc)
LONGEST = 100 * 365 * 86400.0
"""Seconds. What is kept for longer is kept for ever, as far as anyone will see."""


def now(server: Server) -> Any:
    """The present, a date."""
    return EPOCH + timedelta(seconds=server.now()) if server.own_time else "$$NOW"


def milliseconds(date: Any) -> dict[str, Any]:
    """A date as a number: every server that speaks the protocol compares numbers alike."""
    return {"$toLong": date}


def after(server: Server, ttl: float | None) -> Any:
    """The date in `ttl` seconds; null for never."""
    if ttl is None:
        return None
    return {"$add": [now(server), Int64(round(min(max(ttl, 0.0), LONGEST) * 1000))]}


def lives(server: Server, end: str = "$end") -> dict[str, Any]:
    """Whether the document's `end` is to come, or it has none. A missing document is no matter."""
    return {
        "$or": [
            {"$eq": [{"$ifNull": [end, None]}, None]},
            {"$gt": [milliseconds(end), milliseconds(now(server))]},
        ]
    }


def left(server: Server, end: str = "$end") -> dict[str, Any]:
    """Milliseconds until `end`; null where there is none."""
    return {"$subtract": [milliseconds(end), milliseconds(now(server))]}
