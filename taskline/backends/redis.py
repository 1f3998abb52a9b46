"""Outcomes in Redis: one key each, which the server lets expire.

Who stores a final outcome publishes it, under the key's name. All that a process
waits for is subscribed to on one connection, so a push brings the outcome itself.

Of several servers, each keeps the outcomes whose ids pick it, so that any process
finds them. While one does not answer, the next takes what would be its own.
"""

from __future__ import annotations

from binascii import crc32
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from taskline.backends.base import Backend, Revocation
from taskline.backends.keys import KeyStore
from taskline.backends.redis_keys import RedisKeys, key_store
from taskline.clock import SYSTEM_CLOCK, Clock
from taskline.errors import BackendError, TransportError
from taskline.message import FINAL_STATES, Outcome
from taskline.redis.connection import Word
from taskline.redis.interrupt import Interrupt
from taskline.redis.location import Location, locate
from taskline.redis.node import Node
from taskline.redis.packing import (
    is_final,
    milliseconds,
    pack_id,
    pack_outcome,
    unpack_id,
    unpack_outcome,
)
from taskline.redis.peer import Peer
from taskline.redis.pushes import Pushes, wait_for_push
from taskline.redis.script import Script
from taskline.registry import Spec

if TYPE_CHECKING:
    from typing_extensions import Self

STORE = Script("store", "outcome")
EXPIRE = Script("expire", when_full=True)
REVOKE = Script("revoke")
REVOKED = Script("revoked")
FORGET_WISHES = Script("forget_wishes", when_full=True)
COUNT = Script("count")

BATCH = 1000
RECHECK = 1.0
"""Seconds after which a waiter looks though no push came."""
HINDSIGHT = 5_000_000
"""Microseconds by which the clocks of several servers may differ."""

T = TypeVar("T")


