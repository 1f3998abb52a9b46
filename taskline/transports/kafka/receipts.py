"""Taking receipts: commits and transactions that tell the broker what is finished.

All of it is called by the worker's I/O thread. The consumer is used by the member's
thread alone, which is asked through `Calls`.

A member that was put out of its group is refused by the broker. After a refusal that may
come from a rebalance, it is waited what becomes of the partitions, and tried again.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from taskline.clock import Clock
from taskline.errors import TransportError
from taskline.kafka.client import new_producer
from taskline.kafka.errors import BEHIND, FENCED, REFUSED, asking, code_of, translate
from taskline.kafka.location import Location
from taskline.message import Delivery
from taskline.transports.kafka.assignment import Assignment, Written
from taskline.transports.kafka.partition import Partition
from taskline.transports.kafka.sender import Outgoing, cause, write

if TYPE_CHECKING:
    from confluent_kafka import Consumer, Producer

log = logging.getLogger("taskline.kafka")

T = TypeVar("T")

VERDICT = 0.05
"""Seconds between two looks at what became of a partition."""


class _Call:
    """Something that the I/O thread wants from the consumer."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.work: Callable[[], Any] | None = work
        self.result: Any = None
        self.error: BaseException | None = None
        self.done = threading.Event()

    def run(self) -> None:
        work, self.work = self.work, None
        try:
            if work is not None:
                self.result = work()
        except BaseException as error:
            self.error = error
        self.done.set()


class Calls:
    """What the member's thread is to do between two polls."""

    def __init__(self, location: Location, changed: threading.Condition) -> None:
        self._location = location
        self._changed = changed
        self._waiting: deque[_Call] = deque()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def ask(self, work: Callable[[], T]) -> T:
        """Have the member's thread do something with the consumer, and wait for it."""
        call = _Call(work)
        self._waiting.append(call)
        with self._changed:
            self._changed.notify_all()
        if not call.done.wait(2 * self._location.timeout):
            call.work = None  # not begun: never
            raise TransportError(
                f"Kafka at {self._location.brokers} has not answered within "
                f"{2 * self._location.timeout:g} s"
            )
        if call.error is not None:
            raise call.error
        return cast("T", call.result)

    def answer(self) -> bool:
        """In the member's thread: do what waits; returns whether there was any."""
        some = bool(self._waiting)
        while self._waiting:
            self._waiting.popleft().run()
        return some


def write_down(consumer: Consumer, places: list[TopicPartition]) -> None:
    """Commit, in the member's thread."""
    for each in consumer.commit(offsets=places, asynchronous=False) or ():
        if each.error is not None:
            raise KafkaException(each.error)


def _all_of(mine: dict[Partition, list[Delivery]]) -> list[Delivery]:
    return [each for some in mine.values() for each in some]


