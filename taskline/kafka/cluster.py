"""What is asked of the cluster besides messages: topics, groups, offsets."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    ClusterMetadata,
    ConfigResource,
    NewTopic,
    OffsetSpec,
)

from taskline.clock import SYSTEM_CLOCK
from taskline.errors import ConfigurationError
from taskline.kafka.client import ROOM, largest, new_admin, new_consumer
from taskline.kafka.errors import LEADERLESS, STARTING, Ear, asking, code_of, translate
from taskline.kafka.location import NEVER, Location
from taskline.kafka.marks import Marks, decode

log = logging.getLogger("taskline.kafka")

T = TypeVar("T")

# See `Cluster.members` for why it is called all the same.
warnings.filterwarnings("ignore", "list_groups.. is deprecated", DeprecationWarning)

AGAIN = 0.05
"""Seconds until a question is asked again that the broker could not answer yet."""
UUID = 37
"""Characters that the broker adds to a static member's name to make the member's id."""
KEEPS = {"retention.ms": "-1", "retention.bytes": "-1"}
"""What a topic has that deletes nothing by itself."""


class Cluster:
    """What is asked of the cluster besides messages. Any thread may; it owns an admin client."""

    def __init__(self, location: Location) -> None:
        self.location = location
        self._client: AdminClient | None = None
        self._readers: dict[str, Consumer] = {}
        """By the groups that they ask for."""
        self._lock = threading.Lock()
        self._ear = Ear()
        self._known: set[str] = set()
        """Topics that are there."""

    def _admin(self) -> AdminClient:
        with self._lock:
            if self._client is None:
                self._client = new_admin(self.location, self._ear)
            return self._client

    def _look(self) -> ClusterMetadata:
        client = self._admin()
        try:
            return client.list_topics(timeout=self.location.timeout)
        except KafkaException as error:
            client.poll(0)  # so that the ear hears why
            raise translate(self.location, error, "be reached", self._ear) from None

    def topics(self) -> dict[str, int]:
        """All topics, with the number of their partitions."""
        return {name: len(topic.partitions) for name, topic in self._look().topics.items()}

    def describe(self) -> dict[str, Any]:
        """The cluster's id and the number of its brokers."""
        found = self._look()
        return {"cluster": found.cluster_id, "brokers": len(found.brokers)}

    def need(self, topic: str, partitions: int = 0, **settings: str) -> None:
        """Make sure that a topic is there: create it where that is allowed.

        Raises `ConfigurationError` where it is not there and must not be created, or has fewer
        `partitions` or other `settings` than it must have.
        """
        if topic in self._known:
            return
        there = self.topics().get(topic)
        if there is None:
            if self.location.create_topics == NEVER:
                wanted = "".join(f" --config {name}={value}" for name, value in settings.items())
                count = f" --partitions {partitions}" if partitions else ""
                raise ConfigurationError(
                    f"Kafka has no topic {topic!r} and create_topics=never: create it "
                    f"(kafka-topics.sh --create --topic {topic}{count}{wanted}) or allow "
                    "create_topics=auto"
                )
            self._create(topic, partitions or self.location.partitions, settings)
        else:
            if there < partitions:
                raise ConfigurationError(
                    f"Kafka's topic {topic!r} has {there} partitions, and needs {partitions}: "
                    f"kafka-topics.sh --alter --topic {topic} --partitions {partitions}"
                )
            self._check(topic, settings)
        self._known.add(topic)

    def forget(self) -> None:
        """Look again which topics are there: somebody may have deleted some."""
        self._known = set()

    def _check(self, topic: str, settings: dict[str, str]) -> None:
        """Raise `ConfigurationError` where a topic would not keep what it must."""
        for name, value in self._settings([topic], settings).get(topic, {}).items():
            if value != settings[name]:
                raise ConfigurationError(
                    f"Kafka's topic {topic!r} would lose messages: it has {name}={value}, not "
                    f"{settings[name]}: kafka-configs.sh --alter --topic {topic} "
                    f"--add-config {name}={settings[name]}"
                )

    def tell_of_retention(self, topics: Iterable[str]) -> None:
        """Warn where the broker deletes messages that have waited too long."""
        if self.location.retention >= 0:
            return
        for topic, found in self._settings(topics, KEEPS).items():
            for name, value in found.items():
                if value != "-1":
                    log.warning(
                        "Kafka deletes from topic %r by %s=%s, tasks or not: set it to -1",
                        topic,
                        name,
                        value,
                    )

    def _settings(self, topics: Iterable[str], names: Iterable[str]) -> dict[str, dict[str, str]]:
        """These settings of these topics; nothing where they may not be seen."""
        resources = [ConfigResource(ConfigResource.Type.TOPIC, topic) for topic in topics]
        try:
            asked = self._admin().describe_configs(resources) if [*names] and resources else {}
            return {
                resource.name: {
                    name: setting.value
                    for name, setting in future.result(self.location.timeout).items()
                    if name in names
                }
                for resource, future in asked.items()
            }
        except (KafkaException, FutureTimeout) as error:
            log.debug("the settings of topics cannot be seen: %s", error)
            return {}

    def _create(self, topic: str, partitions: int, settings: dict[str, str]) -> None:
        location, retention = self.location, self.location.retention
        wanted = {
            **(KEEPS if retention < 0 else {"retention.ms": str(int(retention * 1000))}),
            "max.message.bytes": str(largest(location) + 2 * ROOM),
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
        first, after = (
            self._offsets(places, spec) for spec in (OffsetSpec.earliest(), OffsetSpec.latest())
        )
        return {place: (first[place], after[place]) for place in places}

    def end(self, topic: str) -> int:
        """The next offset of a topic's only partition; 0 where there is no topic."""
        if topic not in self._known and topic not in self.topics():
            return 0
        return self._offsets([(topic, 0)], OffsetSpec.latest())[topic, 0]

    def _offsets(
        self, places: Sequence[tuple[str, int]], spec: OffsetSpec
    ) -> dict[tuple[str, int], int]:
        """An offset of each of these partitions."""

        def ask() -> dict[tuple[str, int], int]:
            asked = self._admin().list_offsets(
                {TopicPartition(topic, number): spec for topic, number in places},
                request_timeout=self.location.timeout,
            )
            return {
                (place.topic, place.partition): future.result(self.location.timeout).offset
                for place, future in asked.items()
            }

        with asking(self.location, "tell its offsets"):
            return self._ask_again(ask, LEADERLESS)

    def _ask_again(self, ask: Callable[[], T], momentary: set[int]) -> T:
        """The answer, as soon as it is none of these errors; `timeout` seconds at most."""
        end = SYSTEM_CLOCK.monotonic() + self.location.timeout
        while True:
            try:
                return ask()
            except KafkaException as error:
                if code_of(error) not in momentary or SYSTEM_CLOCK.monotonic() > end:
                    raise
            SYSTEM_CLOCK.sleep(AGAIN)

    def group_marks(self, group: str, topics: Mapping[str, int]) -> dict[tuple[str, int], Marks]:
        """What a group has committed for topics, which are given with their partitions' number.

        A consumer asks. In the call that admin clients have for it (`list_consumer_group_offsets`)
        version 2.16 kills the process when the broker is not the group's coordinator yet, as on a
        new cluster (librdkafka's issue 5040).
        """
        places = [TopicPartition(topic, n) for topic, count in topics.items() for n in range(count)]
        if not places:
            return {}
        with asking(self.location, f"tell the offsets of group {group!r}"):
            found = self._ask_again(
                lambda: self._reader_of(group).committed(places, timeout=self.location.timeout),
                STARTING,
            )
            for place in found:
                if place.error is not None:
                    raise KafkaException(place.error)
        return {
            (place.topic, place.partition): decode(place.offset, place.metadata)
            for place in found
            if place.offset >= 0
        }

    def _reader_of(self, group: str) -> Consumer:
        """A consumer that knows the group and is no member of it."""
        with self._lock:
            if self._readers.get(group) is None:
                self._readers[group] = new_consumer(
                    self.location,
                    **{"group.id": group, "isolation.level": "read_uncommitted"},
                    error_cb=self._ear,
                )
            return self._readers[group]

    def members(self, group: str) -> dict[str, list[TopicPartition]]:
        """The static members of a group, and what they have.

        By the older of librdkafka's two calls: in the newer (`describe_consumer_groups`) version
        2.16 aborts the process when a broker comes back while it waits for it.
        """
        with asking(self.location, f"describe group {group!r}"):
            found: list[Any] = self._ask_again(
                lambda: self._admin().list_groups(group, timeout=self.location.timeout), STARTING
            )
        return {
            each.id[:-UUID]: _assigned(bytes(each.assignment or b""))
            for listed in found
            for each in listed.members
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
        """Drop the clients."""
        with self._lock:
            self._client = None
            readers, self._readers = self._readers, {}
        for reader in readers.values():
            reader.close()


def _assigned(raw: bytes) -> list[TopicPartition]:
    """What a ConsumerProtocolAssignment (Kafka's protocol) says."""
    places: list[TopicPartition] = []
    if not raw:
        return places
    at = 6
    for _ in range(int.from_bytes(raw[2:at], "big")):
        size = int.from_bytes(raw[at : at + 2], "big")
        at += 2 + size
        topic = raw[at - size : at].decode()
        numbers = int.from_bytes(raw[at : at + 4], "big")
        at += 4
        for n in range(at, at + 4 * numbers, 4):
            places.append(TopicPartition(topic, int.from_bytes(raw[n : n + 4], "big")))
        at += 4 * numbers
    return places
