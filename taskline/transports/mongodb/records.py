"""Messages and dead letters as documents.

In `messages`, by the message's id:
  q queue   s state   p priority   n place in line   d deliveries   l lost   f frame
  at  when it comes due, or its lease ends; not where it is ready
  t, c  token and consumer of who holds it
In `dead`, by id: q, n, d, f as above, and `letter`, the rest of it.

A place in line is the millisecond, of the server's clock, since which the message is ready
or will be, and twenty bits that tell those of one millisecond apart, in the order of their
sending: a claim goes from one place to another, and no two messages share one (but by chance,
if they come from different processes).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any, TypeAlias

import msgspec
from bson import CodecOptions
from bson.codec_options import DatetimeConversion
from bson.datetime_ms import DatetimeMS
from pymongo import ASCENDING, DESCENDING, IndexModel

from taskline.errors import TransportError
from taskline.message import DeadLetter, Delivery, Message
from taskline.mongo.client import Server
from taskline.mongo.layout import Layout
from taskline.transports.base import StoredMessage

Document: TypeAlias = dict[str, Any]

READY, DELAYED, LEASED = 0, 1, 2
STATES = {READY: "ready", DELAYED: "delayed", LEASED: "leased"}

LINE = [("p", DESCENDING), ("n", ASCENDING)]
"""The order in which messages of one queue are taken."""
RELEASE = {"$set": {"s": READY}, "$unset": {"t": "", "c": "", "at": ""}}
"""The update that lets a held message be ready."""
BATCH = 100
"""Messages that one command names by their ids, at most."""

LARGEST = 15 * 1024 * 1024
"""Bytes of a frame: a document is at most 16 MiB, and a dead letter has more than its frame."""

# Reads give times as numbers; the year 9999 is where a `datetime` ends.
CODEC: CodecOptions[Document] = CodecOptions(datetime_conversion=DatetimeConversion.DATETIME_MS)
_LATEST = 253_402_300_799_000
_LAST = (1 << 43) - 1
"""A millisecond of the year 2248, after which the line has no order."""
_SURELY_PAST = 1.0
"""Seconds: an eta so long ago has passed for the server too."""

# Equality, sort: no claim sorts.
CLAIM = IndexModel(
    [("q", ASCENDING), ("s", ASCENDING), ("p", DESCENDING), ("n", ASCENDING)], name="claim"
)
TIMERS = IndexModel([("at", ASCENDING)], name="timers", sparse=True)
HOLDERS = IndexModel([("c", ASCENDING), ("t", ASCENDING)], name="holders", sparse=True)
NEWEST = IndexModel([("n", DESCENDING)], name="newest")
NEWEST_OF_QUEUE = IndexModel([("q", ASCENDING), ("n", DESCENDING)], name="newest_of_queue")

LAYOUT = Layout(
    "messages", 1, {"messages": [CLAIM, TIMERS, HOLDERS], "dead": [NEWEST, NEWEST_OF_QUEUE]}
)


def date(seconds: float) -> DatetimeMS:
    """Rounded up, so that nothing comes due early."""
    return DatetimeMS(max(0, math.ceil(min(seconds * 1000, _LATEST))))


def due_in(server: Server, seconds: float) -> Any:
    """The date so many seconds from now, by the server's time, for the pipeline of an update."""
    if server.own_time:
        return date(server.now() + seconds)
    return {"$add": ["$$NOW", max(1, round(seconds * 1000))]}


def has_passed(server: Server) -> Document:
    """The filter for messages whose time has come."""
    if server.own_time:
        return {"at": {"$gt": DatetimeMS(0), "$lte": date(server.now())}}
    # As numbers, because SecantusDB takes any two dates of different origin for equal.
    return {"$expr": {"$lte": [{"$toLong": "$at"}, {"$toLong": "$$NOW"}]}}


def place(stamp: int) -> int:
    """The place in line of what is ready since this microsecond."""
    return _place(stamp // 1000, stamp % 1000 << 10 | random.getrandbits(10))


def _place(millisecond: int, among_others: int) -> int:
    return min(millisecond, _LAST) << 20 | among_others & 0xFFFFF


def since(place: int) -> float:
    """Unix seconds since which the message in this place is ready."""
    return (place >> 20) / 1000


def waiting(message: Message, stamp: int) -> Document:
    """The fields of a message that waits: for its eta, or in the line. `stamp` is now."""
    header = message.header
    found: Document = {
        "q": header.queue, "s": READY, "p": header.priority, "n": place(stamp), "l": 0,
        "f": message.frame,
    }  # fmt: skip
    eta = header.eta
    if eta is not None and eta > stamp / 1_000_000 - _SURELY_PAST:
        found["s"], found["at"] = DELAYED, date(eta)
        found["n"] = max(found["n"], _place(int(found["at"]), stamp))
    return found


def check_sizes(messages: Sequence[Message]) -> None:
    """Raise `TransportError` for a message that no document can hold."""
    for message in messages:
        if len(message.frame) > LARGEST:
            raise TransportError(
                f"message {message.header.id} has {len(message.frame)} bytes, MongoDB stores "
                f"up to {LARGEST}: keep large values elsewhere and send their names",
                retryable=False,
            )


def document(message: Message, stamp: int, deliveries: int = 0) -> Document:
    """A message as it is stored first."""
    found: Document = {"_id": message.header.id, **waiting(message, stamp)}
    found["d"] = max(deliveries, message.header.deliveries)
    return found


def delivery(found: Document, node: int) -> Delivery:
    """What a claim hands over. A receipt is the token, the number of the node, and the id."""
    receipt = found["t"], node, found["_id"]
    return Delivery(found["_id"], found["q"], found["f"], found["d"], found["l"], receipt)


def stored(found: Document) -> StoredMessage:
    """A message as `peek` shows it."""
    at = found.get("at")
    return StoredMessage(
        id=found["_id"],
        queue=found["q"],
        state=STATES[found["s"]],
        due=None if at is None else int(at) / 1000,
        deliveries=found["d"],
        frame=found["f"],
    )


def burial(letter: DeadLetter, stamp: int, deliveries: int) -> Document:
    """A dead letter as it is stored."""
    told = msgspec.to_builtins(msgspec.structs.replace(letter, frame=b""))
    rest = {key: value for key, value in told.items() if key not in ("id", "queue")}
    return {
        "_id": letter.id, "q": letter.queue, "n": place(stamp), "d": deliveries,
        "f": letter.frame, "letter": rest,
    }  # fmt: skip


def letter(found: Document) -> DeadLetter:
    """What `burial` made."""
    told = {**found["letter"], "id": found["_id"], "queue": found["q"]}
    return msgspec.structs.replace(msgspec.convert(told, DeadLetter), frame=found["f"])
