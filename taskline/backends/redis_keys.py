"""Locks, keys and counters on a Redis server, by the server's clock.

A call is sent once more when its connection breaks. Calls bear a token by which
the server knows a repeated one, except `delete`, which then may tell that there
was no such key, and `take`, which may take twice. An `increment` counts twice only
if another counted in between.
"""

from __future__ import annotations

import math
import os
import select
from collections.abc import Sequence

from taskline.backends.keys import (
    GREATEST,
    SMALLEST,
    KeyStore,
    Lease,
    Watch,
    not_a_number,
    too_large,
)
from taskline.backends.permits import AHEAD, Ask, Claim, Place, Taken
from taskline.clock import Clock
from taskline.redis.connection import Connection, Lost, Reply, ServerError, Word, pack
from taskline.redis.interrupt import Interrupt
from taskline.redis.node import Node
from taskline.redis.packing import milliseconds
from taskline.redis.script import Script

SET = Script("key_set")
SWAP = Script("key_swap")
ADD = Script("key_add")
EXPIRE = Script("key_expire", when_full=True)
TAKE = Script("bucket_take", when_full=True)
HOLD = Script("places_hold", when_full=True)
PLACES = Script("places_list", when_full=True)
ACQUIRE = Script("lock_acquire", "lock")
RENEW = Script("lock_renew", "lock", when_full=True)
RELEASE = Script("lock_release", "lock", when_full=True)
HOLDER = Script("lock_holder", "lock", when_full=True)


class RedisKeys(KeyStore):
    """The key store of one backend."""

    def __init__(self, node: Node, clock: Clock) -> None:
        self._node = node
        self._clock = clock
        self._patience = node.location.timeout

    def time(self) -> float:
        seconds, microseconds = self._command("TIME")
        return int(seconds) + int(microseconds) / 1_000_000

    def get(self, key: str) -> bytes | None:
        value: bytes | None = self._command("HGET", self._key(key), "v")
        return value

    def set(self, key: str, value: bytes, ttl: float | None, *, if_absent: bool = False) -> bool:
        flag = b"1" if if_absent else b""
        return bool(self._run(SET, key, value, os.urandom(8), milliseconds(ttl), flag))

    def swap(
        self, key: str, expected: bytes | None, value: bytes | None, ttl: float | None
    ) -> bool:
        if expected is None:
            if value is None:
                return self.get(key) is None
            return self.set(key, value, ttl, if_absent=True)
        new = (b"", b"0") if value is None else (value, b"1")
        token = os.urandom(8)
        return bool(self._run(SWAP, key, expected, *new, token, milliseconds(ttl)))

    def delete(self, key: str) -> bool:
        return bool(self._command("UNLINK", self._key(key)))

    def increment(self, key: str, by: int, ttl: float | None) -> int:
        if not SMALLEST <= by <= GREATEST:
            raise too_large(key)
        answer = self._run(ADD, key, by, os.urandom(8), milliseconds(ttl))
        if answer == b"number":
            raise not_a_number(key)
        if answer == b"range":
            raise too_large(key)
        return int(answer)

    def ttl(self, key: str) -> float | None:
        left: int = self._command("PTTL", self._key(key))
        if left < 0:
            return math.inf if left == -1 else None
        return left / 1000

    def expire(self, key: str, ttl: float | None) -> bool:
        return bool(self._run(EXPIRE, key, milliseconds(ttl)))

    def take(self, asks: Sequence[Ask]) -> list[Taken]:
        words: list[Word] = []
        for ask in asks:
            ahead = min(ask.ahead, AHEAD)
            words += [ask.bucket, repr(ask.rate), repr(ask.burst), ask.wanted, repr(ahead)]
            words += [repr(ask.span), repr(ask.at)]
        answers: list[list[bytes]] = self._run(TAKE, *words)
        return [Taken(int(number), float(left), float(at)) for number, left, at in answers]

    def hold(self, claims: Sequence[Claim], ttl: float) -> list[list[str]]:
        words: list[Word] = [milliseconds(ttl)]
        for claim in claims:
            words += [claim.name, claim.limit]
            for group in (claim.freed, claim.renewed, claim.wanted):
                words.append(len(group))
                words += [word for holder in group for word in holder]
        answers: list[list[bytes]] = self._run(HOLD, *words)
        return [[each.decode() for each in held] for held in answers]

    def places(self, name: str) -> list[Place]:
        answers: list[tuple[bytes, bytes, int]] = self._run(PLACES, name)
        return [Place(key.decode(), run.decode(), left / 1000) for key, run, left in answers]

    def acquire(self, name: str, token: str, ttl: float) -> Lease:
        return _lease(self._run(ACQUIRE, name, token, milliseconds(ttl)))

    def renew(self, name: str, token: str, ttl: float) -> bool:
        return bool(self._run(RENEW, name, token, milliseconds(ttl)))

    def release(self, name: str, token: str) -> bool:
        again = (name, token, b"1")
        answer = self._node.run(RELEASE, name, token, b"", patience=self._patience, again=again)
        return bool(answer)

    def holder(self, name: str) -> Lease | None:
        answer = self._run(HOLDER, name, b"")
        return None if answer is None else _lease(answer)

    def watch(self, name: str) -> Watch:
        return _RedisWatch(self._node, self._clock, self._node.tag + b"l:" + name.encode())

    def _key(self, key: str) -> bytes:
        return self._node.tag + b"g:" + key.encode()

    def _run(self, script: Script, *args: Word) -> Reply:
        return self._node.run(script, *args, patience=self._patience)

    def _command(self, *words: Word) -> Reply:
        return self._node.command(*words, patience=self._patience)


def _lease(answer: Reply) -> Lease:
    token, fence, left = answer
    return Lease(token.decode(), int(fence), left / 1000)


class _RedisWatch(Watch):
    """A connection of its own, subscribed to what a release publishes."""

    def __init__(self, node: Node, clock: Clock, channel: bytes) -> None:
        self._node = node
        self._clock = clock
        self._channel = channel
        self._interrupt = Interrupt()
        self._connection = self._subscribe()

    def _subscribe(self) -> Connection:
        try:
            connection = self._node.connect()
        except (Lost, ServerError) as error:
            raise self._node.translate(error) from None
        try:
            connection.call(pack(["SSUBSCRIBE", self._channel]))
        except (Lost, ServerError) as error:
            connection.close()
            raise self._node.translate(error) from None
        return connection

    def wait(self, seconds: float) -> None:
        connection = self._connection
        if not connection.pending:
            poll = select.poll()
            poll.register(self._interrupt.fileno(), select.POLLIN)
            poll.register(connection.fileno(), select.POLLIN)
            ready = dict(poll.poll(math.ceil(self._clock.bound(seconds) * 1000)))
            if connection.fileno() in ready and not connection.pending:
                # It was closed: what was published meanwhile is unknown, so look.
                connection.close()
                self._connection = self._subscribe()
                return
        while connection.pending:
            connection.read()

    def interrupt(self) -> None:
        self._interrupt.set()

    def close(self) -> None:
        self._connection.close()
