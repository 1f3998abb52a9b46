"""One membership of the consumer group: a consumer, and the thread that polls it.

Who owns what: the thread `taskline-kafka-member` alone calls the consumer; it polls, and
so runs the rebalance callbacks. The worker's I/O thread takes messages (`receive`) and
settles them (`receipts`), and asks that thread to commit. The partitions' bookkeeping
(`assignment`) is guarded by its condition; no call of librdkafka that waits is made under it.

A member is a static one: when its worker process was killed, another may take its name,
put down what it held, and leave in its place, at once (`eviction`). One that is thrown out
is over: the transport makes another.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from taskline.clock import Clock
from taskline.errors import TransportError
from taskline.kafka.client import new_consumer
from taskline.kafka.cluster import Cluster
from taskline.kafka.errors import translate
from taskline.kafka.marks import decode
from taskline.message import Delivery
from taskline.transports.kafka.assignment import Assignment
from taskline.transports.kafka.leaving import Callbacks, leave
from taskline.transports.kafka.partition import Partition
from taskline.transports.kafka.receipts import Calls, Receipts, write_down
from taskline.transports.kafka.records import entry_of

if TYPE_CHECKING:
    from confluent_kafka import Consumer
    from confluent_kafka import Message as Record

log = logging.getLogger("taskline.kafka")

POLL = 0.1
"""Seconds after which the thread looks at leases, and whether it is to end."""
SOON, LATE = 0.001, 0.02
"""The same just after a call of the I/O thread, as others follow, and while messages are held."""
BATCH = 500
LEAST_SESSION = 6.0
"""Seconds: the broker's default for the shortest session (group.min.session.timeout.ms)."""
HEARTBEAT = 0.2
"""Seconds: so soon is every member told of a rebalance."""
LOOK_EVERY = 0.05
"""Seconds between two looks at the leases."""
TIDY_EVERY = 0.5
IDLE = 1.0
"""Seconds after which who neither asks for messages nor holds any gives up its partitions."""
EXPIRED_IDLE = 0.25
"""The same, after a lease that it did not renew."""


def patience(since: float, *, holds: bool) -> float:
    """How long to poll, in seconds, so many after the last call of the I/O thread."""
    return max(SOON, min(LATE if holds else POLL, since / 4))


