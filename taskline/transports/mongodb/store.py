"""The messages of one deployment: each verb of a transport as a few commands for a batch.

What is held is changed by its token, which is of one claim (see `claims`). Time is the
server's: `$$NOW`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

from bson import ObjectId
from pymongo import UpdateMany, UpdateOne
from pymongo.client_session import ClientSession
from pymongo.errors import BulkWriteError, DuplicateKeyError, OperationFailure

from taskline.chunking import chunks
from taskline.clock import Clock
from taskline.message import DeadLetter, Delivery, Message, Outcome
from taskline.mongo.client import Server
from taskline.mongo.failures import only_duplicates
from taskline.mongo.location import Location
from taskline.transports.base import QueueStats, StoredMessage
from taskline.transports.mongodb import records
from taskline.transports.mongodb.claims import CLAIM_LIMIT, Claims
from taskline.transports.mongodb.records import (
    BATCH,
    DELAYED,
    LEASED,
    LINE,
    READY,
    RELEASE,
    Document,
)

_LOSE = {**RELEASE, "$inc": {"l": 1}}


class Store:
    """`number` tells it from other nodes in the receipts of one transport."""

    def __init__(self, location: Location, clock: Clock, number: int = 0) -> None:
        self.server = Server(location, clock, records.LAYOUT)
        self.messages = self.server.collection("messages").with_options(records.CODEC)
        self.dead = self.server.collection("dead").with_options(records.CODEC)
        self._claims = Claims(self.server, self.messages, clock, number)

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
            partial(self._claims.take, queues, min(limit, CLAIM_LIMIT), lease, consumer)
        )

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
        for batch in chunks(deliveries, BATCH):
            held, gone = self.server.run(partial(self._held, batch))
            lost += gone
            if held:
                which = _those(held)
                done = self.server.run(partial(self.messages.delete_many, which))
                if done.deleted_count < len(held):
                    lost += self._taken_over(held)
        return lost

    def release(self, deliveries: Sequence[Delivery], delay: float) -> list[Delivery]:
        change: Any = RELEASE
        if delay > 0:
            waits = {"s": DELAYED, "at": records.due_in(self.server, delay)}
            change = [{"$set": waits}, {"$unset": ["t", "c"]}]
        lost: list[Delivery] = []
        for batch in chunks(deliveries, BATCH):
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
        change = [{"$set": {"at": records.due_in(self.server, lease)}}]
        for batch in chunks(deliveries, BATCH):
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
        for batch in chunks(pairs, BATCH):
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
        for batch in chunks(burials, BATCH):
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
        for batch in chunks(list(started), BATCH):
            begun = {**mine, "_id": {"$in": list(batch)}}
            recovered += self._change(begun, _LOSE)
        return recovered + self._change(mine, RELEASE)

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
        found = list(self.messages.find(ready).sort(LINE).skip(offset).limit(limit))
        if len(found) < limit:
            before = self.messages.count_documents(ready) if offset and not found else offset
            later = self.messages.find({"q": queue, "s": {"$gt": READY}}).sort([("at", 1), *LINE])
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
        for batch in chunks(list(dict.fromkeys(ids)), BATCH):
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
        for batch in chunks(list({each.header.id: each for each in messages}.values()), BATCH):
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
        for batch in chunks(list(dict.fromkeys(ids)), BATCH):
            which = {"_id": {"$in": list(batch)}}
            purged += self.server.run(partial(self.dead.delete_many, which)).deleted_count
        return purged

    def maintain(self) -> None:
        """Make ready what came due and whose lease ended."""
        while self.server.run(self._claims.end_what_is_over) == 0.0:
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


def _succession(fields: Document, message: Message) -> Document:
    """The update that makes a held message its successor."""
    gone = {"t": "", "c": ""} if "at" in fields else {"t": "", "c": "", "at": ""}
    return {"$set": fields, "$unset": gone, "$max": {"d": message.header.deliveries}}
