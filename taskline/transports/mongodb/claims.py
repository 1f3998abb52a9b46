"""How the messages of one deployment are claimed: leased to one of many who want them.

A claim reads from an index where a piece of the line begins and ends, leases by one update
what is still ready between them, and reads what bears its token then: of two workers who
want the same message one has it. Who came too late looks elsewhere in the line next time.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from bson import ObjectId
from bson.datetime_ms import DatetimeMS
from pymongo import UpdateMany
from pymongo.collection import Collection

from taskline.clock import Clock
from taskline.message import Delivery
from taskline.mongo.client import Server
from taskline.transports.mongodb import records
from taskline.transports.mongodb.records import BATCH, LEASED, LINE, READY, RELEASE, Document

CLAIM_LIMIT = 1000
"""Messages in one claim at most."""
LOOK_EVERY = 0.1
"""Seconds for which a worker that finds work does not look for what came due."""
TRIES = 4
"""Times that a claim reads the line anew when others were faster."""
MOST_SPREAD = 16
"""Batches, counted from the head of the line, among which a worker in a crowd chooses."""

_TIMERS = {"at": {"$gt": DatetimeMS(0)}}
_KEYS = {"_id": 0, "p": 1, "n": 1}
_UNTAKE = {**RELEASE, "$inc": {"d": -1}}
_END: list[Document] = [
    {"$set": {"l": {"$add": ["$l", {"$cond": [{"$eq": ["$s", LEASED]}, 1, 0]}]}, "s": READY}},
    {"$unset": ["t", "c", "at"]},
]


class Claims:
    """Of one transport. Its verbs are to be `run` by the server."""

    def __init__(
        self, server: Server, messages: Collection[Document], clock: Clock, number: int
    ) -> None:
        self._server = server
        self._messages = messages
        self._clock = clock
        self._number = number
        self._spread = 1
        self._look_at = 0.0
        self._doubt: Document | None = None

    def take(
        self, queues: Sequence[str], limit: int, lease: float, consumer: str
    ) -> tuple[list[Delivery], float]:
        """Lease what is due; and the seconds until something else may be, infinite if nothing."""
        if self._doubt is not None:
            # What a claim leased whose answer did not arrive.
            self._messages.update_many(self._doubt, _UNTAKE)
            self._doubt = None
        after = None
        now = self._clock.monotonic()
        if self._server.own_time or now >= self._look_at:
            after = self.end_what_is_over()
        taken = self._take_from(queues, limit, lease, consumer)
        if not taken and after is None:
            after = self.end_what_is_over()
            if after == 0.0:
                taken = self._take_from(queues, limit, lease, consumer)
        return taken, after or 0.0

    def end_what_is_over(self) -> float:
        """Make ready what came due and whose lease ended.

        Returns the seconds until the next will, zero if some are now, infinite if none waits.
        """
        self._look_at = self._clock.monotonic() + LOOK_EVERY
        first = list(self._messages.find(_TIMERS, {"at": 1}).sort("at", 1).limit(-1))
        if not first:
            return float("inf")
        after = int(first[0]["at"]) / 1000 - self._server.now()
        if after > 0:
            return after
        over = self._messages.find(_TIMERS, {"at": 1}).sort("at", 1).limit(-BATCH)
        ids = {"_id": {"$in": [each["_id"] for each in over]}}
        which = {**ids, **_TIMERS, **records.has_passed(self._server)}
        ended = self._messages.update_many(which, _END)
        # The server's clock may be behind what we know of it, by very little.
        return 0.0 if ended.modified_count else 0.001

    def _take_from(
        self, queues: Sequence[str], limit: int, lease: float, consumer: str
    ) -> list[Delivery]:
        taken = self._take(queues[0], limit, lease, consumer) if queues else []
        rest = queues[1:]
        # One look at all that follow, so that many empty queues cost no more than two.
        if len(taken) < limit and (len(rest) == 1 or (rest and self._has_some(rest))):
            for queue in rest:
                if len(taken) < limit:
                    taken += self._take(queue, limit - len(taken), lease, consumer)
        return taken

    def _has_some(self, queues: Sequence[str]) -> bool:
        wanted = {"q": {"$in": list(queues)}, "s": READY}
        return bool(list(self._messages.find(wanted, {"q": 1}).limit(-1)))

    def _take(self, queue: str, limit: int, lease: float, consumer: str) -> list[Delivery]:
        """Lease up to `limit` of a queue, in three commands unless others take some as well."""
        taken: list[Delivery] = []
        for _ in range(TRIES):
            wanted = limit - len(taken)
            skip = random.randrange(self._spread) * wanted
            line = self._messages.find({"q": queue, "s": READY}, _KEYS).sort(LINE).skip(skip)
            piece = list(line.limit(-wanted))
            if not piece:
                if skip == 0:
                    break
                self._spread = 1
                continue
            won = self._lease(queue, piece, lease, consumer)
            taken += won
            if len(won) >= len(piece):
                self._spread = max(1, self._spread // 2)
                break
            self._spread = min(2 * self._spread, MOST_SPREAD)
            if len(taken) > limit // 2:
                break
        return taken

    def _lease(
        self, queue: str, piece: Sequence[Document], lease: float, consumer: str
    ) -> list[Delivery]:
        token, until = ObjectId(), records.due_in(self._server, lease)
        ends: dict[int, list[int]] = {}
        for each in piece:
            ends.setdefault(each["p"], []).append(each["n"])
        change: list[Document] = [
            {
                "$set": {
                    "s": LEASED, "t": token, "c": {"$literal": consumer}, "at": until,
                    "d": {"$add": ["$d", 1]},
                }
            }
        ]  # fmt: skip
        updates = [
            UpdateMany({"q": queue, "s": READY, "p": p, "n": _between(places)}, change)
            for p, places in ends.items()
        ]
        mine = {"c": consumer, "t": token}
        self._doubt = mine
        number = self._messages.bulk_write(updates, ordered=False).modified_count
        found = list(self._messages.find(mine).limit(-number)) if number else []
        found.sort(key=lambda each: (-each["p"], each["n"]))
        del found[len(piece) :]
        if len(found) < number:
            # More than was asked for, since some were given back meanwhile; or too large together.
            which = {**mine, "_id": {"$nin": [each["_id"] for each in found]}}
            self._messages.update_many(which, _UNTAKE)
        self._doubt = None
        return [records.delivery(each, self._number) for each in found]


def _between(places: Sequence[int]) -> Document:
    return {"$gte": min(places), "$lte": max(places)}
