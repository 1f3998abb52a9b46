"""Waiting for messages: blocked on the servers' bells, and woken from other threads.

A bell is a sorted set with one member while somebody should look into its queue.
BZPOPMIN hands it to one waiter alone, so a message wakes one worker, not all.
"""

from __future__ import annotations

import math
import select
from collections.abc import Sequence

from taskline.errors import TransportError
from taskline.redis.connection import Connection, Lost, ServerError, pack
from taskline.redis.interrupt import Interrupt
from taskline.redis.node import ELSEWHERE, Node

GRACE = 2.0
"""Seconds after which the server ends a wait that we did not. It looks at its clock only
ten times a second, and we have messages that come due in between."""


class Listener:
    """A connection of its own, blocked on the bells of one node."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._connection: Connection | None = None
        self._client = 0
        self._asking: Sequence[str] = ()

    def ask(self, queues: Sequence[str], seconds: float) -> int:
        """Begin to wait; returns the descriptor that tells of an answer."""
        if self._connection is not None and self._connection.ended:
            self.close()
        try:
            if self._connection is None:
                self._connection = self.node.connect()
                self._client = self._connection.call(pack(["CLIENT", "ID"]))
            bells = [self.node.tag + b"w:" + queue.encode() for queue in queues]
            self._connection.send(pack(["BZPOPMIN", *bells, seconds + GRACE]))
        except (Lost, ServerError) as error:
            raise self._fail(error) from None
        return self._connection.fileno()

    def answer(self) -> None:
        """Read the answer, which is a bell or nothing: who waited looks in either case."""
        assert self._connection is not None
        try:
            self._connection.read()
        except Lost:
            # Whoever looks now learns whether the server is there.
            self.close()
        except ServerError as error:
            if error.code not in ELSEWHERE:
                raise self._fail(error) from None
            self.close()

    def give_up(self) -> None:
        """End the wait before its time."""
        try:
            self.node.command("CLIENT", "UNBLOCK", self._client)
        except TransportError:
            # Not allowed, or not connected: without the connection, nothing is waited for.
            self.close()
        else:
            self.answer()

    def _fail(self, error: Exception) -> TransportError:
        self.close()
        return self.node.translate(error)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def wait_for_bell(
    listeners: Sequence[Listener], queues: Sequence[str], interrupt: Interrupt, seconds: float
) -> list[tuple[Listener, TransportError]]:
    """Wait for a bell of any node, for the interrupt, or for some seconds.

    Returns the listeners that failed, with their errors.
    """
    failed: list[tuple[Listener, TransportError]] = []
    waiting: dict[int, Listener] = {}
    poll = select.poll()
    poll.register(interrupt.fileno(), select.POLLIN)
    for listener in listeners:
        try:
            descriptor = listener.ask(queues, seconds)
        except TransportError as error:
            failed.append((listener, error))
        else:
            waiting[descriptor] = listener
            poll.register(descriptor, select.POLLIN)
    patience = 0 if failed else math.ceil(seconds * 1000)
    ready = {descriptor for descriptor, _ in poll.poll(patience)}
    for descriptor, listener in waiting.items():
        try:
            if descriptor in ready:
                listener.answer()
            else:
                listener.give_up()
        except TransportError as error:
            failed.append((listener, error))
    return failed
