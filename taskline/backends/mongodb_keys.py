"""Locks, keys and counters in MongoDB, by the server's clock.

A call is tried again when its connection breaks. A change bears a token by which a
repeated one is known, except `delete`, which then may tell that there was no such key.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from bson import Int64

from taskline.backends.keys import (
    GREATEST,
    SMALLEST,
    KeyStore,
    Lease,
    Watch,
    added,
    too_large,
)
from taskline.clock import Clock
from taskline.errors import BackendError
from taskline.mongo.client import Document, Server
from taskline.mongo.expressions import EPOCH, after, left, lives, milliseconds, now
from taskline.mongo.location import Location
from taskline.mongo.outcomes import LARGEST, change, change_once, strict
from taskline.mongo.stream import listen

REMEMBER = 3600.0
"""Seconds for which a lock's fence outlives its last lease. The clock makes later ones greater."""
RECHECK = 5.0
"""Seconds between two looks of a watch whose change stream lives."""
POLL = 0.1
"""Seconds after which a watch returns where nothing is told."""
OPENS_WITHIN = 2.0
"""Seconds in which a change stream should have been opened."""

RELEASED = {
    "$or": [
        {"fullDocument.token": ""},
        {"updateDescription.updatedFields.token": ""},
    ]
}

T = TypeVar("T")


