"""Messages in this process's memory, for tests and for work that may be lost with the process.

`memory://name`: every transport of one name in one process sees the same messages.
They live as long as the process; a forked child begins with none.
"""

from __future__ import annotations

import heapq
import math
import os
import platform
import threading
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from taskline.clock import SYSTEM_CLOCK, Clock
from taskline.errors import TransportError
from taskline.message import DeadLetter, Delivery, Message, Outcome
from taskline.registry import Spec, options_of
from taskline.transports.base import Capabilities, QueueStats, StoredMessage, Transport

if TYPE_CHECKING:
    from typing_extensions import Self


class _Entry(msgspec.Struct, eq=False):
    """A stored message. `place` orders it within its queue and priority, for ever."""

    id: str
    queue: str
    priority: int
    frame: bytes
    place: int
    since: float
    """Unix seconds: when it was stored or came due."""
    deliveries: int
    state: Literal["ready", "delayed", "leased", "gone"] = "ready"
    lost: int = 0
    token: int = 0
    consumer: str = ""
    lease_end: float = 0.0
    """On the monotonic clock, so that setting the wall clock ends no lease."""


class _Lane:
    """The ready messages of one priority: new ones in a line, returned ones in a heap beside it."""

    __slots__ = ("fresh", "returned")

    def __init__(self) -> None:
        self.fresh: deque[_Entry] = deque()
        self.returned: list[tuple[int, _Entry]] = []

    def take(self, limit: int) -> Iterator[_Entry]:
        """Remove and yield up to `limit` messages, the oldest place first."""
        fresh, returned = self.fresh, self.returned
        while limit and (fresh or returned):
            if returned and not (fresh and fresh[0].place < returned[0][0]):
                entry = heapq.heappop(returned)[1]
            else:
                entry = fresh.popleft()
            if entry.state == "ready":
                limit -= 1
                yield entry

    def show(self) -> Iterator[_Entry]:
        back = ((entry.place, entry) for _, entry in sorted(self.returned))
        line = ((entry.place, entry) for entry in self.fresh)
        return (entry for _, entry in heapq.merge(back, line) if entry.state == "ready")

    def oldest(self) -> float | None:
        """Since when the longest waiting message has been ready, Unix seconds."""
        first = islice((entry for entry in self.fresh if entry.state == "ready"), 1)
        back = (entry for _, entry in self.returned if entry.state == "ready")
        return min((entry.since for entry in chain(first, back)), default=None)


class _Queue:
    __slots__ = ("counts", "lanes")

    def __init__(self) -> None:
        self.counts = {"ready": 0, "delayed": 0, "leased": 0, "dead": 0}
        self.lanes: dict[int, _Lane] = {}

    def ready(self) -> Iterator[_Entry]:
        return chain.from_iterable(lane.show() for lane in self.lanes.values())

    def lane(self, priority: int) -> _Lane:
        lane = self.lanes.get(priority)
        if lane is None:
            # Kept in the order in which lanes are served; there are at most ten.
            lanes = {**self.lanes, priority: _Lane()}
            self.lanes = {key: lanes[key] for key in sorted(lanes, reverse=True)}
            lane = self.lanes[priority]
        return lane


