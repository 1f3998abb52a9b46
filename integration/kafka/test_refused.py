"""Messages that a topic does not take: they hold up nobody else, and none disappears."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka import Message as Record
from confluent_kafka.admin import AdminClient, NewTopic

from integration.servers.kafka import KafkaServer, RunningKafka
from taskline.clock import SYSTEM_CLOCK
from taskline.errors import TransportError
from taskline.kafka.client import MESSAGE_BYTES
from taskline.message import DeadLetter, Delivery, Header, Message, join
from taskline.testing.cases.transport import ids, letter, message
from taskline.transports.kafka import KafkaTransport

PATIENCE = 60.0
SMALL = {"max.message.bytes": "2000"}


class Place:
    """A transport on topics of the test alone, and who administers them."""

    def __init__(self, server: KafkaServer | RunningKafka, name: str) -> None:
        self.name = name
        self.admin = AdminClient({"bootstrap.servers": server.address})
        url = f"{server.url}?prefix={name}.&group={name}&partitions=1&message.timeout.ms=5000"
        self.transport = KafkaTransport.from_spec(url, SYSTEM_CLOCK)

    def create(self, queue: str, settings: dict[str, str]) -> None:
        topic = NewTopic(f"{self.name}.{queue}", 1, 1, config=settings)
        for created in self.admin.create_topics([topic]).values():
            created.result(PATIENCE)
        self.until(lambda: topic.topic in self.admin.list_topics(timeout=PATIENCE).topics)

    def records(self, queue: str, count: int) -> list[Record]:
        """What any consumer reads there."""
        reader = Consumer(
            {
                "bootstrap.servers": self.transport.location.brokers,
                "group.id": f"{self.name}-plain",
            }
        )
        reader.assign([TopicPartition(f"{self.name}.{queue}", 0, 0)])
        found: list[Record] = []

        def enough() -> bool:
            found.extend(each for each in reader.consume(10, 0.2) if each.error() is None)
            return len(found) >= count

        self.until(enough)
        reader.close()
        return found

    def delete(self, queue: str) -> None:
        for deleted in self.admin.delete_topics([f"{self.name}.{queue}"]).values():
            deleted.result(PATIENCE)

    def taken(self, count: int, queue: str = "mail") -> list[Delivery]:
        found: list[Delivery] = []

        def enough() -> bool:
            found.extend(self.transport.receive([queue], count - len(found), 30.0, 0.1, "w"))
            return len(found) >= count

        self.until(enough)
        return found

    def letters(self, count: int) -> list[DeadLetter]:
        self.until(lambda: len(self.transport.dead_letters()) >= count)
        return self.transport.dead_letters()

    @staticmethod
    def until(what: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not what():
            assert time.monotonic() < end
            time.sleep(0.02)


@pytest.fixture
def place(kafka_server: KafkaServer | RunningKafka, kafka_name: str) -> Iterator[Place]:
    made = Place(kafka_server, kafka_name)
    yield made
    made.transport.close()


def test_a_topic_that_was_deleted_is_there_when_its_messages_are_due(place: Place) -> None:
    due = time.time() + 1
    place.transport.send([message("a", "gone", eta=due), message("b", eta=due)])
    place.delete("gone")
    assert ids(place.taken(1)) == ["b"]
    assert ids(place.taken(1, "gone")) == ["a"]


def test_what_grew_too_large_while_it_waited_is_a_dead_letter(place: Place) -> None:
    place.create("small", SMALL)
    due = time.time() + 1
    large = message("large", "small", frame=b"x" * 3000, eta=due)
    place.transport.send([large, *(message(f"m{n}", eta=due) for n in range(3))])
    assert sorted(ids(place.taken(3))) == ["m0", "m1", "m2"]
    (dead,) = place.letters(1)
    assert (dead.id, dead.queue, dead.frame) == ("large", "small", large.frame)
    assert dead.reason.startswith("it was due, and its topic")
    assert "too large" in dead.reason


def test_the_largest_message_that_is_sent_can_be_tried_again_and_buried(place: Place) -> None:
    def sent(beyond: int) -> bool:
        body = b"x" * (MESSAGE_BYTES - beyond)
        try:
            place.transport.send([message("large", frame=body)])
        except TransportError:
            return False
        return True

    beyond = next(each for each in range(0, 2000, 20) if sent(each))
    (delivery,) = place.taken(1)
    again = message("large", frame=b"x" * (MESSAGE_BYTES - beyond))
    assert place.transport.replace([(delivery, again)]) == []
    (delivery,) = place.taken(1)
    assert place.transport.release([delivery], 0.5) == []
    (delivery,) = place.taken(1)
    dead = letter(delivery, reason="r" * 100_000)
    dead.traceback = "t" * 100_000
    assert place.transport.bury([(delivery, dead)]) == []
    assert ids(place.transport.dead_letters()) == ["large"]


def test_one_that_fits_into_no_topic_stays_where_it_is(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place.create("_dead_letters", {**SMALL, "cleanup.policy": "compact"})
    large = message("large", frame=b"x" * 3000)
    place.transport.send([message("a"), large, message("b")])
    taken = place.taken(3)
    assert ids(place.transport.bury([(each, letter(each)) for each in taken])) == ["large"]
    assert sorted(ids(place.transport.dead_letters())) == ["a", "b"]
    assert "message large of" in caplog.text
    assert "raise its max.message.bytes" in caplog.text
    (still,) = [each for each in taken if each.id == "large"]
    assert place.transport.extend([still], 30.0) == []


def test_what_was_said_for_other_readers_goes_with_a_message(place: Place) -> None:
    def sent(id: str) -> Delivery:
        said = {"kafka_key": "ann", "tenant": "a"}
        header = Header(1, id, "t", "mail", 0.0, headers=said, trace={"traceparent": "00-1"})
        place.transport.send([Message(header, join(header, b"[[],{}]"))])
        return place.taken(1)[0]

    said = {"tenant": b"a", "traceparent": b"00-1"}
    assert place.transport.release([sent("later")], 0.3) == []
    (later,) = place.taken(1)
    record = place.records("mail", 2)[-1]
    assert record.key() == b"ann"
    assert dict(record.headers() or ()).items() >= {"taskline-id": b"later", **said}.items()
    assert place.transport.ack([later]) == []
    bad = sent("bad")
    assert place.transport.bury([(bad, letter(bad))]) == []
    (record,) = place.records("_dead_letters", 1)
    told = {"taskline-reason": b"no such task", "taskline-queue": b"mail", **said}
    assert dict(record.headers() or ()).items() >= told.items()


def test_a_topic_that_was_deleted_is_made_anew_by_who_sends_again(place: Place) -> None:
    place.transport.send([message("a")])
    place.delete("mail")
    place.until(lambda: f"{place.name}.mail" not in place.admin.list_topics(timeout=5).topics)
    with pytest.raises(TransportError, match="cannot take a message"):
        place.transport.send([message("b")])
    place.transport.send([message("c")])
    assert ids(place.taken(1)) == ["c"]