class MongoKeys(KeyStore):
    """The key store of one deployment."""

    def __init__(self, server: Server, open_server: Callable[[], Server], clock: Clock) -> None:
        self._server = server
        self._clock = clock
        self._patience = server.location.timeout
        self._keys = strict(server, "keys")
        self._locks = strict(server, "locks")
        self._releases = Releases(server.location, open_server)

    def time(self) -> float:
        return self._server.now()

    # Keys

    def get(self, key: str) -> bytes | None:
        found = self._run(lambda: self._keys.find_one(self._alive(key), ["value", "number"]))
        return None if found is None else _value(found)

    def set(self, key: str, value: bytes, ttl: float | None, *, if_absent: bool = False) -> bool:
        token = os.urandom(8)
        new = self._new(key, value, ttl, token)
        keep = {"$and": [self._there(), {"$ne": ["$by", token]}, if_absent]}
        steps = [{"$replaceWith": {"$cond": [keep, "$$ROOT", new]}}]
        return bool(self._run(lambda: change(self._keys, key, steps, ["by"]))["by"] == token)

    def swap(
        self, key: str, expected: bytes | None, value: bytes | None, ttl: float | None
    ) -> bool:
        if expected is None:
            if value is None:
                return self.get(key) is None
            return self.set(key, value, ttl, if_absent=True)
        holds: list[Document] = [{"$eq": ["$value", {"$literal": expected}]}]
        number = _number(expected)
        if number is not None and b"%d" % number == expected:
            # What was counted has no value beside its number.
            counted = {"$eq": [{"$ifNull": ["$value", None]}, None]}
            holds.append({"$and": [counted, {"$eq": ["$number", number]}]})
        where = {"_id": key, "$expr": {"$and": [lives(self._server), {"$or": holds}]}}
        if value is None:
            return self._run(lambda: self._keys.delete_one(where)).deleted_count > 0
        token = os.urandom(8)
        step = {"$replaceWith": self._new(key, value, ttl, token)}
        tries = 0

        def work() -> bool:
            nonlocal tries
            tries += 1
            if self._keys.update_one(where, [step]).matched_count:
                return True
            # The answer to an earlier try may have been lost.
            return tries > 1 and self._keys.find_one({"_id": key, "by": token}) is not None

        return self._run(work)

    def delete(self, key: str) -> bool:
        return self._run(lambda: self._keys.delete_one(self._alive(key))).deleted_count > 0

    def increment(self, key: str, by: int, ttl: float | None) -> int:
        if not SMALLEST <= by <= GREATEST:
            raise too_large(key)
        token = os.urandom(8)
        number = Int64(by)
        fits = (
            {"$lte": ["$number", Int64(GREATEST - by)]}
            if by >= 0
            else {"$gte": ["$number", Int64(SMALLEST - by)]}
        )
        counts = {"$and": [{"$ne": [{"$ifNull": ["$number", None]}, None]}, fits]}
        steps = [
            {
                "$replaceWith": {
                    "$switch": {
                        "branches": [
                            {"case": {"$eq": ["$by", token]}, "then": "$$ROOT"},
                            {
                                "case": {"$not": [self._there()]},
                                "then": {
                                    "_id": "$_id",
                                    "number": number,
                                    "end": after(self._server, ttl),
                                    "by": {"$literal": token},
                                },
                            },
                            {
                                "case": counts,
                                "then": {
                                    "_id": "$_id",
                                    "number": {"$add": ["$number", number]},
                                    "end": "$end",
                                    "by": {"$literal": token},
                                },
                            },
                        ],
                        "default": "$$ROOT",
                    }
                }
            }
        ]
        fields = ["by", "number", "value"]
        found = self._run(lambda: change_once(self._keys, key, steps, fields))
        if found["by"] != token:
            added(key, _value(found), by)  # raises what is wrong with it
            raise too_large(key)
        return int(found["number"])

    def ttl(self, key: str) -> float | None:
        found = self._run(
            lambda: list(
                self._keys.aggregate(
                    [{"$match": self._alive(key)}, {"$project": {"left": left(self._server)}}]
                )
            )
        )
        if not found:
            return None
        milliseconds_left = found[0]["left"]
        return math.inf if milliseconds_left is None else milliseconds_left / 1000

    def expire(self, key: str, ttl: float | None) -> bool:
        step = {"$set": {"end": after(self._server, ttl)}}
        return self._run(lambda: self._keys.update_one(self._alive(key), [step])).matched_count > 0

    def _new(self, key: str, value: bytes, ttl: float | None, token: bytes) -> Document:
        """The document of a key that is set by the call with this token."""
        if len(value) > LARGEST:
            raise BackendError(
                f"the key {key!r}: its {len(value)} bytes are more than a document of MongoDB "
                f"holds, {LARGEST}: put the value into GridFS or other storage, and keep its name",
                retryable=False,
            )
        return {
            "_id": "$_id",
            "value": {"$literal": value},
            "number": _number(value),
            "end": after(self._server, ttl),
            "by": {"$literal": token},
        }

    def _there(self) -> Document:
        """Whether a document is a key that lives; every key has a `by`."""
        return {"$and": [{"$ne": [{"$ifNull": ["$by", None]}, None]}, lives(self._server)]}

    def _alive(self, key: str) -> Document:
        return {"_id": key, "$expr": lives(self._server)}

    # Locks

    def acquire(self, name: str, token: str, ttl: float) -> Lease:
        call = os.urandom(8)
        microseconds = {"$multiply": [milliseconds(now(self._server)), Int64(1000)]}
        fence = {"$max": [{"$add": [{"$ifNull": ["$fence", Int64(0)]}, Int64(1)]}, microseconds]}
        new = {
            "_id": "$_id",
            "token": {"$literal": token},
            "fence": fence,
            "end": after(self._server, ttl),
            "gone": self._gone(ttl),
            "by": {"$literal": call},
        }
        steps = [{"$replaceWith": {"$cond": [self._is_held(), "$$ROOT", new]}}]
        while True:
            found = self._run(lambda: change(self._locks, name, steps, ["by", "fence"]))
            if found["by"] == call:
                return Lease(token, int(found["fence"]), ttl)
            lease = self.holder(name)
            if lease is not None:
                return lease

    def renew(self, name: str, token: str, ttl: float) -> bool:
        step = {"$set": {"end": after(self._server, ttl), "gone": self._gone(ttl)}}
        where = self._held(name, token)
        return self._run(lambda: self._locks.update_one(where, [step])).matched_count > 0

    def release(self, name: str, token: str) -> bool:
        free = {"$set": {"token": "", "end": EPOCH, "last": token}}
        tries = 0

        def work() -> bool:
            nonlocal tries
            tries += 1
            if self._locks.update_one(self._held(name, token), free).matched_count:
                return True
            # The answer to an earlier try may have been lost.
            return tries > 1 and self._locks.find_one({"_id": name, "last": token}) is not None

        return self._run(work)

    def holder(self, name: str) -> Lease | None:
        where = {"_id": name, "token": {"$ne": ""}, "$expr": self._is_held()}
        fields = {"token": 1, "fence": 1, "left": left(self._server)}
        found = self._run(
            lambda: list(self._locks.aggregate([{"$match": where}, {"$project": fields}]))
        )
        if not found:
            return None
        return Lease(found[0]["token"], int(found[0]["fence"]), found[0]["left"] / 1000)

    def watch(self, name: str) -> Watch:
        return _MongoWatch(self._releases, self._clock, name)

    def close(self) -> None:
        """End what watches had opened."""
        self._releases.close()

    def _held(self, name: str, token: str) -> Document:
        return {"_id": name, "token": token, "$expr": self._is_held()}

    def _is_held(self) -> Document:
        return {"$gt": [milliseconds("$end"), milliseconds(now(self._server))]}

    def _gone(self, ttl: float) -> Any:
        return after(self._server, ttl + REMEMBER)

    def _run(self, work: Callable[[], T]) -> T:
        return self._server.run(work, self._patience)


