"""Messages in Redis, for many processes of many machines.

Every call is one script on the server, which takes a whole batch and reads the
server's clock. A receipt has a token that is never used twice.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from taskline.clock import SYSTEM_CLOCK, Clock
from taskline.message import DeadLetter, Delivery, Message, Outcome
from taskline.redis.interrupt import Interrupt
from taskline.redis.location import Location, locate
from taskline.redis.node import Node
from taskline.registry import Spec
from taskline.transports.base import QueueStats, StoredMessage, Transport
from taskline.transports.redis.store import Store
from taskline.transports.redis.wake import Listener, wait_for_bell

if TYPE_CHECKING:
    from typing_extensions import Self

    from taskline.backends.base import Backend

RECHECK = 1.0
"""Seconds after which a waiter looks though nothing woke it."""


class RedisTransport(Transport):
    """One Redis server; see the module's docstring."""

    scheme = "redis"

    def __init__(self, location: Location, clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__(clock)
        self.location = location
        self._node = Node(location, clock)
        self._store = Store(self._node)
        self._listener = Listener(self._node)
        self._interrupt = Interrupt()

    @classmethod
    def from_spec(cls, spec: Spec, clock: Clock) -> Self:
        """A URL, or a mapping with `nodes`; see `taskline.redis.location.locate`."""
        return cls(locate(spec)[0], clock)

    def send(self, messages: Sequence[Message]) -> None:
        self._store.send(messages, self.location.timeout)

    def receive(
        self, queues: Sequence[str], limit: int, lease: float, wait: float, consumer: str
    ) -> list[Delivery]:
        clock, interrupt = self.clock, self._interrupt
        until = clock.monotonic() + wait
        while True:
            taken, next_event = self._store.claim(queues, limit, lease, consumer)
            interrupted = interrupt.spent()
            left = until - clock.monotonic()
            if taken or interrupted or left <= 0:
                return taken
            seconds = min(left, next_event, RECHECK)
            if seconds > 0:
                wait_for_bell([self._listener], queues, interrupt, clock.bound(seconds))

    def interrupt(self) -> None:
        self._interrupt.set()

    def ack(
        self, deliveries: Sequence[Delivery], outcomes: Sequence[Outcome] = ()
    ) -> list[Delivery]:
        return self._store.ack(deliveries, outcomes)

    def shares(self, backend: Backend) -> bool:
        """Whether the backend's store is this one."""
        other = getattr(backend, "location", None)
        return isinstance(other, Location) and other.store == self.location.store

    def release(self, deliveries: Sequence[Delivery], delay: float = 0.0) -> list[Delivery]:
        return self._store.release(deliveries, delay)

    def replace(self, pairs: Sequence[tuple[Delivery, Message]]) -> list[Delivery]:
        return self._store.replace(pairs)

    def extend(self, deliveries: Sequence[Delivery], lease: float) -> list[Delivery]:
        return self._store.extend(deliveries, lease)

    def bury(self, burials: Sequence[tuple[Delivery, DeadLetter]]) -> list[Delivery]:
        return self._store.bury(burials)

    def recover(self, consumer: str, started: Collection[str]) -> int:
        return self._store.recover(consumer, started)

    def stats(self, queues: Sequence[str] | None = None) -> list[QueueStats]:
        if queues is not None and not queues:
            return []
        return sorted(self._store.stats(queues), key=lambda each: each.queue)

    def peek(self, queue: str, limit: int = 10, offset: int = 0) -> list[StoredMessage]:
        return self._store.peek(queue, limit, offset)

    def purge(self, queue: str) -> int:
        return self._store.purge(queue)

    def delete(self, ids: Sequence[str]) -> list[str]:
        return self._store.delete(ids)

    def dead_letters(
        self, queue: str | None = None, limit: int = 100, offset: int = 0
    ) -> list[DeadLetter]:
        return self._store.dead_letters(queue, limit, offset)

    def dead_letter(self, id: str) -> DeadLetter | None:
        return self._store.dead_letter(id)

    def requeue(self, messages: Sequence[Message]) -> list[str]:
        return self._store.requeue(messages, self.location.timeout)

    def purge_dead(self, ids: Sequence[str]) -> int:
        return self._store.purge_dead(ids)

    def ping(self) -> None:
        self._node.check()

    def info(self) -> dict[str, Any]:
        return {"transport": self.scheme, "address": str(self.location), **self._node.about()}

    def maintain(self) -> None:
        """Make ready what came due and what was lost in all queues, also those nobody serves."""
        self._store.maintain()

    def close(self) -> None:
        self._node.close()
        self._interrupt.set()
        self._listener.close()
