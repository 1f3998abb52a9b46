"""The partitions that one member has: what can be handed over, what is held, what to commit.

Bookkeeping without input or output. `changed` guards all of it, and is notified of what
others wait for; methods that say "locked" want the caller to hold it.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import NamedTuple

from confluent_kafka import TopicPartition

from taskline.clock import Clock
from taskline.kafka.marks import METADATA_BYTES, Marks, encode
from taskline.message import Delivery
from taskline.transports.kafka.partition import Partition, Receipt

NOTICED = 0.1
"""Seconds of waiting for the broker that are added to the leases."""


class Written(NamedTuple):
    """What a commit says of one partition."""

    partition: Partition
    marks: Marks
    told: int
    """Below it, all that is finished is said to be."""
    sure: list[int]
    """What the broker knows as finished once the commit has succeeded."""
    place: TopicPartition


class Assignment:
    """See the module. `instance` names the member."""

    def __init__(self, instance: str, clock: Clock) -> None:
        self.instance = instance
        self._clock = clock
        self.changed = threading.Condition()
        self.partitions: dict[tuple[str, int], Partition] = {}
        self.order: list[Partition] = []
        """The same; the next to be served is the first."""
        self.settling = False
        """Receipts are being taken: see `settle`."""
        self.over = False
        """The membership has ended, and all that was held is lost."""
        self._serials = count(1)

    # ---- what comes and goes

    def add(self, partitions: Iterable[Partition]) -> None:
        """These are ours from now on."""
        with self.changed:
            for each in partitions:
                self.partitions[each.topic, each.number] = each
            self._reorder()

    def remove(self, partitions: Iterable[Partition]) -> None:
        """Locked: these are ours no more."""
        for each in partitions:
            del self.partitions[each.topic, each.number]
        self._reorder()

    def end(self) -> None:
        """The membership is over."""
        with self.changed:
            self.over = True
            self.partitions.clear()
            self._reorder()

    def _reorder(self) -> None:
        self.order = list(self.partitions.values())
        for each in self.order:
            each.share = 1 / len(self.order)
        self.changed.notify_all()

    def has(self, partition: Partition) -> bool:
        """Locked: whether it is still ours."""
        return self.partitions.get((partition.topic, partition.number)) is partition

    # ---- handing over

    def take(
        self, queues: Sequence[str], limit: int, until: float, consumer: str
    ) -> tuple[list[Delivery], list[Partition]]:
        """Locked: what can be handed over, under leases that end at `until`.

        If nothing can, the partitions where a commit must come first.
        """
        taken: list[Delivery] = []
        blocked: list[Partition] = []
        for queue in queues:
            for partitions in self._levels(queue):
                for partition in partitions:
                    if len(taken) >= limit:
                        break
                    more = partition.take(
                        limit - len(taken), until, consumer, self._serials, self.instance
                    )
                    taken += more
                    if not more and partition.ready(beyond_reach=True):
                        blocked.append(partition)
                if blocked:
                    break  # so that queues and levels are served in their order
            if blocked and not taken:
                break
        if taken and len(self.order) > 1:
            self.order.append(self.order.pop(0))
        return taken, blocked

    def _levels(self, queue: str) -> Iterable[list[Partition]]:
        """The partitions of a queue, or of all that a pattern matches, the highest level first."""
        pattern = re.compile(queue) if queue.startswith("^") else None
        levels: dict[int, list[Partition]] = {}
        for each in self.order:
            if each.queue == queue or (pattern is not None and pattern.match(each.queue)):
                levels.setdefault(each.level, []).append(each)
        return [levels[level] for level in sorted(levels, reverse=True)]

    def expire(self, now: float) -> int:
        """Locked: take back what nobody renewed in time; returns how many."""
        expired = 0 if self.settling else sum(each.expire(now) for each in self.order)
        if expired:
            self.changed.notify_all()
        return expired

    def recover(self, consumer: str, started: Collection[str]) -> int:
        """Take back what was handed over in the name of `consumer`; returns how many."""
        recovered = 0
        with self.changed:
            for partition in self.order:
                mine = [each for each in partition.held.values() if each.consumer == consumer]
                for held in mine:
                    partition.give_back(held.offset, lost=int(held.id in started))
                recovered += len(mine)
            self.changed.notify_all()
        return recovered

    def held_of(self, queue: str) -> int:
        """How many messages of a queue are in somebody's hands here."""
        with self.changed:
            return sum(len(each.held) for each in self.order if each.queue == queue)

    def holds_any(self) -> bool:
        """Locked: whether anything is in somebody's hands."""
        return any(each.held for each in self.order)

    def forget_ready(self, queue: str) -> None:
        """The queue was purged: finish what nobody holds."""
        with self.changed:
            for each in self.order:
                if each.queue == queue:
                    each.forget_ready()

    # ---- receipts

    @contextmanager
    def settle(self) -> Iterator[None]:
        """Receipts are being taken: no partition is given up before that is over, and no lease
        ends, because who would renew it waits for the broker here. That may take until a whole
        rebalance is over: the broker answers a commit after the JoinGroup that is before it."""
        begun = self._clock.monotonic()
        with self.changed:
            self.settling = True
        try:
            yield
        finally:
            waited = self._clock.monotonic() - begun
            with self.changed:
                self.settling = False
                if waited >= NOTICED:
                    for each in self.order:
                        each.prolong(waited)
                self.changed.notify_all()

    def split(
        self, deliveries: Iterable[Delivery]
    ) -> tuple[dict[Partition, list[Delivery]], list[Delivery]]:
        """Locked: those that are held, by their partitions, and those that are not."""
        mine: dict[Partition, list[Delivery]] = {}
        lost: list[Delivery] = []
        for each in deliveries:
            receipt = each.receipt
            partition = (
                self.partitions.get((receipt.topic, receipt.partition))
                if isinstance(receipt, Receipt) and receipt.member == self.instance
                else None
            )
            if partition is None or not partition.holds(receipt):
                lost.append(each)
            elif partition in mine:
                mine[partition].append(each)
            else:
                mine[partition] = [each]
        return mine, lost

    def keys(self, deliveries: Iterable[Delivery]) -> dict[str, bytes]:
        """The keys of the records of those that are held, by the messages' ids."""
        with self.changed:
            return {
                each.id: entry.key
                for partition, mine in self.split(deliveries)[0].items()
                for each in mine
                if (entry := partition.held.get(each.receipt.offset)) and entry.key is not None
            }

    # ---- committing

    def written(self, partitions: Iterable[Partition], *, closing: bool = False) -> list[Written]:
        """Locked: what to commit. `closing`: nothing of these is handed over after that."""
        found = []
        for each in partitions:
            if each.in_doubt and not closing:
                continue
            marks = each.marks(closing=closing)
            text, told = encode(marks, METADATA_BYTES)
            place = TopicPartition(each.topic, each.number, marks.offset, metadata=text)
            found.append(Written(each, marks, told, list(each.unsure), place))
        return found

    def committed(self, written: Iterable[Written]) -> None:
        """The commit has succeeded."""
        with self.changed:
            for each in written:
                each.partition.committed(each.marks, each.told, each.sure)

    def done(self) -> dict[tuple[str, int], int]:
        """The first unfinished offset of each partition that was committed."""
        with self.changed:
            return {place: each.sure for place, each in self.partitions.items() if each.sure > 0}
