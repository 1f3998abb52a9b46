"""One membership of the consumer group: a consumer, its thread, and the partitions it has.

Who owns what: the thread `taskline-kafka-member` alone calls the consumer; it polls, and
so runs the rebalance callbacks. The worker's I/O thread takes messages and settles them,
and asks that thread to commit (`_call`). The partitions' bookkeeping is guarded by
`_changed`; no call of librdkafka that waits is made under it. `_settling` is true while
the I/O thread settles: a partition is not given up before that is over.

A member is a static one: when its worker process was killed, another may take its name,
put down what it held, and leave in its place, at once (`eviction`). One that is thrown out
is over: the transport makes another.
"""

from __future__ import annotations

import logging
import re
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar, cast

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from taskline.clock import Clock
from taskline.errors import TransportError
from taskline.kafka.client import (
    FENCED,
    Cluster,
    asking,
    code_of,
    new_consumer,
    new_producer,
    translate,
)
from taskline.kafka.marks import METADATA_BYTES, Marks, decode, encode
from taskline.message import Delivery
from taskline.transports.kafka.leaving import Callbacks, leave
from taskline.transports.kafka.partition import Partition, Receipt
from taskline.transports.kafka.records import entry_of
from taskline.transports.kafka.sender import Outgoing, write

if TYPE_CHECKING:
    from confluent_kafka import Consumer, Producer
    from confluent_kafka import Message as Record

log = logging.getLogger("taskline.kafka")

T = TypeVar("T")

POLL = 0.1
"""Seconds after which the thread looks at leases, and whether it is to end."""
SOON, LATE = 0.001, 0.02
"""The same while messages are held: it looks for calls of the I/O thread, often after the last."""
BATCH = 500
LEAST_SESSION = 6.0
"""Seconds: the broker's default for the shortest session (group.min.session.timeout.ms)."""
HEARTBEAT = 0.2
"""Seconds: so soon is every member told of a rebalance."""
TIDY_EVERY = 0.5
IDLE = 1.0
"""Seconds after which who neither asks for messages nor holds any gives up its partitions."""
EXPIRED_IDLE = 0.25
"""The same, after a lease that it did not renew."""


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


