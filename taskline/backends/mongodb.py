"""Outcomes in MongoDB: a document each, which the server lets expire.

One change stream tells all who wait in this process which outcomes became final.
Where there is none, or while it is broken, they look again and again: every 5 ms
at first, and in the end every 250.

Of several deployments, each keeps the outcomes whose ids pick it, so that any process
finds them. While one does not answer, the next takes what would be its own.
"""

from __future__ import annotations

import threading
from binascii import crc32
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from operator import methodcaller
from typing import TYPE_CHECKING, Any, TypeVar

from taskline.backends.base import Backend, Revocation
from taskline.backends.keys import KeyStore
from taskline.backends.mongodb_keys import MongoKeys, key_store
from taskline.clock import SYSTEM_CLOCK, Clock
from taskline.errors import BackendError, TransportError
from taskline.message import FINAL_STATES, Outcome
from taskline.mongo.client import Server
from taskline.mongo.location import Location, locate
from taskline.mongo.outcomes import FINAL, LARGEST, Outcomes, check_size, layout, new_key
from taskline.mongo.peer import Peer
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

T = TypeVar("T")


class MongoBackend(Backend):
    """One MongoDB deployment, which may be the transport's, or several."""

    scheme = "mongodb"
    distributes = True
    largest = LARGEST

    def __init__(self, locations: Sequence[Location], clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__(clock)
        self.location = locations[0] if len(locations) == 1 else None
        """Where the store is, unless there are several."""
        shape = layout(server_time=type(clock) is Clock)
        servers = [Server(each, clock, shape, BackendError) for each in locations]
        own = [partial(Server, each, SYSTEM_CLOCK, shape, BackendError) for each in locations]
        self._peers = [Peer(server, clock) for server in servers]
        self._alone = len(servers) == 1
        patience = locations[0].timeout if self._alone else 0.0
        self._stores = {peer: Outcomes(peer.server, patience) for peer in self._peers}
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

    # Which deployment

    def _ring(self, id: str) -> list[Peer]:
        """The deployments in the order in which they would keep this outcome."""
        home = crc32(id.encode()) % len(self._peers)
        return self._peers[home:] + self._peers[:home]

    def _keeper(self, id: str) -> Peer:
        ring = self._ring(id)
        return next((peer for peer in ring if peer.usable()), ring[0])

    def _by_keeper(self, items: Sequence[T], id: Callable[[T], str]) -> dict[Peer, list[T]]:
        if self._alone:
            return {self._peers[0]: list(items)} if items else {}
        groups: dict[Peer, list[T]] = {}
        for item in items:
            groups.setdefault(self._keeper(id(item)), []).append(item)
        return groups

    def _do(self, peer: Peer, work: Callable[[Outcomes], T]) -> T:
        store = self._stores[peer]
        return work(store) if self._alone else peer.attempt(lambda: work(store))

    def _everywhere(self, work: Callable[[Outcomes], T]) -> list[T]:
        """The answers of all deployments that answer; raises when none does."""
        answers = []
        failure: TransportError = self._unreachable()
        for peer in self._peers:
            if not (self._alone or peer.usable()):
                continue
            try:
                answers.append(self._do(peer, work))
            except TransportError as error:
                failure = error
                if not error.retryable:
                    raise
        if not answers:
            raise failure
        return answers

    def _unreachable(self) -> BackendError:
        return BackendError("none of the MongoDB nodes of the result backend answers")

    # Outcomes

    def store(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        refused: list[Outcome] = []
        todo = [each for each in outcomes if len(each.frame) <= LARGEST]
        for last in [False] * len(self._peers) + [True]:
            failed: list[Outcome] = []
            for peer, group in self._by_keeper(todo, lambda outcome: outcome.id).items():
                try:
                    refused += self._do(peer, methodcaller("store", group))
                except TransportError as error:
                    if last or self._alone or not error.retryable:
                        raise
                    failed += group
            todo = failed
            if not todo:
                break
        for outcome in outcomes:
            check_size(outcome, BackendError)  # when all others are stored
        outranked = {id(each) for each in refused}
        return [outcome for outcome in outcomes if id(outcome) in outranked]

    def fetch(self, ids: Collection[str]) -> dict[str, Outcome]:
        if self._alone:
            return self._stores[self._peers[0]].fetch(ids)
        found: dict[str, Outcome] = {}
        for peer, group in self._by_keeper(list(ids), str).items():
            self._add(peer, group, found)
        for peer in self._peers:
            # One that did not answer may have left its outcomes to another.
            missing = [
                each for each in ids if each not in found or found[each].state not in FINAL_STATES
            ]
            if missing and peer.usable():
                self._add(peer, missing, found)
        if all(peer.down for peer in self._peers):
            raise self._unreachable()
        return found

    def _add(self, peer: Peer, ids: Collection[str], found: dict[str, Outcome]) -> None:
        """Add what a deployment has of these, where it is newer than what was found."""
        try:
            more = self._do(peer, lambda store: store.fetch(ids))
        except TransportError as error:
            if not error.retryable:
                raise
            return
        for key, outcome in more.items():
            if key not in found or found[key].fence <= outcome.fence:
                found[key] = outcome

    def _final(self, ids: Collection[str]) -> dict[str, Outcome]:
        if not ids:
            return {}
        found = self.fetch(ids)
        return {key: each for key, each in found.items() if each.state in FINAL_STATES}

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
            return self._final(unknown)
        except BaseException:
            self.turned()
            raise

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

    def forget(self, ids: Sequence[str]) -> None:
        self._everywhere(lambda store: store.forget(ids))

    def expire(self, ids: Sequence[str], ttl: float | None) -> None:
        self._everywhere(lambda store: store.expire(ids, ttl))

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

    # Counters

    def count(self, key: str, member: str, ttl: float) -> int:
        return self.count_all({key: [member]}, ttl)[key]

    def count_all(self, members: Mapping[str, Sequence[str]], ttl: float) -> dict[str, int]:
        return {key: self._count(key, group, ttl) for key, group in members.items()}

    def _count(self, key: str, group: Sequence[str], ttl: float) -> int:
        return self._do(self._ring(key)[0], lambda store: store.count(key, group, ttl))

    def keys(self) -> KeyStore:
        """Each key and lock is in the deployment that its name picks, and there only."""
        return key_store(self._keys)

    # Health

    def ping(self) -> None:
        """At least one deployment must take a write."""
        self._everywhere(lambda store: store.ping())

    def info(self) -> dict[str, Any]:
        about = self._everywhere(lambda store: store.about())
        waking = "poll" if any(stream.missing for stream in self._streams) else "change stream"
        address = " ".join(str(peer.server.location) for peer in self._peers)
        known = {"backend": self.scheme, "address": address, "waking": waking}
        if self._alone:
            return {**known, **about[0]}
        version = ", ".join(sorted({str(each["version"]) for each in about}))
        return {**known, "version": version, "nodes": about}

    def close(self) -> None:
        for stream in self._streams:
            stream.remove(self)
        for keys in self._keys:
            keys.close()
        self.interrupt()
        for peer in self._peers:
            peer.server.close()