class _Store:
    """All that transports of one name share. Its methods are called under `changed`."""

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.Lock())
        self.waiting = 0
        self.queues: dict[str, _Queue] = {}
        self.entries: dict[str, _Entry] = {}
        self.delayed: list[tuple[float, int, _Entry]] = []
        self.leases: dict[int, _Entry] = {}
        self.timers: list[tuple[float, int]] = []
        """When to look at a lease; an extended one is looked at early and put back."""
        self.dead: dict[str, tuple[DeadLetter, int]] = {}
        """Each with the deliveries that its message had."""
        self.places = 0
        self.tokens = 0

    def queue(self, name: str) -> _Queue:
        queue = self.queues.get(name)
        if queue is None:
            queue = self.queues[name] = _Queue()
        return queue

    def add(self, message: Message, now: float, deliveries: int = 0) -> None:
        header = message.header
        if header.id in self.entries:
            return
        if header.id in self.dead:
            deliveries = max(deliveries, self.dead[header.id][1])
        self.places += 1
        entry = _Entry(
            header.id,
            header.queue,
            header.priority,
            message.frame,
            self.places,
            now,
            max(deliveries, header.deliveries),
        )
        self.entries[header.id] = entry
        queue = self.queue(header.queue)
        if header.eta is not None and header.eta > now:
            self.hold(queue, entry, header.eta)
        else:
            queue.counts["ready"] += 1
            queue.lane(header.priority).fresh.append(entry)

    def hold(self, queue: _Queue, entry: _Entry, due: float) -> None:
        """Keep the entry until `due`."""
        entry.state, entry.since = "delayed", due
        queue.counts["delayed"] += 1
        heapq.heappush(self.delayed, (due, entry.place, entry))

    def put_back(self, entry: _Entry) -> None:
        """Make the entry ready, in the place that it has."""
        queue = self.queue(entry.queue)
        entry.state = "ready"
        queue.counts["ready"] += 1
        heapq.heappush(queue.lane(entry.priority).returned, (entry.place, entry))

    def give_up(self, delivery: Delivery) -> _Entry | None:
        """End the lease of this delivery; None if it has ended already."""
        entry = self.leases.pop(delivery.receipt, None)
        if entry is not None:
            self.queue(entry.queue).counts["leased"] -= 1
        return entry

    def remove(self, entry: _Entry) -> None:
        """Forget an entry; what a heap or line still holds of it is passed over."""
        del self.entries[entry.id]
        entry.state = "gone"
        entry.frame = b""

    def move_on(self, now: float, ticks: float) -> None:
        """Make ready what came due by `now`, and whose lease ended by `ticks`."""
        timers = self.timers
        while timers and timers[0][0] <= ticks:
            token = heapq.heappop(timers)[1]
            entry = self.leases.get(token)
            if entry is None:
                continue
            if entry.lease_end > ticks:
                heapq.heappush(timers, (entry.lease_end, token))
                continue
            del self.leases[token]
            self.queue(entry.queue).counts["leased"] -= 1
            entry.lost += 1
            self.put_back(entry)
        if len(timers) > 2 * len(self.leases) + 1000:
            self.timers = [(entry.lease_end, token) for token, entry in self.leases.items()]
            heapq.heapify(self.timers)
        while self.delayed and self.delayed[0][0] <= now:
            entry = heapq.heappop(self.delayed)[2]
            if entry.state == "delayed":
                self.queue(entry.queue).counts["delayed"] -= 1
                self.put_back(entry)

    def next_event(self, now: float, ticks: float) -> float:
        """Seconds until a message may come due or a lease may end."""
        due = self.delayed[0][0] - now if self.delayed else math.inf
        end = self.timers[0][0] - ticks if self.timers else math.inf
        return min(due, end)

    def waiting_in(self, queue: str) -> list[tuple[float, int, _Entry]]:
        """The delayed messages of a queue, as they will come due."""
        return sorted(
            item for item in self.delayed if item[2].state == "delayed" and item[2].queue == queue
        )

    def take(
        self, names: Sequence[str], limit: int, lease_end: float, consumer: str
    ) -> list[Delivery]:
        """Lease up to `limit` ready messages to the consumer."""
        taken: list[Delivery] = []
        for name in names:
            queue = self.queues.get(name)
            if queue is None or not queue.counts["ready"]:
                continue
            before = len(taken)
            for lane in queue.lanes.values():
                for entry in lane.take(limit - len(taken)):
                    self.tokens = token = self.tokens + 1
                    entry.state = "leased"
                    entry.deliveries += 1
                    entry.token = token
                    entry.consumer = consumer
                    entry.lease_end = lease_end
                    self.leases[token] = entry
                    heapq.heappush(self.timers, (lease_end, token))
                    taken.append(
                        Delivery(entry.id, name, entry.frame, entry.deliveries, entry.lost, token)
                    )
            queue.counts["ready"] -= len(taken) - before
            queue.counts["leased"] += len(taken) - before
        return taken

    def drop_dead(self, id: str) -> int | None:
        """Remove a dead letter; its message's deliveries, or None if there is none."""
        found = self.dead.pop(id, None)
        if found is None:
            return None
        self.queue(found[0].queue).counts["dead"] -= 1
        return found[1]

    def wake(self) -> None:
        if self.waiting:
            self.changed.notify_all()


_stores: dict[str, _Store] = {}


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
        self._store = _stores.setdefault(name, _Store())
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

    def _current(self) -> _Store:
        self._check_open()
        return self._store

    def _move_on(self) -> float:
        """Bring the store to this clock's now, Unix seconds."""
        now = self.clock.time()
        self._store.move_on(now, self.clock.monotonic())
        return now
