"""Messages in this process's memory, for tests and for work that may be lost with the process.

`memory://name`: every transport of one name in one process sees the same messages.
They live as long as the process; a forked child begins with none.
"""

from __future__ import annotations

import heapq
import os
import platform
from collections.abc import Collection, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from taskline.clock import SYSTEM_CLOCK, Clock
from taskline.errors import TransportError
from taskline.message import DeadLetter, Delivery, Message, Outcome
from taskline.registry import Spec, options_of
from taskline.transports.base import Capabilities, QueueStats, StoredMessage, Transport
from taskline.transports.memory_store import Store

if TYPE_CHECKING:
    from typing_extensions import Self


_stores: dict[str, Store] = {}


def forget(name: str) -> None:
    """Drop the messages of `memory://name`. Transports that are open keep what they see."""
    _stores.pop(name, None)


if hasattr(os, "register_at_fork"):
    # A child that inherited the messages would run them a second time, and may
    # inherit a lock that nobody will ever release.
    os.register_at_fork(after_in_child=_stores.clear)


class MemoryTransport(Transport):
    """A transport without a server or a file. Leases run on the monotonic clock."""

    scheme = "memory"
    capabilities = Capabilities(durable=False)

    def __init__(self, name: str = "", clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__(clock)
        self.name = name
        self._store = _stores.setdefault(name, Store())
        self._interrupted = False
        self._closed = False

    @classmethod
    def from_spec(cls, spec: Spec, clock: Clock) -> Self:
        """`memory://name`, or a mapping with `name`."""
        return cls(options_of(spec, rest="name").get("name", ""), clock)

    def send(self, messages: Sequence[Message]) -> None:
        self._check_open()
        now = self.clock.time()
        store = self._store
        with store.changed:
            for message in messages:
                store.add(message, now)
            store.wake()

    def receive(
        self, queues: Sequence[str], limit: int, lease: float, wait: float, consumer: str
    ) -> list[Delivery]:
        clock, store = self.clock, self._store
        until = clock.monotonic() + wait
        with store.changed:
            while True:
                self._check_open()
                now, ticks = clock.time(), clock.monotonic()
                store.move_on(now, ticks)
                taken = store.take(queues, limit, ticks + lease, consumer)
                if taken or self._interrupted or ticks >= until:
                    self._interrupted = False
                    return taken
                patience = min(until - ticks, store.next_event(now, ticks))
                store.waiting += 1
                try:
                    store.changed.wait(clock.bound(patience))
                finally:
                    store.waiting -= 1

    def interrupt(self) -> None:
        with self._store.changed:
            self._interrupted = True
            self._store.wake()

    def ack(
        self, deliveries: Sequence[Delivery], outcomes: Sequence[Outcome] = ()
    ) -> list[Delivery]:
        lost = []
        store = self._current()
        with store.changed:
            self._move_on()
            for delivery in deliveries:
                entry = store.give_up(delivery)
                if entry is None:
                    lost.append(delivery)
                else:
                    store.remove(entry)
        return lost

    def release(self, deliveries: Sequence[Delivery], delay: float = 0.0) -> list[Delivery]:
        lost = []
        store = self._current()
        with store.changed:
            now = self._move_on()
            for delivery in deliveries:
                entry = store.give_up(delivery)
                if entry is None:
                    lost.append(delivery)
                elif delay > 0:
                    store.hold(store.queue(entry.queue), entry, now + delay)
                else:
                    store.put_back(entry)
            store.wake()
        return lost

    def replace(self, pairs: Sequence[tuple[Delivery, Message]]) -> list[Delivery]:
        lost = []
        store = self._current()
        with store.changed:
            now = self._move_on()
            for delivery, successor in pairs:
                entry = store.give_up(delivery)
                if entry is None:
                    lost.append(delivery)
                else:
                    store.remove(entry)
                    store.add(successor, now, entry.deliveries)
            store.wake()
        return lost

    def extend(self, deliveries: Sequence[Delivery], lease: float) -> list[Delivery]:
        lost = []
        store = self._current()
        with store.changed:
            self._move_on()
            end = self.clock.monotonic() + lease
            for delivery in deliveries:
                entry = store.leases.get(delivery.receipt)
                if entry is None:
                    lost.append(delivery)
                    continue
                if end < entry.lease_end:
                    heapq.heappush(store.timers, (end, entry.token))
                entry.lease_end = end
        return lost

    def bury(self, burials: Sequence[tuple[Delivery, DeadLetter]]) -> list[Delivery]:
        lost = []
        store = self._current()
        with store.changed:
            self._move_on()
            for delivery, letter in burials:
                entry = store.give_up(delivery)
                if entry is None:
                    lost.append(delivery)
                    continue
                store.remove(entry)
                store.drop_dead(letter.id)
                store.dead[letter.id] = (letter, entry.deliveries)
                store.queue(letter.queue).counts["dead"] += 1
        return lost

    def recover(self, consumer: str, started: Collection[str]) -> int:
        store = self._current()
        with store.changed:
            self._move_on()
            held = [entry for entry in store.leases.values() if entry.consumer == consumer]
            for entry in held:
                del store.leases[entry.token]
                store.queue(entry.queue).counts["leased"] -= 1
                entry.lost += entry.id in started
                store.put_back(entry)
            store.wake()
        return len(held)

    def stats(self, queues: Sequence[str] | None = None) -> list[QueueStats]:
        store = self._current()
        with store.changed:
            now = self._move_on()
            names = store.queues if queues is None else queues
            return [self._stats(name, now) for name in sorted(names)]

    def _stats(self, name: str, now: float) -> QueueStats:
        queue = self._store.queues.get(name)
        if queue is None:
            return QueueStats(queue=name)
        since = [lane.oldest() for lane in queue.lanes.values()]
        ages = [now - moment for moment in since if moment is not None]
        return QueueStats(queue=name, oldest=max(ages, default=None), **queue.counts)

    def peek(self, queue: str, limit: int = 10, offset: int = 0) -> list[StoredMessage]:
        store = self._current()
        with store.changed:
            now = self._move_on()
            found = store.queues.get(queue)
            if found is None:
                return []
            # What is held comes back, if ever, when its lease ends: it stands behind what waits.
            to_unix = now - self.clock.monotonic()
            held = sorted(
                (entry.lease_end + to_unix, entry.place, entry)
                for entry in store.leases.values()
                if entry.queue == queue
            )
            line = chain(
                ((None, entry) for entry in found.ready()),
                ((due, entry) for due, _, entry in chain(store.waiting_in(queue), held)),
            )
            return [
                StoredMessage(
                    id=entry.id,
                    queue=queue,
                    state=entry.state,
                    due=due,
                    deliveries=entry.deliveries,
                    frame=entry.frame,
                )
                for due, entry in islice(line, offset, offset + limit)
            ]

    def purge(self, queue: str) -> int:
        store = self._current()
        with store.changed:
            self._move_on()
            found = store.queues.get(queue)
            if found is None:
                return 0
            waiting = [*found.ready(), *(entry for _, _, entry in store.waiting_in(queue))]
            for entry in waiting:
                store.remove(entry)
            found.lanes.clear()
            found.counts["ready"] = found.counts["delayed"] = 0
            return len(waiting)

    def delete(self, ids: Sequence[str]) -> list[str]:
        deleted = []
        store = self._current()
        with store.changed:
            self._move_on()
            for key in ids:
                entry = store.entries.get(key)
                if entry is not None and entry.state != "leased":
                    store.queue(entry.queue).counts[entry.state] -= 1
                    store.remove(entry)
                    deleted.append(key)
        return deleted

    def dead_letters(
        self, queue: str | None = None, limit: int = 100, offset: int = 0
    ) -> list[DeadLetter]:
        store = self._current()
        with store.changed:
            newest_first = (letter for letter, _ in reversed(store.dead.values()))
            wanted = (letter for letter in newest_first if queue is None or letter.queue == queue)
            return list(islice(wanted, offset, offset + limit))

    def dead_letter(self, id: str) -> DeadLetter | None:
        store = self._current()
        with store.changed:
            found = store.dead.get(id)
            return None if found is None else found[0]

    def requeue(self, messages: Sequence[Message]) -> list[str]:
        requeued = []
        store = self._current()
        with store.changed:
            now = self.clock.time()
            for message in messages:
                deliveries = store.drop_dead(message.header.id)
                if deliveries is not None:
                    store.add(message, now, deliveries)
                    requeued.append(message.header.id)
            store.wake()
        return requeued

    def purge_dead(self, ids: Sequence[str]) -> int:
        store = self._current()
        with store.changed:
            return sum(store.drop_dead(key) is not None for key in ids)

    def ping(self) -> None:
        self._check_open()

    def info(self) -> dict[str, Any]:
        store = self._current()
        with store.changed:
            return {
                "transport": self.scheme,
                "address": f"memory://{self.name}",
                "version": f"Python {platform.python_version()}",
                "messages": len(store.entries),
                "dead": len(store.dead),
            }

    def close(self) -> None:
        with self._store.changed:
            self._closed = True
            self._store.wake()

    def _check_open(self) -> None:
        if self._closed:
            raise TransportError("the memory transport is closed: open another", retryable=False)

    def _current(self) -> Store:
        self._check_open()
        return self._store

    def _move_on(self) -> float:
        """Bring the store to this clock's now, Unix seconds."""
        now = self.clock.time()
        self._store.move_on(now, self.clock.monotonic())
        return now