def _value(document: Document) -> bytes:
    value = document.get("value")
    return b"%d" % document["number"] if value is None else bytes(value)


def _number(value: bytes) -> Int64 | None:
    """The number that a value is, as far as counters can go on from it."""
    try:
        number = int(value.decode("ascii")) if len(value) < 100 else None
    except ValueError:
        return None
    return None if number is None or not SMALLEST <= number <= GREATEST else Int64(number)


class Releases:
    """Tells all watches of this process which locks were released, from one change stream."""

    def __init__(self, location: Location, open_server: Callable[[], Server]) -> None:
        self._stream = listen(self, location, "locks", RELEASED, open_server)
        self._lock = threading.Lock()
        self._watches: dict[str, list[_MongoWatch]] = {}
        self._live = threading.Event()

    def add(self, name: str, watch: _MongoWatch) -> None:
        """From now on the watch is told; waits until it would be."""
        with self._lock:
            self._watches.setdefault(name, []).append(watch)
        if not self.want() and not self._stream.missing:
            self._live.wait(OPENS_WITHIN)

    def remove(self, name: str, watch: _MongoWatch) -> None:
        """Tell this one no more."""
        with self._lock:
            watches = self._watches.get(name, [])
            if watch in watches:
                watches.remove(watch)
            if not watches:
                self._watches.pop(name, None)

    def want(self) -> bool:
        """Whether releases are told. To be asked again every few seconds."""
        return self._stream.want()

    def close(self) -> None:
        self._stream.remove(self)

    def changed(self, id: Any) -> None:
        """This lock was released."""
        with self._lock:
            watches = list(self._watches.get(id, ()))
        for watch in watches:
            watch.wake()

    def turned(self) -> None:
        """The change stream begins or ceases to tell."""
        # Either way there may have been releases that were not told.
        if self._stream.live or self._stream.missing:
            self._live.set()
        else:
            self._live.clear()
        with self._lock:
            watches = [each for some in self._watches.values() for each in some]
        for watch in watches:
            watch.wake()


class _MongoWatch(Watch):
    """One of those who share the change stream."""

    def __init__(self, releases: Releases, clock: Clock, name: str) -> None:
        self._releases = releases
        self._clock = clock
        self._name = name
        self._woken = threading.Event()
        self._interrupted = False
        releases.add(name, self)
        self._woken.clear()

    def wait(self, seconds: float) -> None:
        told = self._releases.want()
        patience = min(seconds, RECHECK if told else POLL)
        if not self._interrupted:
            self._woken.wait(self._clock.bound(patience))
        self._woken.clear()

    def wake(self) -> None:
        """The lock was released, or may have been."""
        self._woken.set()

    def interrupt(self) -> None:
        self._interrupted = True
        self._woken.set()

    def close(self) -> None:
        self._releases.remove(self._name, self)
