"""The outcomes, revocations and counted sets that one deployment keeps.

An outcome is a document under its task's id. The server compares fences and the
time by itself, in one update for each outcome, and many updates in one command.
What has ended is left out when it is read; the server deletes it within a minute.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from hashlib import blake2b
from typing import Any, TypeVar

from bson import Int64
from pymongo import ASCENDING, IndexModel, ReadPreference, ReturnDocument, UpdateOne
from pymongo.collection import Collection as MongoCollection
from pymongo.errors import BulkWriteError, DuplicateKeyError, InvalidOperation
from pymongo.read_concern import ReadConcern

from taskline.chunking import chunks
from taskline.errors import TransportError
from taskline.message import FINAL_STATES, Outcome
from taskline.mongo.client import Document, Server
from taskline.mongo.expressions import EPOCH, LONGEST, after, lives, now
from taskline.mongo.failures import only_duplicates
from taskline.mongo.layout import Layout

BATCH = 1000
"""Documents that one command writes."""
IDS = 250
"""Ids in one command."""
LARGEST = 16 * 1024 * 1024 - 32 * 1024
"""Bytes of the largest frame: a document of MongoDB is at most 16 MiB, with the rest of it."""
HINDSIGHT = 5_000_000
"""Microseconds by which the clocks behind two revocations may differ."""

FINAL = sorted(FINAL_STATES)
_TRIES = 3

T = TypeVar("T")


def layout(server_time: bool) -> Layout:
    """Without the server's time nothing must end by it."""
    ends = [IndexModel([("end", ASCENDING)], name="end", expireAfterSeconds=0)]
    gone = [IndexModel([("gone", ASCENDING)], name="gone", expireAfterSeconds=0)]
    ending = dict.fromkeys(("outcomes", "revocations", "counts", "keys"), ends)
    seen = IndexModel([("at", ASCENDING)], name="at")
    if not server_time:
        return Layout("results", 1, {"revocations": [seen]})
    return Layout(
        "results", 1, {**ending, "locks": gone, "revocations": [*ending["revocations"], seen]}
    )


def strict(server: Server, name: str) -> MongoCollection[Document]:
    """A collection that is read where it is written, and only what a majority has."""
    collection = server.collection(name)
    if not server.location.option("readConcernLevel"):
        collection = collection.with_options(read_concern=ReadConcern("majority"))
    return collection.with_options(read_preference=ReadPreference.PRIMARY)


def change(
    collection: MongoCollection[Document], key: str, steps: list[Document], fields: list[str]
) -> Document:
    """Change or make a document in one step; returns these fields of what it then is.

    It may be done twice: an answer of the server may not tell that it was done.
    """
    for last in (*[False] * _TRIES, True):
        try:
            found = _change(collection, key, steps, fields, upsert=True)
        except DuplicateKeyError:  # somebody else made it at the same moment
            if last:
                raise
        else:
            if found is not None:
                return found
    raise _silent(collection)


def change_once(
    collection: MongoCollection[Document], key: str, steps: list[Document], fields: list[str]
) -> Document:
    """As `change`, but it is done once. What is new is made in a step of its own, as ended."""
    for _ in range(_TRIES):
        found = _change(collection, key, steps, fields, upsert=False)
        if found is not None:
            return found
        with suppress(DuplicateKeyError):
            collection.insert_one({"_id": key, "end": EPOCH})
    raise _silent(collection)


def _change(
    collection: MongoCollection[Document],
    key: str,
    steps: list[Document],
    fields: list[str],
    upsert: bool,
) -> Document | None:
    return collection.find_one_and_update(
        {"_id": key},
        steps,
        upsert=upsert,
        projection=fields,
        return_document=ReturnDocument.AFTER,
    )


def _number(member: str) -> Int64:
    """What stands for a member of a counted set."""
    digest = blake2b(member.encode(), digest_size=8).digest()
    return Int64(int.from_bytes(digest, "big", signed=True))


