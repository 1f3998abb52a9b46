"""What a send says is stored has been acknowledged, each record of it. Without a broker."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from taskline.errors import TransportError
from taskline.kafka.location import locate
from taskline.transports.kafka import sender as module
from taskline.transports.kafka.sender import Outgoing, Sender

Report = Callable[[KafkaError | None, Any], None]


class Record:
    def __init__(self, offset: int | None) -> None:
        self._offset = offset

    def offset(self) -> int | None:
        return self._offset


class Producer:
    """librdkafka's, of which the test says when it answers, and what."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.answers: list[tuple[Report, KafkaError | None, int | None]] = []
        self.full = 0
        """How many more times the queue is full."""
        self.too_large = b""
        """The value that is not taken."""
        self.room = threading.Condition()

    def produce(self, topic: str, value: bytes, key: Any, n: int, report: Report, *_: Any) -> None:
        if self.full:
            self.full -= 1
            raise BufferError("Local: Queue full")
        if value == self.too_large:
            raise KafkaException(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE))
        self.reports.append(report)

    def answer(self, count: int, error: KafkaError | None = None, offset: int | None = 7) -> None:
        with self.room:
            for _ in range(count):
                self.answers.append((self.reports.pop(0), error, offset))
            self.room.notify()

    def poll(self, timeout: float) -> None:
        with self.room:
            if not self.answers:
                self.room.wait(timeout)
            answers, self.answers = self.answers, []
        for report, error, offset in answers:
            report(error, Record(offset))


@pytest.fixture
def producer(monkeypatch: pytest.MonkeyPatch) -> Producer:
    producer = Producer()
    monkeypatch.setattr(module, "new_producer", lambda location, **more: producer)
    return producer


@pytest.fixture
def sender(producer: Producer) -> Iterator[Sender]:
    sender = Sender(locate("kafka://nowhere?timeout=20"), lambda: None)
    yield sender
    sender.close()


def records(count: int) -> list[Outgoing]:
    return [Outgoing("mail", b"%d" % n, []) for n in range(count)]


def test_it_ends_when_the_last_one_is_acknowledged(sender: Sender, producer: Producer) -> None:
    wait = sender.begin(records(3))
    assert len(producer.reports) == 3, "without waiting"
    ended = threading.Event()
    waiting = threading.Thread(target=lambda: (wait(), ended.set()), daemon=True)
    waiting.start()
    producer.answer(2)
    assert not ended.wait(0.3)
    producer.answer(1)
    assert ended.wait(10)
    waiting.join()


def test_calls_under_way_are_told_apart(sender: Sender, producer: Producer) -> None:
    first, second = sender.begin(records(2)), sender.begin(records(2))
    producer.answer(2)
    first()
    producer.answer(1, KafkaError(KafkaError._MSG_TIMED_OUT))
    producer.answer(1)
    with pytest.raises(TransportError, match=r"timed out"):
        second()


@pytest.mark.parametrize("at", [0, 1, 2])
def test_one_that_is_refused_fails_the_call(sender: Sender, producer: Producer, at: int) -> None:
    wait = sender.begin(records(3))
    producer.answer(at)
    producer.answer(1, KafkaError(KafkaError.MSG_SIZE_TOO_LARGE))
    producer.answer(2 - at)
    with pytest.raises(TransportError):
        wait()


@pytest.mark.parametrize("taken", [0, 1, 2])
@pytest.mark.parametrize("answered_before", [True, False])
def test_one_that_is_not_taken_fails_the_call_when_those_before_are_answered(
    sender: Sender, producer: Producer, taken: int, answered_before: bool
) -> None:
    producer.too_large = b"%d" % taken
    wait = sender.begin(records(3))
    assert len(producer.reports) == taken, "nothing behind it"
    ended = threading.Event()

    def end() -> None:
        with pytest.raises(TransportError, match="take a message") as caught:
            wait()
        assert not caught.value.retryable
        ended.set()

    if answered_before:
        producer.answer(taken)
    waiting = threading.Thread(target=end, daemon=True)
    waiting.start()
    if taken and not answered_before:
        assert not ended.wait(0.1), "others are under way"
        producer.answer(taken)
    assert ended.wait(10)
    waiting.join()


@pytest.mark.parametrize("offset", [None, -1, -1001])
def test_one_without_an_offset_is_not_believed(
    sender: Sender, producer: Producer, offset: int | None
) -> None:
    wait = sender.begin(records(3))
    producer.answer(1, offset=offset)
    producer.answer(2)
    with pytest.raises(TransportError, match=r"1 of 3 perhaps not at all"):
        wait()


def test_the_first_offset_of_a_partition_is_one(sender: Sender, producer: Producer) -> None:
    wait = sender.begin(records(1))
    producer.answer(1, offset=0)
    wait()


def test_a_full_queue_is_waited_for(sender: Sender, producer: Producer) -> None:
    producer.full = 3
    wait = sender.begin(records(2))
    producer.answer(2)
    wait()


def test_nothing_to_send(sender: Sender) -> None:
    sender.begin([])()


def test_no_answer(producer: Producer) -> None:
    sender = Sender(locate("kafka://nowhere?timeout=0.1"), lambda: None)
    try:
        wait = sender.begin(records(3))
        producer.answer(1)
        with pytest.raises(TransportError, match=r"has not acknowledged 2 messages within 0\.1 s"):
            wait()
    finally:
        sender.close()