class Member:
    """See the module."""

    def __init__(self, cluster: Cluster, instance: str, lease: float, clock: Clock) -> None:
        location = cluster.location
        self._cluster = cluster
        self._location = location
        self._clock = clock
        session = int(max(LEAST_SESSION, lease) * 1000)
        self._consumer: Consumer = new_consumer(
            location,
            **{
                "session.timeout.ms": session,
                "max.poll.interval.ms": max(300_000, session),
                "heartbeat.interval.ms": int(HEARTBEAT * 1000),
                **location.consumer,
                "group.id": location.group,
                "group.instance.id": instance,
                "partition.assignment.strategy": "cooperative-sticky",
            },
        )
        self.assignment = Assignment(instance, clock)
        self._changed = self.assignment.changed
        self._calls = Calls(location, self._changed)
        self.receipts = Receipts(location, clock, self._consumer, self.assignment, self._calls)
        self._called_at = 0.0
        self._queues: tuple[str, ...] = ()
        """What was asked for last."""
        self._wanted: frozenset[str] = frozenset()
        """Topics and patterns to subscribe to."""
        self._subscribed: frozenset[str] = frozenset()
        self._interrupted = False
        self._asking = False
        self._asked_at = clock.monotonic()
        self._expired = False
        self._tidy_at = 0.0
        self._look_at = 0.0
        self._closing = False
        self._failure: KafkaException | None = None
        self._callbacks: Callbacks = {
            "on_assign": self._assigned,
            "on_revoke": self._revoked,
            "on_lost": self._lost,
        }
        self._told_of: list[int] = []
        """Errors that the log has had."""
        self._gone = False
        """The group does not know us any more, or another by our name."""
        self._thread = threading.Thread(target=self._run, name="taskline-kafka-member", daemon=True)
        self._thread.start()

    # ---- the I/O thread's side

    def receive(
        self, queues: Sequence[str], limit: int, lease: float, wait: float, consumer: str
    ) -> list[Delivery]:
        """See `Transport.receive`."""
        self.subscribe(queues)
        end = self._clock.monotonic() + wait
        self._asking = True
        tried = False
        try:
            while True:
                with self._changed:
                    until = self._clock.monotonic() + lease
                    taken, blocked = self.assignment.take(queues, limit, until, consumer)
                    if not taken and (tried or not blocked):
                        left = end - self._clock.monotonic()
                        over = self.assignment.over or self._failure is not None
                        if self._interrupted or left <= 0 or over:
                            self._interrupted = False
                            break
                        if not blocked:
                            self._changed.wait(self._clock.bound(left))
                if taken:
                    return taken
                if blocked:
                    with self.assignment.settle():
                        self.receipts.commit(blocked)
                    tried = True
        finally:
            self._asking = False
            self._asked_at = self._clock.monotonic()
        if self._failure is not None:
            raise translate(self._location, self._failure, "hand over messages")
        return []

    def interrupt(self) -> None:
        """See `Transport.interrupt`."""
        with self._changed:
            self._interrupted = True
            self._changed.notify_all()

    def subscribe(self, queues: Sequence[str]) -> None:
        """Join for these queues, too, as `receive` does. Who then does not ask leaves again."""
        if self._wanted and self._queues == tuple(queues):
            return
        self._queues = tuple(queues)
        wanted = self._location.subscription(queues)
        if not wanted <= self._wanted:
            self._wanted = self._wanted | wanted

    def close(self) -> None:
        """Leave, and end the thread. What is held waits for `recover`, or the session's end."""
        self._closing = True
        self._thread.join(2 * self._location.timeout)

    # ---- the member's own thread

    def _run(self) -> None:
        try:
            while not self._closing and not self.assignment.over:
                self._turn()
            if not self._gone:
                self._leave()
        except KafkaException as error:
            self._failure = error
        except TransportError as error:
            log.debug("left without an answer: %s", error)
        finally:
            self.assignment.end()
            self._answer()
            self._consumer.close()

    def _turn(self) -> None:
        if self._subscribed != self._wanted:
            self._subscribed = self._wanted
            self._consumer.subscribe(sorted(self._subscribed), **self._callbacks)
        first = self._consumer.poll(self._patience())
        if first is not None:
            self._read([first, *self._consumer.consume(BATCH, 0)])
        self._answer()
        self._look_at_leases()
        self._read_on()
        self._tidy()

    def _patience(self) -> float:
        """How long to wait for a message before looking at something else."""
        if self._calls:
            return 0.0
        with self._changed:
            holds = self.assignment.holds_any()
        return patience(self._clock.monotonic() - self._called_at, holds=holds)

    def _answer(self) -> None:
        if self._calls.answer():
            self._called_at = self._clock.monotonic()

    def _commit(self, partitions: Sequence[Partition]) -> None:
        """Commit from this thread, if it can be now."""
        with self._changed:
            written = self.assignment.written(partitions)
        if not written:
            return
        try:
            write_down(self._consumer, [each.place for each in written])
        except KafkaException as error:
            log.debug("not now: %s", error)
            return
        self.assignment.committed(written)

    def _tidy(self) -> None:
        """Commit what no receipt does: the end of a log may be no message.

        Not where a transaction is under way, whose end decides what is finished.
        """
        now = self._clock.monotonic()
        if now < self._tidy_at:
            return
        self._tidy_at = now + TIDY_EVERY
        with self._changed:
            behind = [
                each
                for each in self.assignment.order
                if not each.held and not each.unsure and each.low() > each.sure
            ]
        self._commit(behind)

    def _read_on(self) -> None:
        """Fetch again where enough was handed over."""
        with self._changed:
            more = [each for each in self.assignment.order if each.paused and each.wants_more()]
            for each in more:
                each.paused = False
        if more:
            self._consumer.resume([TopicPartition(each.topic, each.number) for each in more])

    def _read(self, records: list[Record]) -> None:
        partitions, order = self.assignment.partitions, self.assignment.order
        with self._changed:
            for record in records:
                place = (record.topic() or "", record.partition() or 0)
                partition = partitions.get(place)
                error = record.error()
                if error is not None:
                    self._heed(error, partition, record)
                elif partition is not None:
                    partition.add(entry_of(record))
            full = [each for each in order if not each.paused and each.wants_pause()]
            for each in full:
                each.paused = True
            new = [each for each in order if not each.reach and each.ready(beyond_reach=True)]
        if full:
            self._consumer.pause([TopicPartition(each.topic, each.number) for each in full])
        # Before the first message of a partition is handed over: see `Partition.reach`. If it
        # fails, `receive` tries again, and raises.
        self._commit(new)
        with self._changed:
            self._changed.notify_all()

    def _heed(self, error: KafkaError, partition: Partition | None, record: Record) -> None:
        if error.code() == KafkaError._PARTITION_EOF:
            if partition is not None:
                partition.reached(record.offset() or 0)
        elif error.fatal() or error.code() in (KafkaError._FATAL, KafkaError.FENCED_INSTANCE_ID):
            self.assignment.over = self._gone = True
            log.warning("put out of the consumer group: what was held here runs elsewhere")
        elif error.code() in (
            KafkaError.TOPIC_AUTHORIZATION_FAILED,
            KafkaError.GROUP_AUTHORIZATION_FAILED,
            KafkaError._AUTHENTICATION,
        ):
            self._failure = KafkaException(error)
        elif error.code() not in (KafkaError.UNKNOWN_TOPIC_OR_PART, *self._told_of):
            # Such as a session that the broker does not allow: it is tried on and on.
            self._told_of.append(error.code())
            lost = translate(self._location, error, "hand over messages")
            log.error("%s; trying until it works", lost)
        else:
            log.debug("the consumer says: %s", error)

    def _look_at_leases(self) -> None:
        now = self._clock.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_EVERY
        with self._changed:
            if self.assignment.expire(now):
                self._expired = True
            patience = EXPIRED_IDLE if self._expired else IDLE
            leave = (
                bool(self._wanted)
                and not self._asking
                and not self.assignment.settling
                and now - self._asked_at > patience
                and not self.assignment.holds_any()
            )
        if leave:
            self._leave()
            self._expired = False

    def _leave(self) -> None:
        """Give up the partitions; the next `receive` subscribes again."""
        topics = sorted(self._wanted)  # its thread may not have come to subscribe, as an heir
        self._wanted = self._subscribed = frozenset()
        if not topics or self.assignment.holds_any():
            return  # who takes our name tells which of those held had begun
        assignment, group = self.assignment, self._location.group
        leave(
            self._consumer,
            topics,
            self._callbacks,
            poll=lambda: self._consumer.poll(SOON),
            gone=lambda: (
                not assignment.order and assignment.instance not in self._cluster.members(group)
            ),
            clock=self._clock,
            within=self._location.timeout,
        )

    # ---- rebalance, called back by poll and consume

    def _assigned(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        """Go on where the last holder stopped."""
        location, timeout = self._location, self._location.timeout
        known = consumer.committed(places, timeout=timeout) if places else []
        assigned: list[Partition] = []
        for place in known:
            if place.error is not None:
                raise KafkaException(place.error)
            if place.offset < 0:
                low, _ = consumer.get_watermark_offsets(place, timeout=timeout)
                marks, high = decode(low, None), None
            else:
                marks, high = decode(place.offset, place.metadata), None
                if marks.reach > marks.offset:
                    _, high = consumer.get_watermark_offsets(place, timeout=timeout)
            assigned.append(
                Partition(
                    place.topic,
                    place.partition,
                    location.queue(place.topic),
                    marks,
                    high=high,
                    ordering=location.ordering,
                    window=location.window,
                    level=location.level_of(place.topic),
                )
            )
        here = [TopicPartition(p.topic, p.number, p.position) for p in assigned]
        consumer.incremental_assign(here)
        consumer.resume(here)  # those that were ours before, and paused, still are for librdkafka
        self.assignment.add(assigned)

    def _revoked(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        """Let what runs end, within a bound; then write down the rest and let go."""
        assignment = self.assignment
        with self._changed:
            leaving = [
                partition
                for place in places
                if (partition := assignment.partitions.get((place.topic, place.partition)))
            ]
            for each in leaving:
                each.draining = True
            end = self._clock.monotonic() + (0.0 if self._closing else self._location.drain)
            while assignment.settling or any(each.held for each in leaving):
                now = self._clock.monotonic()
                if now >= end and not assignment.settling:
                    break
                if not assignment.settling:
                    for each in leaving:
                        each.expire(now)
                if not self._calls:
                    self._changed.wait(self._clock.bound(POLL))
                self._changed.release()
                try:
                    self._answer()
                finally:
                    self._changed.acquire()
            written = assignment.written(leaving, closing=True)
            lost = sum(len(each.held) for each in leaving)
            assignment.remove(leaving)
        if lost:
            log.warning("%d running tasks are handed back: their partitions went elsewhere", lost)
        if written:
            try:
                consumer.commit(offsets=[each.place for each in written], asynchronous=False)
            except KafkaException as error:
                log.debug("the last receipts of a partition were refused: %s", error)
        consumer.incremental_unassign(places)

    def _lost(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        """The group has gone on without us: this membership is over."""
        log.warning("put out of the consumer group: what was held here runs elsewhere")
        consumer.unsubscribe()  # or librdkafka would join again under this name, by itself
        self._gone = True
        self.assignment.end()
        consumer.incremental_unassign(places)
