"""Clients of librdkafka, its errors as ours, and what is asked of the cluster."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from confluent_kafka import (
    Consumer,
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    Producer,
    TopicPartition,
    libversion,
)
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec  # type: ignore[attr-defined]

from taskline.clock import SYSTEM_CLOCK
from taskline.errors import ConfigurationError, TransportError
from taskline.kafka.consumer import SafeConsumer
from taskline.kafka.location import NEVER, Location
from taskline.kafka.marks import Marks, decode

log = logging.getLogger("taskline.kafka")

MESSAGE_BYTES = 8 * 1024 * 1024
"""The largest message that our producers send and our topics take."""
IN_FLIGHT = "max.in.flight.requests.per.connection"
"""Requests under way to one broker. With more than one, a broker that has just become the leader
of a new partition may refuse the first and take the second (KAFKA-15591, mended in 2026); from
that librdkafka concludes that both are stored (its issue 2501), and one is lost."""
VERSION = f"librdkafka {libversion()[0]}"


class _Whisper:
    """A logger for librdkafka: errors come back from calls, all else is for who debugs."""

    def log(self, level: int, text: str, *arguments: Any) -> None:
        log.debug(text, *arguments)


_QUIET = {"logger": _Whisper(), "error_cb": lambda error: None}
_RECONNECT = {"reconnect.backoff.ms": 50, "reconnect.backoff.max.ms": 1000}

_LOGIN = ("bootstrap.servers", "client.", "enable.ssl", "sasl.", "security.", "ssl.")

_FINAL = {
    KafkaError.MSG_SIZE_TOO_LARGE,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    KafkaError.POLICY_VIOLATION,
    KafkaError.INVALID_REPLICATION_FACTOR,
    KafkaError._AUTHENTICATION,
    KafkaError.SASL_AUTHENTICATION_FAILED,
}
"""Errors that no repetition helps against."""

FENCED = {
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError.FENCED_INSTANCE_ID,
    KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError._FENCED,
    KafkaError.INVALID_PRODUCER_EPOCH,
    KafkaError.PRODUCER_FENCED,
    KafkaError._ASSIGNMENT_LOST,
}
"""The broker has given what we hold to another, or is about to decide about it."""


def code_of(error: KafkaException | KafkaError) -> int:
    """The number of an error; exceptions bear one."""
    found = error.args[0] if isinstance(error, KafkaException) else error
    return int(found.code()) if isinstance(found, KafkaError) else 0


def translate(location: Location, error: KafkaException | KafkaError, what: str) -> TransportError:
    """Our error for one of librdkafka's; `what` was being done."""
    found = error.args[0] if isinstance(error, KafkaException) else error
    text = found.str() if isinstance(found, KafkaError) else str(found)
    return TransportError(
        f"Kafka at {location.brokers} cannot {what}: {text.rstrip('.')}",
        retryable=code_of(error) not in _FINAL,
    )


@contextlib.contextmanager
def asking(location: Location, what: str) -> Iterator[None]:
    """Errors of librdkafka inside become ours."""
    try:
        yield
    except KafkaException as error:
        raise translate(location, error, what) from None


def new_producer(location: Location, **more: Any) -> Producer:
    """An idempotent producer with acks=all; raises `ConfigurationError` for a wrong setting.

    The user may let it have more requests under way, not within transactions, where nobody would
    see that a record is missing.
    """
    settings = {
        **_QUIET,
        **_RECONNECT,
        "enable.idempotence": True,
        "acks": "all",
        IN_FLIGHT: 1,
        "linger.ms": 0.5,
        # Each message without a key finds its own partition, or few of them would get no worker.
        "sticky.partitioning.linger.ms": 0,
        "message.max.bytes": MESSAGE_BYTES,
        "message.timeout.ms": int(location.timeout * 1000),
        "retry.backoff.ms": 10,
        "queue.buffering.max.messages": 500_000,
        **location.producer,
        **more,
    }
    if "transactional.id" in more:
        settings.pop("max.in.flight", None)
        settings[IN_FLIGHT] = 1
        # librdkafka refuses to wait for a message longer than its transaction may last.
        longest = int(settings.get("transaction.timeout.ms", 60_000))
        settings["message.timeout.ms"] = min(int(settings["message.timeout.ms"]), longest)
    with _configuring():
        return Producer(settings)


def new_consumer(location: Location, **more: Any) -> Consumer:
    """A consumer that commits nothing by itself; raises `ConfigurationError`."""
    settings = {
        **_QUIET,
        **_RECONNECT,
        "auto.offset.reset": "earliest",
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "enable.partition.eof": True,
        "isolation.level": "read_committed",
        "allow.auto.create.topics": False,
        "fetch.message.max.bytes": MESSAGE_BYTES,
        "queued.min.messages": 2000,
        "queued.max.messages.kbytes": 16384,
        "topic.metadata.refresh.interval.ms": 10_000,
        **location.consumer,
        **more,
    }
    with _configuring():
        return SafeConsumer(settings)


@contextlib.contextmanager
def _configuring() -> Iterator[None]:
    try:
        yield
    except (KafkaException, TypeError, ValueError) as error:
        found = error.args[0] if error.args else error
        text = found.str() if isinstance(found, KafkaError) else str(found)
        raise ConfigurationError(f"librdkafka does not take its settings: {text}") from None


