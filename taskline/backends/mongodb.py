"""Outcomes in MongoDB: a document each, which the server lets expire.

One change stream tells all who wait in this process which outcomes became final.
Where there is none, or while it is broken, they look again and again: every 5 ms
at first, and in the end every 250.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from taskline.backends.base import Revocation
from taskline.backends.keys import KeyStore
from taskline.backends.mongodb_keys import MongoKeys
from taskline.backends.nodes import Keeper, NodesBackend
from taskline.backends.spread import key_store
from taskline.clock import SYSTEM_CLOCK, Clock
from taskline.errors import BackendError
from taskline.message import Outcome
from taskline.mongo.client import Server
from taskline.mongo.location import Location, locate
from taskline.mongo.outcomes import FINAL, LARGEST, Outcomes, check_size, layout, new_key
from taskline.mongo.stream import listen
from taskline.registry import Spec

if TYPE_CHECKING:
    from typing_extensions import Self

RECHECK = 5.0
"""Seconds after which a waiter looks though it was told of nothing."""
POLL_FIRST, POLL_MOST = 0.005, 0.25
"""Seconds between two looks where nothing is told."""

MANY = 10
"""Who waits for more outcomes than these looks at what arrives only every `GATHER` seconds."""
GATHER = 0.02

# An update that leaves the state as it was changed what had ended, or a lesser run's.
BECAME_FINAL = {
    "$or": [
        {"fullDocument.state": {"$in": FINAL}},
        {"updateDescription.updatedFields.state": {"$in": FINAL}},
        {
            "operationType": "update",
            "updateDescription.updatedFields.state": {"$exists": False},
            "updateDescription.updatedFields.frame": {"$exists": True},
        },
    ]
}

log = logging.getLogger("taskline.mongo")


class MongoBackend(NodesBackend[Outcomes]):
    """One MongoDB deployment, which may be the transport's, or several."""

    scheme = "mongodb"
    product = "MongoDB"
    largest = LARGEST

    def __init__(self, locations: Sequence[Location], clock: Clock = SYSTEM_CLOCK) -> None:
        self.location = locations[0] if len(locations) == 1 else None
        """Where the store is, unless there are several."""
        patience = self.location.timeout if self.location else 0.0
        shape = layout(server_time=type(clock) is Clock)
        servers = [Server(each, clock, shape, BackendError) for each in locations]
        own = [partial(Server, each, SYSTEM_CLOCK, shape, BackendError) for each in locations]
        super().__init__(
            [
                Keeper(Outcomes(server, patience), str(each), f"MongoDB at {each}", clock, log)
                for server, each in zip(servers, locations, strict=True)
            ],
            clock,
        )
        self._keys = [MongoKeys(*pair, clock) for pair in zip(servers, own, strict=True)]
        self._news = threading.Condition()
        self._interrupted = False
        self._known: set[str] = set()
        """What the last wait looked at; changes of it since are told, in `_arrived`."""
        self._arrived: set[str] = set()
        self._stale = True
        """Whether changes may have been missed."""
        self._next_check = 0.0
        self._looked_at = 0.0
        self._pause = POLL_FIRST
        self._seen: dict[bytes, int] = {}
        self._streams = [
            listen(self, each, "outcomes", BECAME_FINAL, opened)
            for each, opened in zip(locations, own, strict=True)
        ]

    @classmethod
    def from_spec(cls, spec: Spec, clock: Clock) -> Self:
        """URLs, or a mapping with `nodes`; see `taskline.mongo.location.locate`."""
        return cls(locate(spec), clock)

    def store(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        refused = super().store([each for each in outcomes if len(each.frame) <= LARGEST])
        for outcome in outcomes:
            check_size(outcome, BackendError)  # when all others are stored
        return refused

    # Waiting

    def wait(self, ids: Collection[str], timeout: float) -> dict[str, Outcome]:
        clock = self.clock
        until = clock.monotonic() + timeout
        while True:
            told = timeout > 0 and self._told()
            found = self._look(ids, told)
            left = until - clock.monotonic()
            if found or left <= 0:
                self._end_of_wait()
                return found
            patience = RECHECK if told else self._pause
            with self._news:
                if not (self._interrupted or self._arrived or (told and self._stale)):
                    self._news.wait(clock.bound(min(left, patience)))
                soon = self._looked_at + GATHER - clock.monotonic()
                if len(self._known) > MANY and soon > 0 and not self._interrupted:
                    self._news.wait_for(lambda: self._interrupted, clock.bound(soon))
                if self._interrupted:
                    self._interrupted = False
                    return {}
            if not told:
                self._pause = min(self._pause * 1.5, POLL_MOST)

    def _told(self) -> bool:
        """Whether changes are told of all deployments; sees to it that they will be."""
        wanted = [stream.want() for stream in self._streams]
        return all(wanted)

    def _look(self, ids: Collection[str], told: bool) -> dict[str, Outcome]:
        """Which of them are final: of those only that may have changed, if changes are told."""
        now = self._looked_at = self.clock.monotonic()
        wanted = set(ids)
        with self._news:
            if wanted - self._known:
                self._pause = POLL_FIRST
            if self._stale or not told or now >= self._next_check:
                unknown = list(wanted)
                self._next_check = now + RECHECK
            else:
                unknown = [key for key in wanted if key not in self._known or key in self._arrived]
            self._known, self._arrived, self._stale = wanted, set(), False
        try:
            found = self.final(unknown)
        except BaseException:
            self.turned()
            raise
        with self._news:
            self._known -= found.keys()  # who asks for one of them again has it read
        return found

    def _end_of_wait(self) -> None:
        with self._news:
            self._interrupted = False

    def changed(self, id: Any) -> None:
        """The change stream tells that this one became final."""
        with self._news:
            if id in self._known:
                self._arrived.add(id)
                self._news.notify_all()

    def turned(self) -> None:
        """A change stream begins or ceases to tell."""
        with self._news:
            self._stale = True
            self._news.notify_all()

    def interrupt(self) -> None:
        with self._news:
            self._interrupted = True
            self._news.notify_all()

    # Revocations: all deployments have all of them.

    def revoke(self, revocations: Sequence[Revocation], ttl: float) -> None:
        wishes = [(new_key(), each.id, each.terminate) for each in revocations]
        self._everywhere(lambda store: store.revoke(wishes, ttl))

    def revoked(self, after: int) -> tuple[int, list[Revocation]]:
        wishes = {
            key: (at, Revocation(task, terminate))
            for answer in self._everywhere(lambda store: store.revoked(after))
            for at, key, task, terminate in answer
        }
        seen = self._seen if after else {}
        cursor = max([after, *(at for at, _ in wishes.values())])
        self._seen = {key: at for key, (at, _) in wishes.items()}
        return cursor, [wish for key, (_, wish) in wishes.items() if key not in seen]

    def keys(self) -> KeyStore:
        """Each key and lock is in the deployment that its name picks, and there only."""
        return key_store(self._keys)

    def info(self) -> dict[str, Any]:
        waking = "poll" if any(stream.missing for stream in self._streams) else "change stream"
        return {**super().info(), "waking": waking}

    def close(self) -> None:
        for stream in self._streams:
            stream.remove(self)
        for keys in self._keys:
            keys.close()
        self.interrupt()
        super().close()