def _place(number: Int64) -> Document:
    return {"$indexOfArray": ["$members", number]}


def _silent(collection: MongoCollection[Document]) -> InvalidOperation:
    return InvalidOperation(f"{collection.name} did not answer with what was changed")


class Outcomes:
    """Any thread may use it. A call that fails is tried again for `patience` seconds."""

    def __init__(self, server: Server, patience: float) -> None:
        self._server = server
        self._patience = patience
        self._collection = strict(server, "outcomes")
        self.close = server.close

    def store(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Store these; returns those that were refused, because what is there outranks them."""
        refused: list[Outcome] = []
        for wave in _waves(outcomes):
            for batch in chunks(wave, BATCH):
                operations = [self._operation(each) for each in batch]
                result = self._run(partial(self._collection.bulk_write, operations, ordered=False))
                if result.modified_count + result.upserted_count < len(batch):
                    refused += self._outranked(batch)
        return refused

    def _operation(self, outcome: Outcome) -> UpdateOne:
        new = {
            "_id": "$_id",
            "state": outcome.state,
            "sent": float(outcome.sent),
            "deliveries": Int64(outcome.deliveries),
            "ttl": outcome.ttl,
            "end": after(self._server, outcome.ttl),
            "frame": {"$literal": outcome.frame},
        }
        ranks = [
            {"$gt": ["$deliveries", Int64(outcome.deliveries)]},
            {
                "$and": [
                    {"$eq": ["$deliveries", Int64(outcome.deliveries)]},
                    {"$in": ["$state", FINAL]},
                    outcome.state not in FINAL_STATES,
                ]
            },
        ]
        outranked = {
            "$or": [
                {"$gt": ["$sent", float(outcome.sent)]},
                {"$and": [{"$eq": ["$sent", float(outcome.sent)]}, {"$or": ranks}]},
            ]
        }
        keep = {"$and": [outranked, lives(self._server)]}
        step = {"$replaceWith": {"$cond": [keep, "$$ROOT", new]}}
        return UpdateOne({"_id": outcome.id}, [step], upsert=True)

    def _outranked(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Those that cannot have been stored: what is there now would refuse them."""
        found = self._find([each.id for each in outcomes], ["state", "sent", "deliveries"])
        ranks = {
            each["_id"]: (each["sent"], each["deliveries"], each["state"] in FINAL_STATES)
            for each in found
        }
        refused = []
        for outcome in outcomes:
            rank = (*outcome.fence, outcome.state in FINAL_STATES)
            if rank < ranks.get(outcome.id, rank):
                refused.append(outcome)
        return refused

    def fetch(self, ids: Collection[str]) -> dict[str, Outcome]:
        """What is stored of these."""
        found = {}
        for each in self._find(ids, ["state", "sent", "deliveries", "ttl", "frame"]):
            found[each["_id"]] = Outcome(
                each["_id"],
                each["state"],
                each["sent"],
                int(each["deliveries"]),
                each["ttl"],
                bytes(each["frame"]),
            )
        return found

    def _find(self, ids: Collection[str], fields: list[str]) -> Iterator[Document]:
        for batch in chunks(list(ids), IDS):
            steps: list[Document] = [
                {"$match": {"_id": {"$in": batch}}},
                {"$match": {"$expr": lives(self._server)}},
                {"$project": dict.fromkeys(fields, 1)},
            ]
            yield from self._run(partial(self._look, steps))

    def _look(self, steps: list[Document]) -> list[Document]:
        return list(self._collection.aggregate(steps, batchSize=IDS + 1))

    def forget(self, ids: Sequence[str]) -> None:
        """Delete what is stored of these."""
        for batch in chunks(ids, IDS):
            where = {"_id": {"$in": list(batch)}}
            self._run(partial(self._collection.delete_many, where))

    def expire(self, ids: Sequence[str], ttl: float | None) -> None:
        """Keep what is stored of these for `ttl` seconds from now on; None for ever."""
        end = {"$cond": [lives(self._server), after(self._server, ttl), "$end"]}
        step = {"$set": {"end": end}}
        for batch in chunks(ids, IDS):
            where = {"_id": {"$in": list(batch)}}
            self._run(partial(self._collection.update_many, where, [step]))

    def revoke(self, wishes: Sequence[tuple[bytes, str, bool]], ttl: float) -> None:
        """Remember wishes, each with a key of its own, an id, and whether to terminate."""
        end = EPOCH + timedelta(seconds=self._server.now() + min(ttl, LONGEST))
        documents = [
            {
                "_id": key,
                "id": task,
                "terminate": terminate,
                "at": Int64(self._server.stamp()),
                "end": end,
            }
            for key, task, terminate in wishes
        ]

        def insert() -> None:
            try:
                self._server.collection("revocations").insert_many(documents, ordered=False)
            except BulkWriteError as error:
                if not only_duplicates(error):
                    raise

        if documents:
            self._run(insert)

    def revoked(self, after: int) -> list[tuple[int, bytes, str, bool]]:
        """The wishes after a cursor, and those shortly before it: stamp, key, id, terminate."""
        where = {"at": {"$gt": Int64(max(0, after - HINDSIGHT))}, "$expr": lives(self._server)}
        found = self._run(
            lambda: list(strict(self._server, "revocations").find(where).sort("at", ASCENDING))
        )
        return [
            (int(each["at"]), bytes(each["_id"]), each["id"], each["terminate"]) for each in found
        ]

    def count(self, key: str, members: Sequence[str], ttl: float) -> int:
        """Add members to a set in one command; returns its size.

        Members are kept as numbers of 64 bits, so that a set may have some 900,000.
        """
        numbers = list(dict.fromkeys(_number(member) for member in members))
        kept = {"$cond": [lives(self._server), {"$ifNull": ["$members", []]}, []]}
        added = {"$concatArrays": ["$members", {"$setDifference": [numbers, "$members"]}]}
        steps: list[Document] = [{"$set": {"members": kept}}, {"$set": {"members": added}}]
        ends = after(self._server, ttl)
        collection = self._server.collection("counts")
        size: Document = {"$size": "$members"}

        def work() -> int:
            nonlocal size
            last = {"$set": {"size": size, "end": ends}}
            # Where this try may have added them and fails, the size was then the last one's place.
            size = {"$add": [{"$max": [_place(number) for number in numbers]}, 1]}
            return int(change_once(collection, key, [*steps, last], ["size"])["size"])

        return self._run(work)

    def check(self) -> None:
        """Write something."""
        step = [{"$set": {"at": now(self._server)}}]
        self._run(
            lambda: self._server.collection("meta").update_one({"_id": "ping"}, step, upsert=True)
        )

    def about(self) -> dict[str, Any]:
        """What people want to know of the deployment."""
        return {"address": str(self._server.location), **self._run(self._server.about)}

    def _run(self, work: Callable[[], T]) -> T:
        return self._server.run(work, self._patience)


def new_key() -> bytes:
    """A key that no other wish has."""
    return os.urandom(12)


def check_size(outcome: Outcome, kind: type[TransportError]) -> None:
    """Raise for an outcome that no document can hold."""
    if len(outcome.frame) > LARGEST:
        raise kind(
            f"the outcome of task {outcome.id} has {len(outcome.frame)} bytes, and a document of "
            f"MongoDB holds {LARGEST}: put the value into GridFS or other storage, and return "
            "its name",
            retryable=False,
        )


def _waves(outcomes: Sequence[Outcome]) -> Iterator[list[Outcome]]:
    """All of them in turn; no id is twice in one wave, whose order does not matter."""
    rest = list(outcomes)
    while rest:
        wave: dict[str, Outcome] = {}
        later = []
        for each in rest:
            if each.id in wave:
                later.append(each)
            else:
                wave[each.id] = each
        yield list(wave.values())
        rest = later
