"""Outcomes in Redis: one key each, which the server lets expire.

Who stores a final outcome publishes it, under the key's name. All that a process
waits for is subscribed to on one connection, so a push brings the outcome itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from taskline.backends.base import Backend, Revocation
from taskline.backends.keys import KeyStore
from taskline.backends.redis_keys import RedisKeys
from taskline.clock import SYSTEM_CLOCK, Clock
from taskline.errors import BackendError
from taskline.message import Outcome
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
from taskline.redis.pushes import Pushes
from taskline.redis.script import Script
from taskline.registry import Spec

if TYPE_CHECKING:
    from typing_extensions import Self

STORE = Script("store", "outcome")
EXPIRE = Script("expire")
REVOKE = Script("revoke")
REVOKED = Script("revoked")
FORGET_WISHES = Script("forget_wishes")
COUNT = Script("count")

BATCH = 1000
RECHECK = 1.0
"""Seconds after which a waiter looks though no push came."""


class RedisBackend(Backend):
    """One Redis server; it may be the transport's."""

    scheme = "redis"

    def __init__(self, location: Location, clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__(clock)
        self.location = location
        self._node = Node(location, clock, BackendError)
        self._interrupt = Interrupt()
        self._pushes = Pushes(self._node)
        self._keys = RedisKeys(self._node, clock)

    @classmethod
    def from_spec(cls, spec: Spec, clock: Clock) -> Self:
        """A URL, or a mapping with `nodes`; see `taskline.redis.location.locate`."""
        return cls(locate(spec)[0], clock)

    def store(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        refused = []
        for batch in _chunks(outcomes):
            args: list[Word] = []
            for outcome in batch:
                args += pack_outcome(outcome)
            refused += [batch[number] for number in self._node.run(STORE, *args)]
        return refused

    def fetch(self, ids: Collection[str]) -> dict[str, Outcome]:
        return {key: unpack_outcome(key, value) for key, value in self._values(ids)}

    def _values(self, ids: Collection[str]) -> Iterator[tuple[str, bytes]]:
        for batch in _chunks(list(ids)):
            values = self._node.command(
                "MGET", *map(self._key, batch), patience=self.location.timeout
            )
            for key, value in zip(batch, values, strict=True):
                if value is not None:
                    yield key, value

    def _key(self, id: str) -> bytes:
        return b"%bo:%b" % (self._node.tag, pack_id(id))

    def wait(self, ids: Collection[str], timeout: float) -> dict[str, Outcome]:
        clock, interrupt, pushes = self.clock, self._interrupt, self._pushes
        until = clock.monotonic() + timeout
        keys = {self._key(wanted): wanted for wanted in ids}
        while True:
            found = {
                keys[key]: unpack_outcome(keys[key], value)
                for key, value in pushes.look(keys, clock.monotonic(), RECHECK)
                if key in keys and is_final(value)
            }
            left = until - clock.monotonic()
            if found or interrupt.spent() or left <= 0:
                return found
            pushes.wait(interrupt, clock.bound(min(left, RECHECK)))

    def interrupt(self) -> None:
        self._interrupt.set()

    def forget(self, ids: Sequence[str]) -> None:
        for batch in _chunks(ids):
            self._node.command("UNLINK", *map(self._key, batch), patience=self.location.timeout)

    def expire(self, ids: Sequence[str], ttl: float | None) -> None:
        for batch in _chunks(ids):
            self._node.run(
                EXPIRE, milliseconds(ttl), *map(pack_id, batch), patience=self.location.timeout
            )

    def revoke(self, revocations: Sequence[Revocation], ttl: float) -> None:
        for batch in _chunks(revocations):
            args: list[Word] = [milliseconds(ttl)]
            for each in batch:
                args += (b"1" if each.terminate else b"0", pack_id(each.id))
            self._node.run(REVOKE, *args, patience=self.location.timeout)

    def revoked(self, after: int) -> tuple[int, list[Revocation]]:
        cursor, wishes = self._node.run(REVOKED, after)
        newer = [Revocation(unpack_id(wish[1:]), wish[:1] == b"1") for wish in wishes]
        return max(after, int(cursor)), newer

    def count(self, key: str, member: str, ttl: float) -> int:
        args = (key, member, milliseconds(ttl))
        size: int = self._node.run(COUNT, *args, patience=self.location.timeout)
        return size

    def keys(self) -> KeyStore:
        return self._keys

    def ping(self) -> None:
        self._node.check()

    def info(self) -> dict[str, Any]:
        return {"backend": self.scheme, "address": str(self.location), **self._node.about()}

    def maintain(self) -> None:
        """Forget revocations that have ended; outcomes end by themselves."""
        self._node.run(FORGET_WISHES)

    def close(self) -> None:
        self._node.close()
        self._interrupt.set()
        self._pushes.close()


def _chunks(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for first in range(0, len(items), BATCH):
        yield items[first : first + BATCH]
