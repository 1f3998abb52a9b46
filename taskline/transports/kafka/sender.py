"""Sending: an idempotent producer, and one thread that collects what the broker answers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import msgspec
from confluent_kafka import KafkaError, KafkaException

from taskline.errors import TransportError
from taskline.kafka.client import new_producer
from taskline.kafka.errors import REFUSED, Ear, translate
from taskline.kafka.location import Location
from taskline.transports.kafka.records import Headers

if TYPE_CHECKING:
    from confluent_kafka import Message as Record
    from confluent_kafka import Producer

NOW = 0
"""The timestamp by which librdkafka gives a record the time at which it gets it."""
POLL = 0.2
"""Seconds after which the thread looks whether it is to end."""


class Outgoing(msgspec.Struct, gc=False):
    """One record to be written."""

    topic: str
    value: bytes | None
    headers: Headers
    key: bytes | None = None
    partition: int = -1
    """-1: by the key, or else any."""


class _Pending:
    """The records of one call that the broker has not answered for."""

    __slots__ = ("answered", "done", "error", "unplaced", "wanted")

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.answered = 0
        """Counted by the collecting thread only."""
        self.error: KafkaError | None = None
        self.unplaced = 0
        """Said to be stored, but not where: see `begin`."""
        self.done = threading.Event()
        if not wanted:
            self.done.set()

    def delivered(self, error: KafkaError | None, record: Record) -> None:
        """One was answered for. Called by the collecting thread only."""
        if error is not None:
            self.error = error
        else:
            offset = record.offset()
            if offset is None or offset < 0:
                self.unplaced += 1
        self.answered += 1
        if self.answered >= self.wanted:
            self.done.set()

    def end_at(self, wanted: int, error: KafkaException) -> None:
        """Only so many were taken, and then there was this error."""
        self.error = error.args[0]
        self.wanted = wanted
        if self.answered >= wanted:
            self.done.set()


class Sender:
    """Any thread may `begin`; one thread of its own, `taskline-kafka-sender`, serves callbacks.

    Records of many callers travel in common batches.
    """

    def __init__(self, location: Location, failed: Callable[[], None]) -> None:
        """`failed` is called when a record was not stored."""
        self._location = location
        self._failed = failed
        self._ear = Ear()
        self._producer = new_producer(location, error_cb=self._ear)
        self._closing = threading.Event()
        self._thread = threading.Thread(
            target=self._collect, name="taskline-kafka-sender", daemon=True
        )
        self._thread.start()

    def begin(self, records: Sequence[Outgoing]) -> Callable[[], None]:
        """Give all to librdkafka; what this returns waits until the broker has acknowledged each.

        That raises `TransportError`. Of a record that the broker refused librdkafka says that it is
        stored, without an offset, once a later one of its partition is: that counts as an error
        (see `new_producer`).
        """
        pending = _Pending(len(records))
        produce, delivered = self._producer.produce, pending.delivered
        for number, each in enumerate(records):
            while True:
                try:
                    # All by position: names cost a quarter of the call.
                    produce(
                        each.topic,
                        each.value,
                        each.key,
                        each.partition,
                        delivered,
                        None,
                        NOW,
                        each.headers,
                    )
                    break
                except BufferError:  # the local queue is full: the thread empties it
                    pending.done.wait(0.01)
                except KafkaException as error:  # others are under way
                    pending.end_at(number, error)
                    return partial(self._wait, pending, number)
        return partial(self._wait, pending, len(records))

    def _wait(self, pending: _Pending, count: int) -> None:
        if not pending.done.wait(self._location.timeout + 5 * POLL):
            left = count - pending.answered
            raise TransportError(
                f"Kafka at {self._location.brokers} has not acknowledged {left} messages "
                f"within {self._location.timeout:g} s; they may be stored all the same"
            )
        if pending.error is not None:
            self._failed()
            raise translate(self._location, pending.error, "take a message", self._ear)
        if pending.unplaced:
            raise TransportError(
                f"Kafka at {self._location.brokers} has taken messages in the wrong order, and "
                f"{pending.unplaced} of {count} perhaps not at all: send them again, and "
                "leave max.in.flight.requests.per.connection at 1"
            )

    def _collect(self) -> None:
        while not self._closing.is_set():
            self._producer.poll(POLL)

    def close(self) -> None:
        """End the thread and drop the producer."""
        self._closing.set()
        self._thread.join(5 * POLL)


def write(producer: Producer, records: Sequence[Outgoing]) -> list[KafkaError]:
    """Give records to a transactional producer: the commit of its transaction waits for them.

    What was not stored, and why, is in the list that this returns by then: see `cause`.
    """
    errors: list[KafkaError] = []

    def delivered(error: KafkaError | None, record: Record) -> None:
        if error is not None:
            errors.append(error)

    for each in records:
        producer.produce(
            each.topic, each.value, each.key, each.partition, delivered, headers=each.headers
        )
    return errors


def cause(producer: Producer, errors: list[KafkaError], error: KafkaException) -> KafkaException:
    """Why a transaction failed: the next call often tells only that it must be aborted."""
    producer.poll(0)
    return next((KafkaException(each) for each in errors if each.code() in REFUSED), error)