class RedisBackend(Backend):
    """One Redis server, which may be the transport's, or several."""

    scheme = "redis"
    distributes = True

    def __init__(self, locations: Sequence[Location], clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__(clock)
        self.location = locations[0] if len(locations) == 1 else None
        """Where the store is, unless there are several."""
        self._peers = [Peer(each, clock, BackendError) for each in locations]
        self._pushes = {peer: Pushes(peer.node) for peer in self._peers}
        self._patience = max(each.timeout for each in locations) if self.location else 0.0
        self._interrupt = Interrupt()
        self._next_check = 0.0
        self._seen: dict[Revocation, int] = {}
        self._keys = key_store([RedisKeys(peer.node, clock) for peer in self._peers])

    @classmethod
    def from_spec(cls, spec: Spec, clock: Clock) -> Self:
        """URLs, or a mapping with `nodes`; see `taskline.redis.location.locate`."""
        return cls(locate(spec), clock)

    # Which server

    def _ring(self, id: str) -> list[Peer]:
        """The servers in the order in which they would keep this outcome."""
        home = crc32(id.encode()) % len(self._peers)
        return self._peers[home:] + self._peers[:home]

    def _keeper(self, id: str) -> Peer:
        ring = self._ring(id)
        return next((peer for peer in ring if peer.usable()), ring[0])

    def _by_keeper(self, items: Sequence[T], id: Callable[[T], str]) -> dict[Peer, list[T]]:
        if len(self._peers) == 1:
            return {self._peers[0]: list(items)} if items else {}
        groups: dict[Peer, list[T]] = {}
        for item in items:
            groups.setdefault(self._keeper(id(item)), []).append(item)
        return groups

    def _do(self, peer: Peer, work: Callable[[Node], T]) -> T:
        if len(self._peers) == 1:
            return work(peer.node)
        return peer.attempt(lambda: work(peer.node))

    def _everywhere(self, work: Callable[[Node], T]) -> list[T]:
        """The answers of all servers that answer; raises when none does."""
        answers = []
        failure: TransportError = self._unreachable()
        for peer in self._peers:
            if len(self._peers) > 1 and not peer.usable():
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
        return BackendError("none of the Redis nodes of the result backend answers")

    # Outcomes

    def store(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        refused: list[Outcome] = []
        todo = list(outcomes)
        for last in [False] * len(self._peers) + [True]:
            failed: list[Outcome] = []
            for peer, group in self._by_keeper(todo, lambda outcome: outcome.id).items():
                try:
                    refused += self._do(peer, _Store(group))
                except TransportError as error:
                    if last or len(self._peers) == 1 or not error.retryable:
                        raise
                    failed += group
            todo = failed
            if not todo:
                break
        outranked = {id(each) for each in refused}
        return [outcome for outcome in outcomes if id(outcome) in outranked]

    def fetch(self, ids: Collection[str]) -> dict[str, Outcome]:
        found: dict[str, Outcome] = {}
        if len(self._peers) == 1:
            _fetch(self._peers[0].node, ids, found, self._patience)
            return found
        for peer, group in self._by_keeper(list(ids), str).items():
            self._try(peer, group, found)
        for peer in self._peers:
            # One that did not answer may have left its outcomes to another.
            missing = [
                each for each in ids if each not in found or found[each].state not in FINAL_STATES
            ]
            if missing and peer.usable():
                self._try(peer, missing, found)
        if all(peer.down for peer in self._peers):
            raise self._unreachable()
        return found

    def _try(self, peer: Peer, ids: Collection[str], found: dict[str, Outcome]) -> None:
        try:
            peer.attempt(lambda: _fetch(peer.node, ids, found, 0.0))
        except TransportError as error:
            if not error.retryable:
                raise

    def wait(self, ids: Collection[str], timeout: float) -> dict[str, Outcome]:
        clock, interrupt = self.clock, self._interrupt
        until = clock.monotonic() + timeout
        while True:
            found = self._look(ids)
            left = until - clock.monotonic()
            if found or interrupt.spent() or left <= 0:
                return found
            watching = [each for peer, each in self._pushes.items() if not peer.down]
            wait_for_push(watching, interrupt, clock.bound(min(left, RECHECK)))

    def _look(self, ids: Collection[str]) -> dict[str, Outcome]:
        """Which of them are final, as far as was pushed or is read now."""
        now = self.clock.monotonic()
        found: dict[str, Outcome] = {}
        alone = len(self._peers) == 1
        groups = self._by_keeper(list(ids), str)
        for peer in self._peers:
            keys = {_key(peer.node, each): each for each in groups.get(peer, ())}
            if not keys and not alone:
                continue
            look = self._pushes[peer].look
            try:
                values = (
                    _listed(look, keys, now)
                    if alone
                    else peer.attempt(partial(_listed, look, keys, now))
                )
            except TransportError:
                if alone:
                    raise
                continue
            for key, value in values:
                if key in keys and is_final(value):
                    found[keys[key]] = unpack_outcome(keys[key], value)
        if not alone and not found and now >= self._next_check:
            self._next_check = now + RECHECK
            everything = self.fetch(ids)
            return {key: each for key, each in everything.items() if each.state in FINAL_STATES}
        return found

    def interrupt(self) -> None:
        self._interrupt.set()

    def forget(self, ids: Sequence[str]) -> None:
        for batch in _chunks(ids):
            self._everywhere(partial(_unlink, batch, self._patience))

    def expire(self, ids: Sequence[str], ttl: float | None) -> None:
        for batch in _chunks(ids):
            args: list[Word] = [milliseconds(ttl), *map(pack_id, batch)]
            self._everywhere(partial(_run, EXPIRE, args, self._patience))

    # Revocations: all servers have all of them.

    def revoke(self, revocations: Sequence[Revocation], ttl: float) -> None:
        for batch in _chunks(revocations):
            args: list[Word] = [milliseconds(ttl)]
            for each in batch:
                args += (b"1" if each.terminate else b"0", pack_id(each.id))
            self._everywhere(partial(_run, REVOKE, args, self._patience))

    def revoked(self, after: int) -> tuple[int, list[Revocation]]:
        if len(self._peers) == 1:
            cursor, wishes = self._peers[0].node.run(REVOKED, after)
            return max(after, int(cursor)), _revocations(wishes)
        start = max(0, after - HINDSIGHT)
        answers = self._everywhere(lambda node: node.run(REVOKED, start))
        cursor = max(after, *(int(cursor) for cursor, _ in answers))
        fresh: dict[Revocation, None] = {}
        for _, wishes in answers:
            fresh.update(dict.fromkeys(_revocations(wishes)))
        if after == 0:
            self._seen.clear()
        newer = [each for each in fresh if after == 0 or each not in self._seen]
        self._seen = dict.fromkeys(fresh, cursor)
        return cursor, newer

    # Counters

    def count(self, key: str, member: str, ttl: float) -> int:
        return self.count_all({key: [member]}, ttl)[key]

    def count_all(self, members: Mapping[str, Sequence[str]], ttl: float) -> dict[str, int]:
        return {
            key: self._do(self._ring(key)[0], partial(_count, key, group, ttl, self._patience))
            for key, group in members.items()
        }

    def keys(self) -> KeyStore:
        """Each key and lock is on the server that its name picks, and there only."""
        return self._keys

    # Health

    def ping(self) -> None:
        """At least one server must answer; none may be one that would lose outcomes."""
        self._everywhere(lambda node: node.check())

    def info(self) -> dict[str, Any]:
        address = " ".join(str(peer.location) for peer in self._peers)
        about = self._everywhere(lambda node: node.about())
        if len(self._peers) == 1:
            return {"backend": self.scheme, "address": address, **about[0]}
        version = ", ".join(sorted({str(each["version"]) for each in about}))
        return {"backend": self.scheme, "address": address, "version": version, "nodes": about}

    def maintain(self) -> None:
        """Forget revocations that have ended; outcomes end by themselves."""
        self._everywhere(lambda node: node.run(FORGET_WISHES))

    def close(self) -> None:
        for peer in self._peers:
            peer.node.close()
        self._interrupt.set()
        for pushes in self._pushes.values():
            pushes.close()


class _Store:
    """Stores some outcomes on a node; returns those refused."""

    def __init__(self, outcomes: Sequence[Outcome]) -> None:
        self._outcomes = outcomes

    def __call__(self, node: Node) -> list[Outcome]:
        refused = []
        for batch in _chunks(self._outcomes):
            args: list[Word] = []
            for outcome in batch:
                args += pack_outcome(outcome)
            refused += [batch[number] for number in node.run(STORE, *args)]
        return refused


def _fetch(node: Node, ids: Collection[str], found: dict[str, Outcome], patience: float) -> None:
    """Add what the node has of these outcomes, where it is newer than what was found."""
    for batch in _chunks(list(ids)):
        values = node.command("MGET", *(_key(node, each) for each in batch), patience=patience)
        for key, value in zip(batch, values, strict=True):
            if value is not None:
                outcome = unpack_outcome(key, value)
                if key not in found or found[key].fence <= outcome.fence:
                    found[key] = outcome


def _listed(
    look: Callable[..., Iterator[tuple[bytes, bytes]]], keys: Collection[bytes], now: float
) -> list[tuple[bytes, bytes]]:
    return list(look(keys, now, RECHECK))


def _count(key: str, members: Sequence[str], ttl: float, patience: float, node: Node) -> int:
    size = 0
    for batch in _chunks(members):
        size = node.run(COUNT, key, milliseconds(ttl), *batch, patience=patience)
    return size


def _run(script: Script, args: Sequence[Word], patience: float, node: Node) -> object:
    return node.run(script, *args, patience=patience)


def _unlink(ids: Sequence[str], patience: float, node: Node) -> object:
    return node.command("UNLINK", *(_key(node, each) for each in ids), patience=patience)


def _key(node: Node, id: str) -> bytes:
    return b"%bo:%b" % (node.tag, pack_id(id))


def _revocations(wishes: Sequence[bytes]) -> list[Revocation]:
    return [Revocation(unpack_id(wish[1:]), wish[:1] == b"1") for wish in wishes]


def _chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for first in range(0, len(items), BATCH):
        yield items[first : first + BATCH]
