"""Keys that a process waits for: subscribed to and read on one connection."""

from __future__ import annotations

import select
from collections.abc import Collection, Iterator

from taskline.chunking import chunks
from taskline.redis.connection import Connection, Lost, Push, Reply, ServerError, pack
from taskline.redis.interrupt import Interrupt
from taskline.redis.node import Node

BATCH = 1000
FORGET_ABOVE = 100
"""Subscriptions that nobody needs any more are ended when there are more."""


class Pushes:
    """One thread at a time. Speaks RESP3, in which pushes and answers share a connection."""

    subscribe, unsubscribe, message = "SSUBSCRIBE", "SUNSUBSCRIBE", b"smessage"

    def __init__(self, node: Node) -> None:
        self._node = node
        self._connection: Connection | None = None
        self._subscribed: set[bytes] = set()
        self._watched: set[bytes] = set()
        """Keys that the last look was for: what became of them since was pushed."""
        self._arrived: dict[bytes, bytes] = {}
        self._next_check = 0.0

    def look(
        self, keys: Collection[bytes], now: float, recheck: float
    ) -> Iterator[tuple[bytes, bytes]]:
        """What is known of these keys: their values now, or pushed since they were asked for.

        A key is read after it was subscribed to, so that nothing is missed; all
        are read again every `recheck` seconds, and on a new connection.
        """
        try:
            if self._connection is not None:
                try:
                    yield from self._look(keys, now, recheck)
                    return
                except Lost:
                    self.close()
            yield from self._look(keys, now, recheck)
        except (Lost, ServerError) as error:
            self.close()
            raise self._node.translate(error) from None

    def _look(
        self, keys: Collection[bytes], now: float, recheck: float
    ) -> Iterator[tuple[bytes, bytes]]:
        connection = self._connection
        if connection is None:
            connection = self._connection = self._node.connect(protocol=3)
        while connection.pending:
            self._take(connection.read())
        arrived, self._arrived = self._arrived, {}
        yield from ((key, arrived[key]) for key in self._watched if key in arrived)
        if now >= self._next_check:
            self._next_check = now + recheck
            self._watched.clear()
        commands = self._subscribe(keys)
        fresh = [key for key in keys if key not in self._watched]
        if not fresh and commands:
            connection.send(commands)
        for some in chunks(fresh, BATCH):
            connection.send(commands + pack(["MGET", *some]))
            commands = b""
            values = self._answer(connection)
            yield from ((k, v) for k, v in zip(some, values, strict=True) if v is not None)
        self._watched = set(keys)

    def _subscribe(self, keys: Collection[bytes]) -> bytes:
        """The commands that make these keys be pushed."""
        commands = []
        stale = self._subscribed.difference(keys)
        if len(stale) > FORGET_ABOVE:
            commands.append(pack([self.unsubscribe, *stale]))
            self._subscribed -= stale
        new = [key for key in keys if key not in self._subscribed]
        for some in chunks(new, BATCH):
            commands.append(pack([self.subscribe, *some]))
            self._subscribed.update(some)
        return b"".join(commands)

    def _answer(self, connection: Connection) -> Reply:
        """The next reply that is no push."""
        while isinstance(reply := connection.read(), Push):
            self._take(reply)
        return reply

    def _take(self, push: Reply) -> None:
        """Keep what a message brought; confirmations of subscriptions tell nothing new."""
        if push[0] == self.message:
            self._arrived[push[1]] = push[2]

    def known(self, keys: Collection[bytes]) -> None:
        """Nobody waits for these any more: who asks for one again has it read."""
        self._watched.difference_update(keys)

    def watching(self) -> int | None:
        """The descriptor that tells of a push; None when one has come, or nothing is watched."""
        connection = self._connection
        if connection is None or self._arrived or connection.pending:
            return None
        return connection.fileno()

    def stirred(self) -> None:
        """The descriptor told of something."""
        if self._connection is not None and not self._connection.pending:
            self._next_check = 0.0  # It was closed, perhaps; asking will tell.

    def close(self) -> None:
        """End the connection; the next look makes another."""
        connection, self._connection = self._connection, None
        self._subscribed.clear()
        self._watched.clear()
        if connection is not None:
            connection.close()


def wait_for_push(all_pushes: Collection[Pushes], interrupt: Interrupt, seconds: float) -> None:
    """Return when something was pushed, on an interrupt, or after some time."""
    watched = {each.watching(): each for each in all_pushes}
    if None in watched:
        return
    poll = select.poll()
    poll.register(interrupt.fileno(), select.POLLIN)
    for descriptor in watched:
        if descriptor is not None:
            poll.register(descriptor, select.POLLIN)
    for descriptor, _ in poll.poll(seconds * 1000):
        if descriptor in watched:
            watched[descriptor].stirred()