class Receipts:
    """See the module."""

    def __init__(
        self,
        location: Location,
        clock: Clock,
        consumer: Consumer,
        assignment: Assignment,
        calls: Calls,
    ) -> None:
        self._location = location
        self._clock = clock
        self._consumer = consumer
        self._assignment = assignment
        self._changed = assignment.changed
        self._calls = calls
        self._producer: Producer | None = None

    def ack(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Done; returns those that were lost. A call that raised may be repeated."""
        assignment = self._assignment
        with assignment.settle():
            with self._changed:
                mine, lost = assignment.split(deliveries)
                for partition, some in mine.items():
                    partition.finish([each.receipt.offset for each in some])
            for gone in self.commit(list(mine)) if mine else ():
                lost += mine[gone]
        return lost

    def extend(self, deliveries: Sequence[Delivery], lease: float) -> list[Delivery]:
        """Renew; asks the broker whether this is still a member of the group.

        Where it does not answer they are renewed all the same: as long as this is a member nobody
        else gets these messages, and else the broker refuses its receipts.
        """
        self._renew(deliveries, lease)
        self._verify(deliveries)
        return self._renew(deliveries, lease)

    def _renew(self, deliveries: Sequence[Delivery], lease: float) -> list[Delivery]:
        """Have those leases that have not ended end later; returns those that have."""
        until = self._clock.monotonic() + lease
        with self._changed:
            mine, lost = self._assignment.split(deliveries)
            for partition, some in mine.items():
                for each in some:
                    held = partition.held.get(each.receipt.offset)
                    if held is not None:
                        held.until = until
        return lost

    def give_back(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Ready again, here; asks the broker whether this is still a member of the group."""
        self._verify(deliveries)
        with self._changed:
            mine, lost = self._assignment.split(deliveries)
            for partition, some in mine.items():
                for each in some:
                    partition.give_back(each.receipt.offset)
            self._changed.notify_all()
        with self._assignment.settle():
            self.commit(list(mine))  # their deliveries: not to be counted twice after a crash
        return lost

    def move(
        self, deliveries: Sequence[Delivery], make: Callable[[Delivery], Outgoing]
    ) -> list[Delivery]:
        """In one transaction: finish these messages and write one record for each."""
        with self._assignment.settle():
            with self._changed:
                mine, lost = self._assignment.split(deliveries)
            return lost + self._transact(_all_of(mine), make) if mine else lost

    def _verify(self, deliveries: Sequence[Delivery]) -> None:
        """Commit as things are: who was put out of the group, paused say, learns of it."""
        touched = self._touched(deliveries)
        if touched:
            with self._assignment.settle():
                self.commit(touched)

    def _touched(self, deliveries: Sequence[Delivery]) -> list[Partition]:
        """The partitions of those that are held."""
        with self._changed:
            return list(self._assignment.split(deliveries)[0])

    def commit(self, partitions: Sequence[Partition]) -> list[Partition]:
        """Tell the broker the state of these partitions; returns those that are ours no more."""
        end = float("inf")
        while True:
            with self._changed:
                there = [each for each in partitions if self._assignment.has(each)]
                written = self._assignment.written(there)
            if written:
                places = [each.place for each in written]
                try:
                    self._calls.ask(partial(write_down, self._consumer, places))
                except KafkaException as error:
                    # From the first refusal on, which may have taken long to come.
                    end = min(end, self._clock.monotonic() + self._location.timeout)
                    self._wait_for_verdict(error, end)
                    continue
                self._assignment.committed(written)
            return [each for each in partitions if each not in there]

    def _wait_for_verdict(self, error: KafkaException, end: float) -> None:
        """After a refusal that may be due to a rebalance: wait what becomes of the partitions.

        Raises the error, as ours, when it is another, or when nothing happens in time.
        """
        code = code_of(error)
        # Of a fatal one the member's thread learns too, and ends the membership.
        wait = code in FENCED or code == KafkaError._FATAL
        with self._changed:
            if self._assignment.over:
                return
            if wait and self._clock.monotonic() < end:
                self._changed.wait(self._clock.bound(VERDICT))
                return
        raise translate(self._location, error, "take receipts") from None

    # ---- transactions

    def _transact(
        self, deliveries: list[Delivery], make: Callable[[Delivery], Outgoing]
    ) -> list[Delivery]:
        end = self._clock.monotonic() + self._location.timeout
        assignment = self._assignment
        lost: list[Delivery] = []
        while True:
            # In this order, because who takes our place ends our producer's transactions first:
            # either this commit is refused, or the transaction is.
            self._ready_producer()
            self.commit(self._touched(deliveries))
            with self._changed:
                mine, gone = assignment.split(deliveries)
                for partition, some in mine.items():
                    partition.finish([each.receipt.offset for each in some])
                written = assignment.written(mine)
            lost, deliveries = lost + gone, _all_of(mine)
            if not mine:
                return lost
            try:
                self._run([make(each) for each in deliveries], [each.place for each in written])
            except KafkaException as error:
                if self._producer is not None or not self._has_happened(written):
                    self._unfinish(deliveries)
                    self._wait_for_verdict(error, end)
                    continue
            except TransportError:  # the member's thread did not answer: nothing is committed
                self._unfinish(deliveries)
                raise
            assignment.committed(written)
            return lost

    def _unfinish(self, deliveries: list[Delivery]) -> None:
        """These are held as before."""
        with self._changed:
            for partition, some in self._assignment.split(deliveries)[0].items():
                for each in some:
                    partition.unfinish(each.receipt.offset)

    def _run(self, records: list[Outgoing], places: list[TopicPartition]) -> None:
        timeout, producer = self._location.timeout, self._ready_producer()
        group = self._calls.ask(self._consumer.consumer_group_metadata)
        errors: list[KafkaError] = []
        try:
            producer.begin_transaction()
            errors = write(producer, records)
            producer.send_offsets_to_transaction(places, group, timeout)
            self._commit_transaction(producer)
        except KafkaException as error:
            first = cause(producer, errors, error)
            self._abort(producer, first)
            raise first from None

    def _commit_transaction(self, producer: Producer) -> None:
        """Commit, and go on with that where it is not known whether it was."""
        end = self._clock.monotonic() + self._location.timeout
        while True:
            try:
                return producer.commit_transaction(self._location.timeout)
            except KafkaException as error:
                if not error.args[0].retriable() or self._clock.monotonic() >= end:
                    raise

    def _has_happened(self, written: list[Written]) -> bool:
        """Whether a transaction that neither was committed nor aborted, as it seems, is committed.

        The next producer has ended it one way or the other, and its offsets are the group's, or
        not. False too where the broker does not answer.
        """
        places = [TopicPartition(each.place.topic, each.place.partition) for each in written]
        timeout = self._location.timeout
        try:
            self._ready_producer()
            with asking(self._location, "tell whether a transaction was committed"):
                known = self._calls.ask(partial(self._consumer.committed, places, timeout=timeout))
        except TransportError as error:
            log.warning("a message may be stored twice: %s", error)
            return False
        found = {(each.topic, each.partition): (each.offset, each.metadata) for each in known}
        return all(
            # Where not all that is finished had its place in the text, it may be that of before.
            told >= marks.upper
            and found.get((place.topic, place.partition)) == (place.offset, place.metadata)
            for _, marks, told, _, place in written
        )

    def _ready_producer(self) -> Producer:
        """The producer of our transactions."""
        if self._producer is None:
            with asking(self._location, "begin transactions"):
                producer = new_producer(
                    self._location,
                    **{"transactional.id": self._assignment.instance},
                )
                producer.init_transactions(self._location.timeout)
            self._producer = producer
        return self._producer

    def _abort(self, producer: Producer, error: KafkaException) -> None:
        found = error.args[0]
        try:
            if not found.fatal():
                producer.abort_transaction(self._location.timeout)
                if found.code() not in REFUSED | BEHIND:  # after these its numbers have a gap
                    return
        except KafkaException as worse:
            log.debug("a transaction could not be aborted: %s", worse)
        self._producer = None  # the next one's init_transactions ends what this one left
