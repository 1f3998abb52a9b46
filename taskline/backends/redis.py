"""Outcomes in Redis: one key each, which the server lets expire.

Who stores a final outcome publishes it, under the key's name. All that a process
waits for is subscribed to on one connection, so a push brings the outcome itself.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from functools import partial
from operator import methodcaller
from typing import TYPE_CHECKING

from taskline.backends.base import Revocation
from taskline.backends.keys import KeyStore
from taskline.backends.nodes import Keeper, NodesBackend
from taskline.backends.redis_keys import RedisKeys
from taskline.backends.spread import key_store
from taskline.chunking import chunks
from taskline.clock import SYSTEM_CLOCK, Clock
from taskline.errors import BackendError, TransportError
from taskline.message import Outcome
from taskline.redis.connection import Word
from taskline.redis.interrupt import Interrupt
from taskline.redis.location import Location, locate
from taskline.redis.node import Node
from taskline.redis.outcomes import BATCH, Outcomes
from taskline.redis.packing import is_final, milliseconds, pack_id, unpack_id, unpack_outcome
from taskline.redis.pushes import Pushes, wait_for_push
from taskline.redis.script import Script
from taskline.registry import Spec

if TYPE_CHECKING:
    from typing_extensions import Self

REVOKE = Script("revoke")
REVOKED = Script("revoked")
FORGET_WISHES = Script("forget_wishes", when_full=True)

RECHECK = 1.0
"""Seconds after which a waiter looks though no push came."""
HINDSIGHT = 5_000_000
"""Microseconds by which the clocks of several servers may differ."""

log = logging.getLogger("taskline.redis")


class RedisBackend(NodesBackend[Outcomes]):
    """One Redis server, which may be the transport's, or several."""

    scheme = "redis"
    product = "Redis"

    def __init__(self, locations: Sequence[Location], clock: Clock = SYSTEM_CLOCK) -> None:
        self.location = locations[0] if len(locations) == 1 else None
        """Where the store is, unless there are several."""
        patience = self.location.timeout if self.location else 0.0
        stores = [Outcomes(Node(each, clock, BackendError), patience) for each in locations]
        super().__init__(
            [
                Keeper(store, str(each), f"Redis at {each}", clock, log)
                for store, each in zip(stores, locations, strict=True)
            ],
            clock,
        )
        self._pushes = {keeper: Pushes(keeper.store.node) for keeper in self._keepers}
        self._interrupt = Interrupt()
        self._next_check = 0.0
        self._seen: dict[Revocation, int] = {}
        self._keys = key_store([RedisKeys(store.node, clock) for store in stores])

    @classmethod
    def from_spec(cls, spec: Spec, clock: Clock) -> Self:
        """URLs, or a mapping with `nodes`; see `taskline.redis.location.locate`."""
        return cls(locate(spec), clock)

    # Waiting

    def wait(self, ids: Collection[str], timeout: float) -> dict[str, Outcome]:
        clock, interrupt = self.clock, self._interrupt
        until = clock.monotonic() + timeout
        while True:
            now = clock.monotonic()
            if self._alone is not None:
                found = self._pushed(self._alone, ids, now)
            else:
                found = self._look(ids, now)
            left = until - clock.monotonic()
            if found or interrupt.spent() or left <= 0:
                return found
            watching = [each for keeper, each in self._pushes.items() if not keeper.down]
            wait_for_push(watching, interrupt, clock.bound(min(left, RECHECK)))

    def _pushed(
        self, keeper: Keeper[Outcomes], ids: Collection[str], now: float
    ) -> dict[str, Outcome]:
        """Which of them are final on a server, as far as was pushed or is read now."""
        keys = {keeper.store.key(each): each for each in ids}
        pushes = self._pushes[keeper]
        final = {
            key: unpack_outcome(keys[key], value)
            for key, value in pushes.look(keys, now, RECHECK)
            if key in keys and is_final(value)
        }
        pushes.known(final)
        return {keys[key]: outcome for key, outcome in final.items()}

    def _look(self, ids: Collection[str], now: float) -> dict[str, Outcome]:
        """Which of them are final, on any of the servers."""
        found: dict[str, Outcome] = {}
        for keeper, group in self._by_keeper(ids, str).items():
            try:
                found |= keeper.attempt(partial(self._pushed, keeper, group, now))
            except TransportError:
                continue
        if not found and now >= self._next_check:
            self._next_check = now + RECHECK
            return self.final(ids)
        return found

    def interrupt(self) -> None:
        self._interrupt.set()

    # Revocations: all servers have all of them.

    def revoke(self, revocations: Sequence[Revocation], ttl: float) -> None:
        for batch in chunks(revocations, BATCH):
            args: list[Word] = [milliseconds(ttl)]
            for each in batch:
                args += (b"1" if each.terminate else b"0", pack_id(each.id))
            self._everywhere(methodcaller("run", REVOKE, *args))

    def revoked(self, after: int) -> tuple[int, list[Revocation]]:
        if self._alone is not None:
            cursor, wishes = self._alone.store.node.run(REVOKED, after)
            return max(after, int(cursor)), _revocations(wishes)
        start = max(0, after - HINDSIGHT)
        answers = self._everywhere(lambda store: store.node.run(REVOKED, start))
        cursor = max(after, *(int(cursor) for cursor, _ in answers))
        fresh: dict[Revocation, None] = {}
        for _, wishes in answers:
            fresh.update(dict.fromkeys(_revocations(wishes)))
        if after == 0:
            self._seen.clear()
        newer = [each for each in fresh if after == 0 or each not in self._seen]
        self._seen = dict.fromkeys(fresh, cursor)
        return cursor, newer

    def keys(self) -> KeyStore:
        """Each key and lock is on the server that its name picks, and there only."""
        return self._keys

    def maintain(self) -> None:
        """Forget revocations that have ended; outcomes end by themselves."""
        self._everywhere(lambda store: store.node.run(FORGET_WISHES))

    def close(self) -> None:
        super().close()
        self._interrupt.set()
        for pushes in self._pushes.values():
            pushes.close()


def _revocations(wishes: Sequence[bytes]) -> list[Revocation]:
    return [Revocation(unpack_id(wish[1:]), wish[:1] == b"1") for wish in wishes]
