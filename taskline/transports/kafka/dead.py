"""The dead letters: a compacted topic with one partition, keyed by the ids of the messages.

A letter is its record, and a record without a value says that it is gone. Who wants the
letters reads the topic; a reader is kept, so that the next call reads only what is new.
To requeue or purge is to read, decide and write: one at a time does so in the whole
cluster, the holder of one transactional id, which each takes from the one before.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from taskline.clock import Clock
from taskline.errors import TransportError
from taskline.kafka.client import new_consumer, new_producer
from taskline.kafka.cluster import Cluster
from taskline.kafka.errors import FENCED, code_of, translate
from taskline.kafka.location import Location
from taskline.message import DeadLetter, Delivery
from taskline.transports.kafka.records import handed_of, letter_headers, letter_of
from taskline.transports.kafka.sender import Outgoing, write

if TYPE_CHECKING:
    from confluent_kafka import Producer

POLL = 0.2

_deciding = threading.Lock()
"""Held by the thread of this process that requeues or purges: others would only fence it."""


class _Reader:
    """All letters up to some offset of the topic."""

    def __init__(self, location: Location) -> None:
        self._location = location
        self._consumer = new_consumer(
            location, **{"group.id": f"{location.dead_topic}-readers", "fetch.wait.max.ms": 10}
        )
        self._consumer.assign([TopicPartition(location.dead_topic, 0, 0)])
        self._at = 0
        self.letters: dict[str, DeadLetter] = {}
        """By id, in the order of their burial."""
        self.handed: dict[str, int] = {}
        """By id, how often the message was handed over."""

    def read(self, end: int, clock: Clock) -> None:
        """Read on to the offset `end`."""
        until = clock.monotonic() + 2 * self._location.timeout
        while self._at < end:
            first = self._consumer.poll(POLL)
            for record in [first, *self._consumer.consume(1000, 0)] if first is not None else ():
                error = record.error()
                if error is not None:
                    if error.code() != KafkaError._PARTITION_EOF:
                        raise translate(self._location, error, "read the dead letters")
                    self._at = max(self._at, record.offset() or 0)
                    continue
                self._at = max(self._at, (record.offset() or 0) + 1)
                letter = letter_of(record)
                self.letters.pop(letter.id, None)
                self.handed.pop(letter.id, None)
                if record.value() is not None:
                    self.letters[letter.id] = letter
                    self.handed[letter.id] = handed_of(record)
            if clock.monotonic() > until:
                raise TransportError(
                    f"Kafka at {self._location.brokers} has not handed over the dead letters "
                    f"within {2 * self._location.timeout:g} s"
                )

    def close(self) -> None:
        self._consumer.close()


class DeadLetters:
    """Any thread may call; each call has a reader to itself."""

    def __init__(self, location: Location, cluster: Cluster, clock: Clock) -> None:
        self._location = location
        self._cluster = cluster
        self._clock = clock
        self._readers: deque[_Reader] = deque()
        self._producer: Producer | None = None
        """Used under `_deciding`; somebody else's is refused once this one has begun."""

    def need(self) -> None:
        """Make sure that the topic is there."""
        self._cluster.need(self._location.dead_topic, 1, **{"cleanup.policy": "compact"})

    def record(self, delivery: Delivery, letter: DeadLetter) -> Outgoing:
        """The record of a letter."""
        return Outgoing(
            self._location.dead_topic,
            bytes(letter.frame),
            letter_headers(letter, delivery.deliveries),
            letter.id.encode(),
            0,
        )

    def all(self) -> dict[str, DeadLetter]:
        """Every letter, the oldest first."""
        return self._read()[0]

    def _read(self) -> tuple[dict[str, DeadLetter], dict[str, int]]:
        """Every letter, and how often its message was handed over."""
        end = self._cluster.end(self._location.dead_topic)
        if not end:
            return {}, {}
        try:
            reader = self._readers.pop()
        except IndexError:
            reader = _Reader(self._location)
        try:
            reader.read(end, self._clock)
            return dict(reader.letters), dict(reader.handed)
        finally:
            self._readers.append(reader)

    def take(
        self, ids: Sequence[str], make: Callable[[DeadLetter, int], Outgoing | None]
    ) -> list[str]:
        """Remove the letters of these ids, and in the same step write what is made of each.

        `make` gets a letter and how often its message was handed over. Returns the ids that had
        a letter. Of many who take one, one succeeds.
        """
        if not ids or not self._cluster.end(self._location.dead_topic):
            return []
        end = self._clock.monotonic() + self._location.timeout
        while True:
            try:
                with _deciding:
                    return self._decide(ids, make)
            except KafkaException as error:
                if code_of(error) not in FENCED or self._clock.monotonic() > end:
                    raise translate(self._location, error, "change the dead letters") from None

    def _decide(
        self, ids: Sequence[str], make: Callable[[DeadLetter, int], Outgoing | None]
    ) -> list[str]:
        location, timeout = self._location, self._location.timeout
        if not any(each in self._read()[0] for each in ids):
            return []
        producer = self._producer
        if producer is None:
            producer = new_producer(
                location,
                **{"transactional.id": location.dead_topic},
            )
            producer.init_transactions(timeout)  # from now on nobody else's transaction succeeds
            self._producer = producer
        letters, handed = self._read()
        found = [letters[each] for each in dict.fromkeys(ids) if each in letters]
        if not found:
            return []
        records = [Outgoing(location.dead_topic, None, [], each.id.encode(), 0) for each in found]
        records += [made for each in found if (made := make(each, handed[each.id])) is not None]
        producer.begin_transaction()
        try:
            write(producer, records)
            producer.commit_transaction(timeout)
        except KafkaException:
            self._producer = None  # the next one's init_transactions ends what this one left
            raise
        return [each.id for each in found]

    def close(self) -> None:
        """Close the readers."""
        self._producer = None
        while self._readers:
            self._readers.pop().close()
