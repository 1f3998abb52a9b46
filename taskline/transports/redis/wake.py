"""Waiting for messages: blocked on the servers' bells, and woken from other threads.

A bell is a sorted set with one member while somebody should look into its queue.
BZPOPMIN hands it to one waiter alone, so a message wakes one worker, not all. A
command that is sent along is carried out as soon as the wait is over, however it
ends: so the look itself costs no further round trip.
"""

from __future__ import annotations

import math
import select
from collections.abc import Sequence

from taskline.errors import TransportError
from taskline.redis.connection import Connection, Lost, Reply, ServerError, pack
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
        self._sent_along = False

    def ask(self, queues: Sequence[str], seconds: float, then: bytes = b"") -> int:
        """Begin to wait; returns the descriptor that tells of an answer.

        `then` is a packed command that is sent along.
        """
        if self._connection is not None and self._connection.ended:
            self.close()
        try:
            if self._connection is None:
                self._connection = self.node.connect()
                self._client = self._connection.call(pack(["CLIENT", "ID"]))
            bells = [self.node.tag + b"w:" + queue.encode() for queue in queues]
            self._sent_along = bool(then)
            self._connection.send(pack(["BZPOPMIN", *bells, seconds + GRACE]) + then)
        except (Lost, ServerError) as error:
            raise self._fail(error) from None
        return self._connection.fileno()

    def answer(self) -> Reply:
        """Read the answer, which is a bell or nothing: who waited looks in either case.

        Returns the answer to what was sent along; None if there is none.
        """
        assert self._connection is not None
        try:
            self._connection.read()
            if self._sent_along:
                return self._connection.read()
        except Lost:
            # Whoever looks now learns whether the server is there.
            self.close()
        except ServerError as error:
            if error.code not in ELSEWHERE and error.code != "NOSCRIPT":
                raise self._fail(error) from None
            self.close()
        return None

    def give_up(self) -> Reply:
        """End the wait before its time; returns what `answer` does."""
        assert self._connection is not None
        poll = select.poll()
        poll.register(self._connection.fileno(), select.POLLIN)
        clock = self.node.clock
        until = clock.monotonic() + self.node.location.timeout
        try:
            # The server may not have come to the wait yet, which is on another connection.
            while not self.node.command("CLIENT", "UNBLOCK", self._client):
                if poll.poll(1):
                    break
                if clock.monotonic() > until:
                    self.close()
                    return None
        except TransportError:
            # Not allowed, or not connected: without the connection, nothing is waited for.
            self.close()
            return None
        return self.answer()

    def _fail(self, error: Exception) -> TransportError:
        self.close()
        return self.node.translate(error)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def wait_and_ask(
    listener: Listener, queues: Sequence[str], then: bytes, interrupt: Interrupt, seconds: float
) -> Reply:
    """Wait for a bell, for the interrupt, or for some seconds; returns the answer to `then`.

    None if there is no answer. Raises `TransportError`.
    """
    descriptor = listener.ask(queues, seconds, then)
    poll = select.poll()
    poll.register(interrupt.fileno(), select.POLLIN)
    poll.register(descriptor, select.POLLIN)
    ready = {which for which, _ in poll.poll(math.ceil(seconds * 1000))}
    return listener.answer() if descriptor in ready else listener.give_up()


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
