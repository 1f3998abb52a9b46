"""Messages that wait: the lines of the delay topic, and who moves them on.

Partition n of the delay topic is a line in which a message waits `HOLDS[n]` seconds at
most, so that a line is ordered by the time at which its messages leave it. A message
enters the line with the longest hold that does not exceed its delay, and goes on to
shorter ones until it is due; a month takes some twenty steps. Nobody keeps waiting
messages in memory: the mover of a line looks at the first one, and comes back when that
one leaves. Each step is one transaction, so that nothing is lost or doubled.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
from typing import TYPE_CHECKING

from confluent_kafka import (
    TIMESTAMP_CREATE_TIME,
    KafkaError,
    KafkaException,
    TopicPartition,
)

from taskline.clock import Clock
from taskline.errors import ConfigurationError, TransportError
from taskline.kafka.client import new_consumer, new_producer
from taskline.kafka.cluster import KEEPS, Cluster
from taskline.kafka.errors import BEHIND, REFUSED, Ear, code_of, translate
from taskline.kafka.location import Location
from taskline.message import DeadLetter
from taskline.transports.kafka.dead import DeadLetters
from taskline.transports.kafka.leaving import Callbacks, leave
from taskline.transports.kafka.records import (
    DELIVERIES,
    DUE,
    ID,
    TOPIC,
    Headers,
    headers_in,
    known_headers,
    letter_headers,
    number,
)
from taskline.transports.kafka.sender import Outgoing, cause, write

if TYPE_CHECKING:
    from confluent_kafka import Consumer
    from confluent_kafka import Message as Record

log = logging.getLogger("taskline.kafka")

HOLDS = [0.25 * 4**n for n in range(13)]
"""Seconds; the longest is 48 days, and who has longer to wait goes through it again."""
POLL = 0.2
"""Seconds after which a mover looks whether it is to end."""
BATCH = 500
TRIM_EVERY = 60.0
"""Seconds between deletions of what has left the lines."""
AGAIN_AFTER = 1.0
"""Seconds after which a mover that failed tries again."""
SESSION = 6.0
"""Seconds after which the lines of a mover that died go to another."""


def line_of(delay: float) -> int:
    """The line to wait in for `delay` seconds."""
    for n in range(len(HOLDS) - 1, 0, -1):
        if HOLDS[n] <= delay:
            return n
    return 0


def delayed(
    location: Location,
    topic: str,
    value: bytes,
    headers: Headers,
    key: bytes | None,
    due: float,
    now: float,
) -> Outgoing:
    """A record for the delay topic, which becomes one of `topic` at `due` (Unix seconds)."""
    headers = [*headers, (DUE, repr(due).encode()), (TOPIC, topic.encode())]
    return Outgoing(location.delay_topic, value, headers, key, line_of(due - now))


def need_delays(cluster: Cluster) -> None:
    """Make sure that the delay topic is there."""
    settings = {"cleanup.policy": "delete", **KEEPS}  # whatever `retention` says of queues
    cluster.need(cluster.location.delay_topic, len(HOLDS), **settings)


class Delays:
    """Moves messages on while it lives, in a thread of its own, `taskline-kafka-delays`.

    The workers of all groups share the lines among them: the movers are a group themselves.
    """

    def __init__(
        self,
        location: Location,
        cluster: Cluster,
        dead: DeadLetters,
        instance: str,
        clock: Clock,
        inherited: str = "",
    ) -> None:
        """`inherited` is the name of a dead mover, in whose place this one is.

        Raises `ConfigurationError` for settings that librdkafka does not take.
        """
        self._location = location
        self._cluster = cluster
        self._dead = dead
        self._name = f"{instance}.delays"
        self._instance = self._name
        # What librdkafka does not take is told here, not in the thread.
        self._producer = new_producer(location, **{"transactional.id": self._name})
        self._inherited = inherited
        self._clock = clock
        self._closing = threading.Event()
        self._wakes: dict[int, float] = {}
        """When the first message of a paused line leaves it, Unix seconds."""
        self._moved: dict[tuple[str, int], int] = {}
        self._trim_at = clock.monotonic() + TRIM_EVERY
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="taskline-kafka-delays", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread; others take over."""
        self._closing.set()

    def join(self) -> None:
        """Wait until the thread has ended."""
        self._thread.join(self._location.timeout)

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._move_on()
            except (KafkaException, TransportError, ConfigurationError) as error:
                if not self._failing:
                    shown = (
                        translate(self._location, error, "move delayed messages on")
                        if isinstance(error, KafkaException)
                        else error
                    )
                    log.warning("%s; trying until it works", shown)
                self._failing = True
                self._closing.wait(AGAIN_AFTER)

    def _works(self) -> None:
        if self._failing:
            self._failing = False
            log.info("Kafka at %s answers again", self._location.brokers)

    def _look(self, consumer: Consumer, ear: Ear) -> None:
        """Say once that no broker can be reached: who only polls is told of no error."""
        try:
            consumer.list_topics(self._location.delay_topic, timeout=AGAIN_AFTER)
        except KafkaException as error:
            if not self._failing:
                lost = translate(self._location, error, "be reached", ear)
                log.error("%s; trying until it works", lost)
            self._failing = True
        else:
            ear.alarmed = False
            self._works()

    def _move_on(self) -> None:
        location = self._location
        need_delays(self._cluster)
        # Who was put out does not come back.
        instance = self._inherited or f"{self._name}.{secrets.token_hex(4)}"
        self._instance, self._inherited = instance, ""
        ear = Ear()
        consumer = new_consumer(
            location,
            **{
                "group.id": location.delay_topic,
                "group.instance.id": instance,
                "partition.assignment.strategy": "cooperative-sticky",
                "session.timeout.ms": int(SESSION * 1000),
                "max.poll.interval.ms": 300_000,
                "heartbeat.interval.ms": 300,
                "queued.min.messages": BATCH,
                "error_cb": ear,
            },
        )
        try:
            self._take_producer()
            self._wakes.clear()
            callbacks: Callbacks = {"on_assign": _assigned, "on_revoke": self._revoked}
            consumer.subscribe([location.delay_topic], **callbacks)
            while not self._closing.is_set():
                self._turn(consumer)
                if ear.alarmed:
                    self._look(consumer, ear)
            leave(
                consumer,
                [location.delay_topic],
                callbacks,
                poll=lambda: consumer.poll(0.01),
                gone=lambda: instance not in self._cluster.members(location.delay_topic),
                clock=self._clock,
                within=location.timeout,
            )
        finally:
            consumer.close()

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        for each in partitions:
            self._wakes.pop(each.partition, None)
        consumer.incremental_unassign(partitions)

    def _take_producer(self) -> None:
        """A new one, which ends what the one before has left."""
        self._producer = new_producer(self._location, **{"transactional.id": self._instance})
        self._producer.init_transactions(self._location.timeout)

    def _turn(self, consumer: Consumer) -> None:
        now = self._clock.time()
        over = [n for n, wake in self._wakes.items() if wake <= now]
        if over:
            consumer.resume([TopicPartition(self._location.delay_topic, n) for n in over])
            for n in over:
                del self._wakes[n]
        pause = min([POLL, *(wake - now for wake in self._wakes.values())])
        first = consumer.poll(max(0.0, pause))
        if first is None:
            self._trim()
            return
        leaving = self._leaving(consumer, [first, *consumer.consume(BATCH, 0)])
        if leaving:
            self._move(consumer, leaving)
        self._works()

    def _leaving(self, consumer: Consumer, records: list[Record]) -> list[Record]:
        """Those that leave their line now; a line whose first one does not is put to sleep."""
        now = self._clock.time()
        leaving = []
        for record in records:
            error = record.error()
            if error is not None:
                if error.fatal():
                    raise KafkaException(error)
                if error.code() not in (KafkaError._PARTITION_EOF, KafkaError._MAX_POLL_EXCEEDED):
                    raise KafkaException(error)
                continue
            line, offset = record.partition() or 0, record.offset() or 0
            if line in self._wakes:
                continue
            kind, millis = record.timestamp()
            entered = millis / 1000
            # A sender whose clock is ahead must not hold up those behind it: into a line once more,
            # by the clock here.
            ahead = kind == TIMESTAMP_CREATE_TIME and entered > now
            wake = min(_due(record), entered + HOLDS[line])
            if ahead or wake <= now:
                leaving.append(record)
                continue
            place = TopicPartition(self._location.delay_topic, line, offset)
            consumer.pause([place])
            consumer.seek(place)
            self._wakes[line] = wake
        return leaving

    def _move(self, consumer: Consumer, records: list[Record]) -> None:
        now = self._clock.time()
        onwards = [self._onwards(each, now) for each in records]
        try:
            self._transact(consumer, records, onwards)
        except KafkaException as error:
            self._cluster.forget()
            if code_of(error) not in REFUSED | BEHIND:
                raise
            for record, onward in zip(records, onwards, strict=True):  # the others must go on
                self._move_one(consumer, record, onward)

    def _move_one(self, consumer: Consumer, record: Record, onward: Outgoing) -> None:
        try:
            self._transact(consumer, [record], [onward])
        except KafkaException as error:
            if code_of(error) not in REFUSED:
                raise
            why = f"its topic {onward.topic!r} does not take it: {error.args[0].str()}"
            self._transact(consumer, [record], [self._buried(record, why)])

    def _transact(self, consumer: Consumer, records: list[Record], onwards: list[Outgoing]) -> None:
        """Write these in the place of those."""
        location, producer = self._location, self._producer
        offsets = {each.partition() or 0: (each.offset() or 0) + 1 for each in records}
        places = [TopicPartition(location.delay_topic, n, at) for n, at in offsets.items()]
        errors: list[KafkaError] = []
        producer.begin_transaction()
        try:
            errors = write(producer, onwards)
            producer.send_offsets_to_transaction(
                places, consumer.consumer_group_metadata(), location.timeout
            )
            producer.commit_transaction(location.timeout)
        except KafkaException as error:
            first = cause(producer, errors, error)
            # Else its topics show nothing new until the broker ends it. The first error counts.
            with contextlib.suppress(KafkaException):
                producer.abort_transaction(location.timeout)
            if code_of(first) in REFUSED | BEHIND:  # after these its numbers have a gap
                self._take_producer()
            raise first from None
        self._moved.update(((location.delay_topic, n), at) for n, at in offsets.items())

    def _onwards(self, record: Record, now: float) -> Outgoing:
        """Where a record goes next: to its topic when it is due, or to another line."""
        due, key, value = _due(record), record.key(), record.value() or b""
        headers = headers_in(record)
        if due - now > 0.001:
            line = line_of(due - now)
            return Outgoing(self._location.delay_topic, value, [*headers], key, line)
        topic = known_headers(headers).get(TOPIC, "")
        try:
            if not topic:
                raise ConfigurationError(f"it has no header {TOPIC}")
            self._cluster.need(topic)  # it may have been deleted since
        except ConfigurationError as error:
            return self._buried(record, str(error))
        kept: Headers = [each for each in headers if each[0] not in (DUE, TOPIC)]
        return Outgoing(topic, value, kept, key)

    def _buried(self, record: Record, why: str) -> Outgoing:
        """The dead letter of a record that cannot go where it should."""
        self._dead.need()
        known = known_headers(headers_in(record))
        topic, handed = known.get(TOPIC, ""), number(known.get(DELIVERIES))
        letter = DeadLetter(
            id=known.get(ID) or f"{record.topic()}-{record.partition()}-{record.offset()}",
            queue=self._location.queue(topic),
            reason=f"it was due, and {why}",
            at=self._clock.time(),
            worker=self._name,
            deliveries=handed,
            frame=record.value() or b"",
        )
        log.error("message %s of queue %r is dead: %s", letter.id, letter.queue, letter.reason)
        headers, value = letter_headers(letter, handed), bytes(letter.frame)
        return Outgoing(self._location.dead_topic, value, headers, letter.id.encode(), 0)

    def _trim(self) -> None:
        """Delete what has left the lines."""
        now = self._clock.monotonic()
        if self._moved and now >= self._trim_at:
            self._trim_at = now + TRIM_EVERY
            moved, self._moved = self._moved, {}
            self._cluster.delete_before(moved)


def _assigned(consumer: Consumer, places: list[TopicPartition]) -> None:
    consumer.incremental_assign(places)
    consumer.resume(places)  # those that were ours before, and asleep, still are for librdkafka


def _due(record: Record) -> float:
    try:
        return float(known_headers(headers_in(record)).get(DUE, "0"))
    except ValueError:
        return 0.0