class Cluster:
    """What is asked of the cluster besides messages. Any thread may; it owns an admin client."""

    def __init__(self, location: Location) -> None:
        self.location = location
        self._client: AdminClient | None = None
        self._lock = threading.Lock()
        self._known: set[str] = set()
        """Topics that are there."""

    def _admin(self) -> AdminClient:
        with self._lock:
            if self._client is None:
                settings: dict[str, Any] = {**_QUIET, **_RECONNECT}
                for name, value in self.location.consumer.items():
                    if name.startswith(_LOGIN):
                        settings[name] = value
                with _configuring():
                    self._client = AdminClient(settings)
            return self._client

    def topics(self) -> dict[str, int]:
        """All topics, with the number of their partitions."""
        with asking(self.location, "be reached"):
            found = self._admin().list_topics(timeout=self.location.timeout)
        return {name: len(topic.partitions) for name, topic in found.topics.items()}

    def describe(self) -> dict[str, Any]:
        """The cluster's id and the number of its brokers."""
        with asking(self.location, "be reached"):
            found = self._admin().list_topics(timeout=self.location.timeout)
        return {"cluster": found.cluster_id, "brokers": len(found.brokers)}

    def need(self, topic: str, partitions: int = 0, **settings: str) -> None:
        """Make sure that a topic is there: create it where that is allowed.

        Raises `ConfigurationError` where it is not there and must not be created.
        """
        if topic in self._known:
            return
        if topic not in self.topics():
            if self.location.create_topics == NEVER:
                raise ConfigurationError(
                    f"Kafka has no topic {topic!r} and create_topics=never: create it "
                    f"(kafka-topics.sh --create --topic {topic}) or allow create_topics=auto"
                )
            self._create(topic, partitions or self.location.partitions, settings)
        self._known.add(topic)

    def forget(self, topic: str) -> None:
        """It may not be there any more."""
        self._known.discard(topic)

    def _create(self, topic: str, partitions: int, settings: dict[str, str]) -> None:
        retention = self.location.retention
        wanted = {
            "retention.ms": str(int(retention * 1000) if retention >= 0 else -1),
            "max.message.bytes": str(MESSAGE_BYTES + 65536),
            **settings,
        }
        new = NewTopic(topic, partitions, self.location.replication, config=wanted)
        with asking(self.location, f"create the topic {topic!r}"):
            for future in self._admin().create_topics([new]).values():
                try:
                    future.result(self.location.timeout)
                except KafkaException as error:
                    if code_of(error) != KafkaError.TOPIC_ALREADY_EXISTS:  # another was faster
                        raise
        for _ in range(100):  # a consumer that subscribes before brokers know it sees it much later
            if self.topics().get(topic):
                break
            SYSTEM_CLOCK.sleep(0.02)

    def ends(self, topics: Iterable[str]) -> dict[tuple[str, int], tuple[int, int]]:
        """The first and the next offset of each partition of these topics."""
        there = self.topics()
        places = [(topic, n) for topic in topics for n in range(there.get(topic, 0))]
        found = []
        for spec in (OffsetSpec.earliest(), OffsetSpec.latest()):
            with asking(self.location, "tell its offsets"):
                asked = self._admin().list_offsets(
                    {TopicPartition(topic, n): spec for topic, n in places},
                    request_timeout=self.location.timeout,
                )
                found.append(
                    {
                        (place.topic, place.partition): future.result(self.location.timeout).offset
                        for place, future in asked.items()
                    }
                )
        first, after = found
        return {place: (first[place], after[place]) for place in places}

    def end(self, topic: str) -> int:
        """The next offset of a topic's only partition; 0 where there is no topic."""
        if topic not in self._known and topic not in self.topics():
            return 0
        place = TopicPartition(topic, 0)
        with asking(self.location, "tell its offsets"):
            asked = self._admin().list_offsets(
                {place: OffsetSpec.latest()}, request_timeout=self.location.timeout
            )
            return int(asked[place].result(self.location.timeout).offset)

    def group_marks(self, group: str) -> dict[tuple[str, int], Marks]:
        """What a group has committed."""
        with asking(self.location, f"tell the offsets of group {group!r}"):
            asked = self._admin().list_consumer_group_offsets(
                [ConsumerGroupTopicPartitions(group)], request_timeout=self.location.timeout
            )
            found = asked[group].result(self.location.timeout)
        return {
            (place.topic, place.partition): decode(place.offset, place.metadata)
            for place in found.topic_partitions
            if place.offset >= 0
        }

    def members(self, group: str) -> dict[str, list[TopicPartition]]:
        """The static members of a group, and what they have."""
        with asking(self.location, f"describe group {group!r}"):
            asked = self._admin().describe_consumer_groups(
                [group], request_timeout=self.location.timeout
            )
            found = asked[group].result(self.location.timeout)
        return {
            each.group_instance_id: list(each.assignment.topic_partitions)
            for each in found.members
            if each.group_instance_id
        }

    def delete_before(self, offsets: dict[tuple[str, int], int]) -> None:
        """Delete the records before these offsets."""
        if not offsets:
            return
        with asking(self.location, "delete records"):
            asked = self._admin().delete_records(
                [TopicPartition(topic, n, offset) for (topic, n), offset in offsets.items()],
                request_timeout=self.location.timeout,
            )
            for future in asked.values():
                future.result(self.location.timeout)

    def close(self) -> None:
        """Drop the client."""
        with self._lock:
            self._client = None
