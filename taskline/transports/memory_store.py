"""The messages of one memory transport: where they wait, and when they move on.

Taking and giving back a message costs the same however many there are, except
that what comes back out of turn finds its place in a heap.
"""

from __future__ import annotations

import heapq
import math
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Literal

import msgspec

from taskline.message import DeadLetter, Delivery, Message


class Entry(msgspec.Struct, eq=False):
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


class Lane:
    """The ready messages of one priority: new ones in a line, returned ones in a heap beside it."""

    __slots__ = ("fresh", "returned")

    def __init__(self) -> None:
        self.fresh: deque[Entry] = deque()
        self.returned: list[tuple[int, Entry]] = []

    def take(self, limit: int) -> Iterator[Entry]:
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

    def show(self) -> Iterator[Entry]:
        """The ready messages, in the order in which they will be taken."""
        back = ((entry.place, entry) for _, entry in sorted(self.returned))
        line = ((entry.place, entry) for entry in self.fresh)
        return (entry for _, entry in heapq.merge(back, line) if entry.state == "ready")

    def oldest(self) -> float | None:
        """Since when the longest waiting message has been ready, Unix seconds."""
        first = islice((entry for entry in self.fresh if entry.state == "ready"), 1)
        back = (entry for _, entry in self.returned if entry.state == "ready")
        return min((entry.since for entry in chain(first, back)), default=None)


class Queue:
    """The ready messages of one queue, and how many it has in each state."""

    __slots__ = ("counts", "lanes")

    def __init__(self) -> None:
        self.counts = {"ready": 0, "delayed": 0, "leased": 0, "dead": 0}
        self.lanes: dict[int, Lane] = {}

    def ready(self) -> Iterator[Entry]:
        """The ready messages, in the order in which they will be taken."""
        return chain.from_iterable(lane.show() for lane in self.lanes.values())

    def lane(self, priority: int) -> Lane:
        """The lane of this priority."""
        lane = self.lanes.get(priority)
        if lane is None:
            # Kept in the order in which lanes are served; there are at most ten.
            lanes = {**self.lanes, priority: Lane()}
            self.lanes = {key: lanes[key] for key in sorted(lanes, reverse=True)}
            lane = self.lanes[priority]
        return lane


class Store:
    """All that transports of one name share. Its methods are called under `changed`."""

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.Lock())
        self.waiting = 0
        self.queues: dict[str, Queue] = {}
        self.entries: dict[str, Entry] = {}
        self.delayed: list[tuple[float, int, Entry]] = []
        self.leases: dict[int, Entry] = {}
        self.timers: list[tuple[float, int]] = []
        """When to look at a lease; an extended one is looked at early and put back."""
        self.dead: dict[str, tuple[DeadLetter, int]] = {}
        """Each with the deliveries that its message had."""
        self.places = 0
        self.tokens = 0

    def queue(self, name: str) -> Queue:
        queue = self.queues.get(name)
        if queue is None:
            queue = self.queues[name] = Queue()
        return queue

    def add(self, message: Message, now: float, deliveries: int = 0) -> None:
        header = message.header
        if header.id in self.entries:
            return
        if header.id in self.dead:
            deliveries = max(deliveries, self.dead[header.id][1])
        self.places += 1
        entry = Entry(
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

    def hold(self, queue: Queue, entry: Entry, due: float) -> None:
        """Keep the entry until `due`."""
        entry.state, entry.since = "delayed", due
        queue.counts["delayed"] += 1
        heapq.heappush(self.delayed, (due, entry.place, entry))

    def put_back(self, entry: Entry) -> None:
        """Make the entry ready, in the place that it has."""
        queue = self.queue(entry.queue)
        entry.state = "ready"
        queue.counts["ready"] += 1
        heapq.heappush(queue.lane(entry.priority).returned, (entry.place, entry))

    def give_up(self, delivery: Delivery) -> Entry | None:
        """End the lease of this delivery; None if it has ended already."""
        entry = self.leases.pop(delivery.receipt, None)
        if entry is not None:
            self.queue(entry.queue).counts["leased"] -= 1
        return entry

    def remove(self, entry: Entry) -> None:
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

    def waiting_in(self, queue: str) -> list[tuple[float, int, Entry]]:
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