class Member:
    """See the module. `consumer` names the worker process, `topics` is what it serves."""

    def __init__(self, cluster: Cluster, instance: str, lease: float, clock: Clock) -> None:
        location = cluster.location
        self.instance = instance
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
        self._producer: Producer | None = None
        self._changed = threading.Condition()
        self._partitions: dict[tuple[str, int], Partition] = {}
        self._order: list[Partition] = []
        self._serials = count(1)
        self._calls: deque[_Call] = deque()
        self._called_at = 0.0
        self._wanted: frozenset[str] = frozenset()
        """Topics and patterns to subscribe to."""
        self._subscribed: frozenset[str] = frozenset()
        self._interrupted = False
        self._asking = False
        self._asked_at = clock.monotonic()
        self._settling = False
        self._expired = False
        self._drain = location.drain
        self._tidy_at = 0.0
        self._closing = False
        self._failure: KafkaException | None = None
        self._callbacks: Callbacks = {
            "on_assign": self._assigned,
            "on_revoke": self._revoked,
            "on_lost": self._lost,
        }
        self._gone = False
        """The group does not know us any more, or another by our name."""
        self.over = False
        """The membership has ended, and all that was held is lost."""
        self._thread = threading.Thread(target=self._run, name="taskline-kafka-member", daemon=True)
        self._thread.start()

    # ---- the I/O thread's side

    def receive(
        self, queues: Sequence[str], limit: int, lease: float, wait: float, consumer: str
    ) -> list[Delivery]:
        """See `Transport.receive`."""
        self._subscribe(queues)
        end = self._clock.monotonic() + wait
        self._asking = True
        try:
            while True:
                with self._changed:
                    taken, blocked = self._take(queues, limit, lease, consumer)
                    if not taken and not blocked:
                        left = end - self._clock.monotonic()
                        if self._interrupted or left <= 0 or self._failure or self.over:
                            self._interrupted = False
                            break
                        self._changed.wait(self._clock.bound(left))
                if taken:
                    return taken
                if blocked:
                    self._commit(blocked)
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

    def _subscribe(self, queues: Sequence[str]) -> None:
        location = self._location
        wanted = {location.pattern(queue) or location.topic(queue) for queue in queues}
        if not wanted <= self._wanted:
            self._wanted = self._wanted | wanted

    def _call(self, work: Callable[[], T]) -> T:
        """Have the member's thread do something with the consumer, and wait for it."""
        call = _Call(work)
        self._calls.append(call)
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

    def _take(
        self, queues: Sequence[str], limit: int, lease: float, consumer: str
    ) -> tuple[list[Delivery], list[Partition]]:
        """What can be handed over; if nothing, the partitions where a commit must come first."""
        until = self._clock.monotonic() + lease
        taken: list[Delivery] = []
        blocked: list[Partition] = []
        for queue in queues:
            pattern = re.compile(queue) if queue.startswith("^") else None
            some = True
            while some and len(taken) < limit:
                some = False
                for partition in self._order:
                    if len(taken) >= limit:
                        break
                    if partition.queue != queue and not (
                        pattern is not None and pattern.match(partition.queue)
                    ):
                        continue
                    more = partition.take(
                        limit - len(taken), until, consumer, self._serials, self.instance
                    )
                    taken += more
                    some = some or bool(more)
                    if not more and partition.ready(beyond_reach=True):
                        blocked.append(partition)
            if not taken and blocked:
                break  # so that queues are served in their order
        if taken and len(self._order) > 1:
            self._order.append(self._order.pop(0))
        return taken, blocked

    def ack(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Done; returns those that were lost. A call that raised may be repeated."""
        with self._changed:
            mine, lost = self._split(deliveries)
            for each in mine:
                self._partition(each).finish(each.receipt.offset)
            touched = list({id(p): p for p in map(self._partition, mine)}.values())
            self._settling = bool(mine)
        if mine:
            try:
                gone = self._commit(touched)
            finally:
                self._settled()
            if gone:
                lost += [
                    each for each in mine if (each.receipt.topic, each.receipt.partition) in gone
                ]
        return lost

    def extend(self, deliveries: Sequence[Delivery], lease: float) -> list[Delivery]:
        """Renew; asks the broker whether this is still a member of the group."""
        self._verify(deliveries)
        until = self._clock.monotonic() + lease
        with self._changed:
            mine, lost = self._split(deliveries)
            for each in mine:
                held = self._partition(each).held.get(each.receipt.offset)
                if held is not None:
                    held.until = until
        return lost

    def _touched(self, deliveries: Sequence[Delivery]) -> list[Partition]:
        """The partitions of those that are held."""
        with self._changed:
            mine, _ = self._split(deliveries)
            return list({id(p): p for p in map(self._partition, mine)}.values())

    def _verify(self, deliveries: Sequence[Delivery]) -> None:
        """Commit as things are: who was put out of the group, paused say, learns of it."""
        touched = self._touched(deliveries)
        if touched:
            with self._changed:
                self._settling = True
            try:
                self._commit(touched)
            finally:
                self._settled()

    def give_back(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Ready again, here; asks the broker whether this is still a member of the group."""
        self._verify(deliveries)
        touched = self._touched(deliveries)
        with self._changed:
            mine, lost = self._split(deliveries)
            for each in mine:
                self._partition(each).give_back(each.receipt.offset)
            self._changed.notify_all()
        self._commit(touched)  # their deliveries, which must not be counted twice after a crash
        return lost

    def recover(self, consumer: str, started: set[str]) -> int:
        """Take back what was handed over in the name of `consumer`; returns how many."""
        recovered = 0
        with self._changed:
            for partition in self._order:
                mine = [each for each in partition.held.values() if each.consumer == consumer]
                for held in mine:
                    partition.give_back(held.entry.offset, lost=int(held.entry.id in started))
                recovered += len(mine)
            self._changed.notify_all()
        return recovered

    def move(
        self, deliveries: Sequence[Delivery], make: Callable[[Delivery], Outgoing]
    ) -> list[Delivery]:
        """In one transaction: finish these messages and write one record for each."""
        with self._changed:
            mine, lost = self._split(deliveries)
            self._settling = bool(mine)
        if not mine:
            return lost
        try:
            lost += self._transact(mine, make)
        finally:
            self._settled()
        return lost

    def held_of(self, queue: str) -> int:
        """How many messages of a queue are in somebody's hands here."""
        with self._changed:
            return sum(len(each.held) for each in self._order if each.queue == queue)

    def forget_ready(self, queue: str) -> None:
        """The queue was purged: finish what nobody holds."""
        with self._changed:
            for each in self._order:
                if each.queue == queue:
                    each.forget_ready()

    def done(self) -> dict[tuple[str, int], int]:
        """The first unfinished offset of each partition that was committed."""
        with self._changed:
            return {
                place: low for place, each in self._partitions.items() if (low := each.sure) > 0
            }

    def _partition(self, delivery: Delivery) -> Partition:
        receipt: Receipt = delivery.receipt
        return self._partitions[receipt.topic, receipt.partition]

    def _split(self, deliveries: Sequence[Delivery]) -> tuple[list[Delivery], list[Delivery]]:
        """Those that are held, each once, and those that are not."""
        mine: list[Delivery] = []
        lost: list[Delivery] = []
        partitions = self._partitions
        for each in deliveries:
            receipt = each.receipt
            partition = (
                partitions.get((receipt.topic, receipt.partition))
                if isinstance(receipt, Receipt) and receipt.member == self.instance
                else None
            )
            if partition is None or partition.holds(receipt) is None:
                lost.append(each)
            else:
                mine.append(each)
        return mine, lost

    # ---- committing

    def _settled(self) -> None:
        with self._changed:
            self._settling = False
            self._changed.notify_all()

    def _payload(
        self, partitions: Sequence[Partition], *, closing: bool = False
    ) -> list[tuple[Partition, Marks, int, list[int], TopicPartition]]:
        payload = []
        for each in partitions:
            if each.in_doubt and not closing:
                continue
            marks = each.marks(closing=closing)
            text, told = encode(marks, METADATA_BYTES)
            place = TopicPartition(each.topic, each.number, marks.offset, metadata=text)
            payload.append((each, marks, told, list(each.unsure), place))
        return payload

    def _commit(self, partitions: Sequence[Partition]) -> set[tuple[str, int]]:
        """Tell the broker the state of these partitions; returns those that are ours no more."""
        end = self._clock.monotonic() + self._location.timeout
        while True:
            with self._changed:
                there = [p for p in partitions if self._partitions.get((p.topic, p.number)) is p]
                payload = self._payload(there)
            if payload:
                try:
                    self._call(partial(self._write_down, [place for *_, place in payload]))
                except KafkaException as error:
                    self._wait_for_verdict(error, end)
                    continue
                with self._changed:
                    for partition, marks, told, sure, _ in payload:
                        partition.committed(marks, told, sure)
            return {(p.topic, p.number) for p in partitions if p not in there}

    def _write_down(self, places: list[TopicPartition]) -> None:
        """Commit, in the member's thread."""
        for each in self._consumer.commit(offsets=places, asynchronous=False) or ():
            if each.error is not None:
                raise KafkaException(each.error)

    def _wait_for_verdict(self, error: KafkaException, end: float) -> None:
        """After a refusal that may be due to a rebalance: wait what becomes of the partitions.

        Raises the error, as ours, when it is another, or when nothing happens in time.
        """
        code = code_of(error)
        if self.over or (code in FENCED and self._clock.monotonic() < end):
            with self._changed:
                if not self.over:
                    self._changed.wait(self._clock.bound(0.05))
            return
        if code == KafkaError._FATAL:  # the thread sees the same and ends the membership
            with self._changed:
                if not self.over and self._clock.monotonic() < end:
                    self._changed.wait(self._clock.bound(0.05))
                    return
        raise translate(self._location, error, "take receipts") from None

    def _transact(
        self, deliveries: list[Delivery], make: Callable[[Delivery], Outgoing]
    ) -> list[Delivery]:
        end = self._clock.monotonic() + self._location.timeout
        lost: list[Delivery] = []
        while True:
            # In this order, because who takes our place ends our producer's transactions first:
            # either this commit is refused, or the transaction is.
            self._ready_producer()
            self._commit(self._touched(deliveries))
            with self._changed:
                mine, gone = self._split(deliveries)
                for each in mine:
                    self._partition(each).finish(each.receipt.offset)
                touched = list({id(p): p for p in map(self._partition, mine)}.values())
                payload = self._payload(touched)
            lost, deliveries = lost + gone, mine
            if not mine:
                return lost
            try:
                self._run_transaction(
                    [make(each) for each in mine], [place for *_, place in payload]
                )
            except KafkaException as error:
                with self._changed:
                    for each in self._split(mine)[0]:
                        self._partition(each).unfinish(each.receipt.offset)
                self._wait_for_verdict(error, end)
                continue
            with self._changed:
                for partition, marks, told, sure, _ in payload:
                    partition.committed(marks, told, sure)
            return lost

    def _run_transaction(self, records: list[Outgoing], places: list[TopicPartition]) -> None:
        timeout, producer = self._location.timeout, self._ready_producer()
        try:
            producer.begin_transaction()
            write(producer, records)
            group = self._call(self._consumer.consumer_group_metadata)
            producer.send_offsets_to_transaction(places, group, timeout)
            producer.commit_transaction(timeout)
        except KafkaException as error:
            self._abort(producer, error)
            raise

    def _ready_producer(self) -> Producer:
        """The producer of our transactions."""
        if self._producer is None:
            with asking(self._location, "begin transactions"):
                producer = new_producer(
                    self._location,
                    **{"transactional.id": self.instance, "transaction.timeout.ms": 10_000},
                )
                producer.init_transactions(self._location.timeout)
            self._producer = producer
        return self._producer

    def _abort(self, producer: Producer, error: KafkaException) -> None:
        found = error.args[0]
        try:
            if not found.fatal():
                producer.abort_transaction(self._location.timeout)
                return
        except KafkaException as worse:
            log.debug("a transaction could not be aborted: %s", worse)
        self._producer = None  # the next one's init_transactions ends what this one left

    # ---- the member's own thread

    def _run(self) -> None:
        try:
            while not self._closing and not self.over:
                self._turn()
            if not self._gone:
                self._leave()
        except KafkaException as error:
            self._failure = error
        except TransportError as error:
            log.debug("left without an answer: %s", error)
        finally:
            with self._changed:
                self.over = True
                self._partitions.clear()
                self._order.clear()
                self._changed.notify_all()
            self._run_calls()
            self._consumer.close()

    def _turn(self) -> None:
        if self._subscribed != self._wanted:
            self._subscribed = self._wanted
            self._consumer.subscribe(sorted(self._subscribed), **self._callbacks)
        first = self._consumer.poll(self._patience())
        if first is not None:
            self._read([first, *self._consumer.consume(BATCH, 0)])
        self._run_calls()
        self._look_at_leases()
        self._read_on()
        self._tidy()

    def _patience(self) -> float:
        """How long to wait for a message before looking at something else."""
        if self._calls:
            return 0.0
        with self._changed:
            if not any(each.held for each in self._order):
                return POLL
        return max(SOON, min(LATE, (self._clock.monotonic() - self._called_at) / 4))

    def _run_calls(self) -> None:
        while self._calls:
            self._calls.popleft().run()
            self._called_at = self._clock.monotonic()

    def _tidy(self) -> None:
        """Commit what no receipt does: the end of a log may be no message."""
        now = self._clock.monotonic()
        if now < self._tidy_at:
            return
        self._tidy_at = now + TIDY_EVERY
        with self._changed:
            payload = self._payload([p for p in self._order if not p.held and p.low() > p.sure])
        if payload:
            try:
                self._write_down([place for *_, place in payload])
            except KafkaException as error:
                log.debug("not now: %s", error)
                return
            with self._changed:
                for partition, marks, told, sure, _ in payload:
                    partition.committed(marks, told, sure)

    def _read_on(self) -> None:
        """Fetch again where enough was handed over."""
        with self._changed:
            more = [each for each in self._order if each.paused and each.wants_more()]
            for each in more:
                each.paused = False
        if more:
            self._consumer.resume([TopicPartition(each.topic, each.number) for each in more])

    def _read(self, records: list[Record]) -> None:
        full: list[Partition] = []
        with self._changed:
            for record in records:
                place = (record.topic() or "", record.partition() or 0)
                error = record.error()
                if error is not None:
                    self._heed(error, place, record)
                    continue
                partition = self._partitions.get(place)
                if partition is not None:
                    partition.add(entry_of(record))
            for partition in self._order:
                if not partition.paused and partition.wants_pause():
                    partition.paused = True
                    full.append(partition)
            payload = self._payload(
                [p for p in self._order if not p.reach and p.ready(beyond_reach=True)]
            )
        if full:
            places = [TopicPartition(p.topic, p.number) for p in full]
            self._consumer.pause(places)
        if payload:
            # Before the first message of a partition is handed over: see `Partition.reach`.
            try:
                self._write_down([place for *_, place in payload])
            except KafkaException as error:
                log.debug("not now: %s", error)  # `receive` tries again, and raises
                payload = []
        with self._changed:
            for partition, marks, told, sure, _ in payload:
                partition.committed(marks, told, sure)
            self._changed.notify_all()

    def _heed(self, error: KafkaError, place: tuple[str, int], record: Record) -> None:
        if error.code() == KafkaError._PARTITION_EOF:
            partition = self._partitions.get(place)
            if partition is not None:
                partition.reached(record.offset() or 0)
        elif error.fatal() or error.code() in (KafkaError._FATAL, KafkaError.FENCED_INSTANCE_ID):
            self.over = self._gone = True
            log.warning("put out of the consumer group: what was held here runs elsewhere")
        elif error.code() in (
            KafkaError.TOPIC_AUTHORIZATION_FAILED,
            KafkaError.GROUP_AUTHORIZATION_FAILED,
            KafkaError._AUTHENTICATION,
        ):
            self._failure = KafkaException(error)
        else:
            log.debug("the consumer says: %s", error)

    def _look_at_leases(self) -> None:
        now = self._clock.monotonic()
        with self._changed:
            expired = sum(each.expire(now) for each in self._order)
            if expired:
                self._expired = True
                self._changed.notify_all()
            patience = EXPIRED_IDLE if self._expired else IDLE
            leave = (
                bool(self._wanted)
                and not self._asking
                and not self._settling
                and now - self._asked_at > patience
                and not any(each.held for each in self._order)
            )
        if leave:
            self._leave()
            self._expired = False

    def _leave(self) -> None:
        """Give up the partitions; the next `receive` subscribes again."""
        topics = sorted(self._subscribed)
        self._wanted = self._subscribed = frozenset()
        if not topics or any(each.held for each in self._order):
            return  # who takes our name tells which of those held had begun
        group = self._location.group
        leave(
            self._consumer,
            topics,
            self._callbacks,
            poll=lambda: self._consumer.poll(SOON),
            gone=lambda: not self._order and self.instance not in self._cluster.members(group),
            clock=self._clock,
            within=self._location.timeout,
        )

    # ---- rebalance, called back by poll and consume

    def _assigned(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        """Go on where the last holder stopped."""
        timeout = self._location.timeout
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
                    self._location.queue(place.topic),
                    marks,
                    high=high,
                    ordering=self._location.ordering,
                    window=self._location.window,
                )
            )
        consumer.incremental_assign(
            [TopicPartition(p.topic, p.number, p.position) for p in assigned]
        )
        with self._changed:
            for each in assigned:
                self._partitions[each.topic, each.number] = each
            self._order = list(self._partitions.values())
            self._changed.notify_all()

    def _revoked(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        """Let what runs end, within a bound; then write down the rest and let go."""
        with self._changed:
            leaving = [
                partition
                for place in places
                if (partition := self._partitions.get((place.topic, place.partition))) is not None
            ]
            for each in leaving:
                each.draining = True
            end = self._clock.monotonic() + (0.0 if self._closing else self._drain)
            while self._settling or any(each.held for each in leaving):
                now = self._clock.monotonic()
                if now >= end and not self._settling:
                    break
                for each in leaving:
                    each.expire(now)
                if not self._calls:
                    self._changed.wait(self._clock.bound(POLL))
                self._changed.release()
                try:
                    self._run_calls()
                finally:
                    self._changed.acquire()
            payload = self._payload(leaving, closing=True)
            lost = sum(len(each.held) for each in leaving)
            for each in leaving:
                del self._partitions[each.topic, each.number]
            self._order = list(self._partitions.values())
            self._changed.notify_all()
        if lost:
            log.warning("%d running tasks are handed back: their partitions went elsewhere", lost)
        if payload:
            try:
                consumer.commit(offsets=[place for *_, place in payload], asynchronous=False)
            except KafkaException as error:
                log.debug("the last receipts of a partition were refused: %s", error)
        consumer.incremental_unassign(places)

    def _lost(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        """The group has gone on without us: this membership is over."""
        log.warning("put out of the consumer group: what was held here runs elsewhere")
        consumer.unsubscribe()  # or librdkafka would join again under this name, by itself
        with self._changed:
            self.over = self._gone = True
            self._partitions.clear()
            self._order.clear()
            self._changed.notify_all()
        consumer.incremental_unassign(places)

    def close(self) -> None:
        """Leave, and end the thread. What is held waits for `recover`, or the session's end."""
        self._closing = True
        self._thread.join(2 * self._location.timeout)
