"""The messages of one deployment: each verb of a transport as a few commands for a batch.

A claim reads from an index where a piece of the line begins and ends, leases by one update
what is still ready between them, and reads what bears its token then: of two workers who
want the same message one has it. Who came too late looks elsewhere in the line next time.
What is held is changed by its token, which is of one claim. Time is the server's: `$$NOW`.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from bson import ObjectId
from bson.datetime_ms import DatetimeMS
from pymongo import UpdateMany, UpdateOne
from pymongo.client_session import ClientSession
from pymongo.errors import BulkWriteError, DuplicateKeyError, OperationFailure

from taskline.clock import Clock
from taskline.message import DeadLetter, Delivery, Message, Outcome
from taskline.mongo.client import Server
from taskline.mongo.failures import only_duplicates
from taskline.mongo.location import Location
from taskline.transports.base import QueueStats, StoredMessage
from taskline.transports.mongodb import records
from taskline.transports.mongodb.records import DELAYED, LEASED, READY, Document

BATCH = 100
"""Messages that one command names by their ids, at most."""
CLAIM_LIMIT = 1000
"""Messages in one claim at most."""
LOOK_EVERY = 0.1
"""Seconds for which a worker that finds work does not look for what came due."""
TRIES = 4
"""Times that a claim reads the line anew when others were faster."""
MOST_SPREAD = 16
"""Batches, counted from the head of the line, among which a worker in a crowd chooses."""

_LINE = [("p", -1), ("n", 1)]
_TIMERS = {"at": {"$gt": DatetimeMS(0)}}
_KEYS = {"_id": 0, "p": 1, "n": 1}
_RELEASE = {"$set": {"s": READY}, "$unset": {"t": "", "c": "", "at": ""}}
_LOSE = {**_RELEASE, "$inc": {"l": 1}}
_UNTAKE = {**_RELEASE, "$inc": {"d": -1}}
_END: list[Document] = [
    {"$set": {"l": {"$add": ["$l", {"$cond": [{"$eq": ["$s", LEASED]}, 1, 0]}]}, "s": READY}},
    {"$unset": ["t", "c", "at"]},
]


class Store:
    """`number` tells it from other nodes in the receipts of one transport."""

    def __init__(self, location: Location, clock: Clock, number: int = 0) -> None:
        self.server = Server(location, clock, records.LAYOUT)
        self.messages = self.server.collection("messages").with_options(records.CODEC)
        self.dead = self.server.collection("dead").with_options(records.CODEC)
        self._clock = clock
        self._number = number
        self._spread = 1
        self._look_at = 0.0
        self._doubt: Document | None = None

    # Time, which is the server's; in tests, the tests'.

    def _in(self, seconds: float) -> Any:
        """The date so many seconds from now, for the pipeline of an update."""
        if self.server.own_time:
            return records.date(self.server.now() + seconds)
        return {"$add": ["$$NOW", max(1, round(seconds * 1000))]}

    def _has_passed(self) -> Document:
        """The filter for messages whose time has come."""
        if self.server.own_time:
            return {"at": {"$gt": DatetimeMS(0), "$lte": records.date(self.server.now())}}
        # As numbers, because SecantusDB takes any two dates of different origin for equal.
        return {"$expr": {"$lte": [{"$toLong": "$at"}, {"$toLong": "$$NOW"}]}}

    # Sending

    def send(self, messages: Sequence[Message], patience: float) -> None:
        """Store the messages whose ids are not there."""
        records.check_sizes(messages)
        if messages:
            self.server.run(partial(self._insert, messages), patience)

    def _insert(self, messages: Sequence[Message]) -> None:
        stamp = self.server.stamp
        try:
            if len(messages) == 1:
                self.messages.insert_one(records.document(messages[0], stamp()))
            else:
                documents = [records.document(each, stamp()) for each in messages]
                self.messages.insert_many(documents, ordered=False)
        except DuplicateKeyError:
            return
        except BulkWriteError as error:
            if not only_duplicates(error):
                raise

    # Receiving

    def take(
        self, queues: Sequence[str], limit: int, lease: float, consumer: str
    ) -> tuple[list[Delivery], float]:
        """Lease what is due; and the seconds until something else may be, infinite if nothing."""
        return self.server.run(
            partial(self._claim, queues, min(limit, CLAIM_LIMIT), lease, consumer)
        )

    def _claim(
        self, queues: Sequence[str], limit: int, lease: float, consumer: str
    ) -> tuple[list[Delivery], float]:
        if self._doubt is not None:
            # What a claim leased whose answer did not arrive.
            self.messages.update_many(self._doubt, _UNTAKE)
            self._doubt = None
        after = None
        now = self._clock.monotonic()
        if self.server.own_time or now >= self._look_at:
            after = self._end_what_is_over()
        taken = self._take_from(queues, limit, lease, consumer)
        if not taken and after is None:
            after = self._end_what_is_over()
            if after == 0.0:
                taken = self._take_from(queues, limit, lease, consumer)
        return taken, after or 0.0

    def _end_what_is_over(self) -> float:
        """Make ready what came due and whose lease ended.

        Returns the seconds until the next will, zero if some are now, infinite if none waits.
        """
        self._look_at = self._clock.monotonic() + LOOK_EVERY
        first = list(self.messages.find(_TIMERS, {"at": 1}).sort("at", 1).limit(-1))
        if not first:
            return float("inf")
        after = int(first[0]["at"]) / 1000 - self.server.now()
        if after > 0:
            return after
        over = self.messages.find(_TIMERS, {"at": 1}).sort("at", 1).limit(-BATCH)
        ids = {"_id": {"$in": [each["_id"] for each in over]}}
        ended = self.messages.update_many({**ids, **_TIMERS, **self._has_passed()}, _END)
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
        return bool(list(self.messages.find(wanted, {"q": 1}).limit(-1)))

    def _take(self, queue: str, limit: int, lease: float, consumer: str) -> list[Delivery]:
        """Lease up to `limit` of a queue, in three commands unless others take some as well."""
        taken: list[Delivery] = []
        for _ in range(TRIES):
            wanted = limit - len(taken)
            skip = random.randrange(self._spread) * wanted
            line = self.messages.find({"q": queue, "s": READY}, _KEYS).sort(_LINE).skip(skip)
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
        token = ObjectId()
        ends: dict[int, list[int]] = {}
        for each in piece:
            ends.setdefault(each["p"], []).append(each["n"])
        change: list[Document] = [
            {
                "$set": {
                    "s": LEASED, "t": token, "c": {"$literal": consumer}, "at": self._in(lease),
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
        number = self.messages.bulk_write(updates, ordered=False).modified_count
        found = list(self.messages.find(mine).limit(-number)) if number else []
        found.sort(key=lambda each: (-each["p"], each["n"]))
        del found[len(piece) :]
        if len(found) < number:
            # More than was asked for, since some were given back meanwhile; or too large together.
            which = {**mine, "_id": {"$nin": [each["_id"] for each in found]}}
            self.messages.update_many(which, _UNTAKE)
        self._doubt = None
        return [records.delivery(each, self._number) for each in found]

    # What is held

    def _held(
        self, deliveries: Sequence[Delivery], session: ClientSession | None = None
    ) -> tuple[list[Delivery], list[Delivery]]:
        """Those that are held, and those that are not."""
        which = _those(deliveries)
        found = self.messages.find(which, {"t": 1}, session=session).limit(-len(deliveries))
        there = {(each["_id"], each["t"]) for each in found}
        held: list[Delivery] = []
        lost: list[Delivery] = []
        for each in deliveries:
            (held if (each.id, each.receipt[0]) in there else lost).append(each)
        return held, lost

    def ack(
        self, deliveries: Sequence[Delivery], outcomes: Sequence[Outcome] = ()
    ) -> list[Delivery]:
        """`outcomes` are stored by nobody here: no backend is shared."""
        lost: list[Delivery] = []
        for batch in _chunks(deliveries):
            held, gone = self.server.run(partial(self._held, batch))
            lost += gone
            if held:
                which = _those(held)
                done = self.server.run(partial(self.messages.delete_many, which))
                if done.deleted_count < len(held):
                    lost += self._taken_over(held)
        return lost

    def release(self, deliveries: Sequence[Delivery], delay: float) -> list[Delivery]:
        change: Any = _RELEASE
        if delay > 0:
            waits = {"s": DELAYED, "at": self._in(delay)}
            change = [{"$set": waits}, {"$unset": ["t", "c"]}]
        lost: list[Delivery] = []
        for batch in _chunks(deliveries):
            held, gone = self.server.run(partial(self._held, batch))
            lost += gone
            if held:
                which = _those(held)
                self._change(which, change)
        return lost

    def _taken_over(self, held: Sequence[Delivery]) -> list[Delivery]:
        """Of those that were held a moment ago, whose messages others have now."""
        ids = {"_id": {"$in": [each.id for each in held]}}
        there = self._ids(ids)
        return [each for each in held if each.id in there]

    def extend(self, deliveries: Sequence[Delivery], lease: float) -> list[Delivery]:
        lost: list[Delivery] = []
        change = [{"$set": {"at": self._in(lease)}}]
        for batch in _chunks(deliveries):
            claims: dict[ObjectId, list[str]] = {}
            for each in batch:
                claims.setdefault(each.receipt[0], []).append(each.id)
            # One for each claim: a message lost to one of them may be held by another.
            updates = [
                UpdateMany({"_id": {"$in": ids}, "t": token}, change)
                for token, ids in claims.items()
            ]
            done = self.server.run(partial(self.messages.bulk_write, updates, ordered=False))
            if done.matched_count < len(batch):
                lost += self.server.run(partial(self._held, batch))[1]
        return lost

    def replace(self, pairs: Sequence[tuple[Delivery, Message]]) -> list[Delivery]:
        lost: list[Delivery] = []
        for batch in _chunks(pairs):
            held, gone = self.server.run(partial(self._held, [each for each, _ in batch]))
            lost += gone
            there = set(held)
            successors = {
                each.id: (each, records.waiting(message, self.server.stamp()), message)
                for each, message in batch
                if each in there
            }
            changes = [
                UpdateOne({"_id": id, "t": each.receipt[0]}, _succession(fields, message))
                for id, (each, fields, message) in successors.items()  # noqa: A001
            ]
            if changes:
                done = self.server.run(partial(self.messages.bulk_write, changes, ordered=False))
                if done.matched_count < len(changes):
                    places = [fields["n"] for _, fields, _ in successors.values()]
                    stored = self._ids({"_id": {"$in": list(successors)}, "n": {"$in": places}})
                    lost += [each for id, (each, _, _) in successors.items() if id not in stored]  # noqa: A001
        return lost

    def bury(self, burials: Sequence[tuple[Delivery, DeadLetter]]) -> list[Delivery]:
        lost: list[Delivery] = []
        for batch in _chunks(burials):
            lost += self.server.transact(partial(self._bury, batch))
        return lost

    def _bury(
        self, burials: Sequence[tuple[Delivery, DeadLetter]], session: ClientSession
    ) -> list[Delivery]:
        held, lost = self._held([each for each, _ in burials], session)
        if held:
            there = set(held)
            graves = {
                letter.id: records.burial(letter, self.server.stamp(), each.deliveries)
                for each, letter in burials
                if each in there
            }
            self.dead.delete_many({"_id": {"$in": list(graves)}}, session=session)
            self.dead.insert_many(list(graves.values()), session=session)
            self.messages.delete_many(_those(held), session=session)
        return lost

    def recover(self, consumer: str, started: Collection[str]) -> int:
        mine = {"c": consumer, "s": LEASED}
        recovered = 0
        for batch in _chunks(list(started)):
            begun = {**mine, "_id": {"$in": list(batch)}}
            recovered += self._change(begun, _LOSE)
        return recovered + self._change(mine, _RELEASE)

    def _change(self, which: Document, change: Any) -> int:
        """Change messages by one command; returns how many there were."""
        return self.server.run(partial(self.messages.update_many, which, change)).matched_count

    # For people

    def stats(self, queues: Sequence[str] | None) -> list[QueueStats]:
        found = {name: QueueStats(queue=name) for name in queues or ()}
        which = {"q": {"$gte": ""} if queues is None else {"$in": list(queues)}}
        group = {"_id": {"q": "$q", "s": "$s"}, "number": {"$sum": 1}, "first": {"$min": "$n"}}
        plan: list[Document] = [{"$match": which}, {"$group": group}]
        dead: list[Document] = [
            {"$match": which}, {"$group": {"_id": "$q", "number": {"$sum": 1}}}
        ]  # fmt: skip
        self.maintain()
        for each in self.server.run(lambda: list(self.messages.aggregate(plan, hint="claim"))):
            queue, state = each["_id"]["q"], each["_id"]["s"]
            stats = found.setdefault(queue, QueueStats(queue=queue))
            setattr(stats, records.STATES[state], each["number"])
            if state == READY:
                stats.oldest = max(0.0, self.server.now() - records.since(each["first"]))
        for each in self.server.run(lambda: list(self.dead.aggregate(dead))):
            found.setdefault(each["_id"], QueueStats(queue=each["_id"])).dead = each["number"]
        return [found[name] for name in sorted(found)]

    def peek(self, queue: str, limit: int, offset: int) -> list[StoredMessage]:
        if limit <= 0:
            return []
        self.maintain()
        return self.server.run(lambda: self._peek(queue, limit, offset))

    def _peek(self, queue: str, limit: int, offset: int) -> list[StoredMessage]:
        ready = {"q": queue, "s": READY}
        found = list(self.messages.find(ready).sort(_LINE).skip(offset).limit(limit))
        if len(found) < limit:
            before = self.messages.count_documents(ready) if offset and not found else offset
            later = self.messages.find({"q": queue, "s": {"$gt": READY}}).sort([("at", 1), *_LINE])
            rest = later.skip(max(0, offset - before)).limit(limit - len(found))
            found += rest
        return [records.stored(each) for each in found]

    def purge(self, queue: str) -> int:
        self.maintain()
        total = 0
        waits = {"q": queue, "s": {"$lt": LEASED}}
        while ids := self._ids(waits, BATCH):
            some = {"_id": {"$in": list(ids)}, **waits}
            total += self.server.run(partial(self.messages.delete_many, some)).deleted_count
        return total

    def delete(self, ids: Sequence[str]) -> list[str]:
        self.maintain()
        deleted: list[str] = []
        for batch in _chunks(list(dict.fromkeys(ids))):
            waits = {"_id": {"$in": list(batch)}, "s": {"$lt": LEASED}}
            found = self._ids(waits)
            if found:
                self.server.run(partial(self.messages.delete_many, waits))
                found -= self._ids({"_id": {"$in": list(found)}})
            deleted += [each for each in batch if each in found]
        return deleted

    def _ids(self, which: Document, most: int = 0) -> set[str]:
        """The ids of these messages."""

        def work() -> set[str]:
            return {each["_id"] for each in self.messages.find(which, {"_id": 1}).limit(-most)}

        return self.server.run(work)

    def dead_letters(self, queue: str | None, limit: int, offset: int) -> list[DeadLetter]:
        if limit <= 0:
            return []
        which = {} if queue is None else {"q": queue}
        found = self.server.run(
            lambda: list(self.dead.find(which).sort("n", -1).skip(offset).limit(limit))
        )
        return [records.letter(each) for each in found]

    def dead_letter(self, id: str) -> DeadLetter | None:
        found = self.server.run(lambda: self.dead.find_one({"_id": id}))
        return None if found is None else records.letter(found)

    def requeue(self, messages: Sequence[Message], patience: float) -> list[str]:
        done: list[str] = []
        for batch in _chunks(list({each.header.id: each for each in messages}.values())):
            done += self.server.transact(partial(self._requeue, batch), patience)
        return done

    def _requeue(self, messages: Sequence[Message], session: ClientSession) -> list[str]:
        wanted = {"_id": {"$in": [each.header.id for each in messages]}}
        counts = {
            each["_id"]: each["d"] for each in self.dead.find(wanted, {"d": 1}, session=session)
        }
        if not counts:
            return []
        dead = {"_id": {"$in": list(counts)}}
        in_the_way = {e["_id"] for e in self.messages.find(dead, {"_id": 1}, session=session)}
        found = [each for each in messages if each.header.id in counts]
        new = [
            records.document(each, self.server.stamp(), counts[each.header.id])
            for each in found
            if each.header.id not in in_the_way
        ]
        self.dead.delete_many(dead, session=session)
        if new:
            try:
                self.messages.insert_many(new, session=session)
            except BulkWriteError as error:
                # Somebody sent the id meanwhile: look again, in a new transaction.
                raise OperationFailure(str(error), 112) from None
        return [each.header.id for each in found]

    def purge_dead(self, ids: Sequence[str]) -> int:
        purged = 0
        for batch in _chunks(list(dict.fromkeys(ids))):
            which = {"_id": {"$in": list(batch)}}
            purged += self.server.run(partial(self.dead.delete_many, which)).deleted_count
        return purged

    def maintain(self) -> None:
        """Make ready what came due and whose lease ended."""
        while self.server.run(self._end_what_is_over) == 0.0:
            pass

    def check(self) -> None:
        """Return if it answers and takes writes."""
        self.server.run(self._write_something)

    def _write_something(self) -> None:
        self.server.collection("meta").update_one(
            {"_id": "ping"}, {"$currentDate": {"at": True}}, upsert=True
        )

    def about(self) -> dict[str, Any]:
        """What people want to know of it."""
        return self.server.run(self.server.about)

    def close(self) -> None:
        """End its use."""
        self.server.close()


def _those(held: Sequence[Delivery]) -> Document:
    """The filter for what is held."""
    return {
        "_id": {"$in": [each.id for each in held]},
        "t": {"$in": list({each.receipt[0] for each in held})},
    }


def _between(places: Sequence[int]) -> Document:
    return {"$gte": min(places), "$lte": max(places)}


def _succession(fields: Document, message: Message) -> Document:
    """The update that makes a held message its successor."""
    gone = {"t": "", "c": ""} if "at" in fields else {"t": "", "c": "", "at": ""}
    return {"$set": fields, "$unset": gone, "$max": {"d": message.header.deliveries}}


T = TypeVar("T")


def _chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for first in range(0, len(items), BATCH):
        yield items[first : first + BATCH]
