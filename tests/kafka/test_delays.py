"""The mover of delayed messages, as far as it needs no broker."""

from __future__ import annotations

import logging
from typing import Any

import pytest

pytest.importorskip("confluent_kafka")

from confluent_kafka import (
    TIMESTAMP_CREATE_TIME,
    TIMESTAMP_LOG_APPEND_TIME,
    KafkaError,
    KafkaException,
)

from taskline.clock import SYSTEM_CLOCK
from taskline.kafka.cluster import Cluster
from taskline.kafka.errors import Ear
from taskline.kafka.location import locate
from taskline.transports.kafka.dead import DeadLetters
from taskline.transports.kafka.delays import Delays


class Consumer:
    """One whose brokers are down so often."""

    def __init__(self, down: int) -> None:
        self.down = down

    def list_topics(self, topic: str, timeout: float) -> None:
        self.down -= 1
        if self.down >= 0:
            raise KafkaException(KafkaError(KafkaError._TRANSPORT))


@pytest.fixture
def delays(monkeypatch: pytest.MonkeyPatch) -> Delays:
    monkeypatch.setattr(Delays, "_run", lambda self: None)
    location = locate("kafka://localhost:1")
    cluster = Cluster(location)
    dead = DeadLetters(location, cluster, SYSTEM_CLOCK)
    return Delays(location, cluster, dead, "w", SYSTEM_CLOCK)


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    return [(each.levelno, each.getMessage()) for each in caplog.records]


def test_brokers_that_are_down_are_told_of_once_and_when_they_are_back(
    delays: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    consumer, ear = Consumer(3), Ear()
    ear(
        KafkaError(
            KafkaError._TRANSPORT,
            "b:1: Connection refused (after 0ms in state CONNECT, 3 identical error(s) suppressed)",
        )
    )
    assert not ear.alarmed
    ear(KafkaError(KafkaError._ALL_BROKERS_DOWN, "1/1 brokers are down"))
    while ear.alarmed:
        delays._look(consumer, ear)
    why = "b:1: Connection refused"
    assert told(caplog) == [
        (logging.ERROR, f"Kafka at localhost:1 cannot be reached: {why}; trying until it works"),
        (logging.INFO, "Kafka at localhost:1 answers again"),
    ]


def test_a_connection_that_is_back_already_is_no_news(
    delays: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    ear = Ear()
    ear(KafkaError(KafkaError._ALL_BROKERS_DOWN, "1/1 brokers are down"))
    delays._look(Consumer(0), ear)
    assert not ear.alarmed
    assert told(caplog) == []


class Waiting:
    """A record in line 2 that is due in an hour, and entered at this time by this kind of clock."""

    def __init__(self, entered: float, kind: int) -> None:
        self.stamp = (kind, int(entered * 1000))

    def error(self) -> None:
        return None

    def partition(self) -> int:
        return 2

    def offset(self) -> int:
        return 7

    def timestamp(self) -> tuple[int, int]:
        return self.stamp

    def headers(self) -> list[tuple[str, bytes]]:
        return [("taskline-due", repr(SYSTEM_CLOCK.time() + 3600).encode())]


class Line:
    """A consumer's, which is put to sleep or not."""

    asleep = False

    def pause(self, places: object) -> None:
        self.asleep = True

    def seek(self, place: object) -> None:
        pass


@pytest.mark.parametrize(
    ("ahead", "kind", "leaves"),
    [
        (1800, TIMESTAMP_CREATE_TIME, True),
        (-1, TIMESTAMP_CREATE_TIME, False),
        (-60, TIMESTAMP_CREATE_TIME, True),
        (1, TIMESTAMP_LOG_APPEND_TIME, False),  # it would be so each time
    ],
)
def test_a_sender_whose_clock_is_ahead_holds_up_nobody(
    delays: Any, ahead: float, kind: int, leaves: bool
) -> None:
    line, record = Line(), Waiting(SYSTEM_CLOCK.time() + ahead, kind)
    assert bool(delays._leaving(line, [record])) == leaves
    assert line.asleep != leaves
