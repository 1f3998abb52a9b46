"""What fails while partitions come and go is told to who polls, as an error that can be caught."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from integration.servers.kafka import KafkaServer
from taskline.kafka.client import new_consumer
from taskline.kafka.cluster import Cluster
from taskline.kafka.location import locate
from taskline.testing.cases.transport import ids, messages
from taskline.transports import open_transport
from taskline.transports.kafka import member

PATIENCE = 60.0


def url_of(server: KafkaServer, name: str) -> str:
    return f"{server.url}?prefix={name}.&group={name}&partitions=1&session.timeout.ms=1000"


def test_the_error_of_a_callback_comes_from_the_poll(
    kafka_server: KafkaServer, kafka_name: str
) -> None:
    location = locate(url_of(kafka_server, kafka_name))
    Cluster(location).need(location.topic("mail"))
    consumer = new_consumer(location, **{"group.id": kafka_name})

    def assigned(consumer: Consumer, places: list[TopicPartition]) -> None:
        raise KafkaException(KafkaError(KafkaError._DESTROY_BROKER))

    consumer.subscribe([location.topic("mail")], on_assign=assigned)

    def poll() -> None:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            consumer.poll(0.1)

    with contextlib.closing(consumer), pytest.raises(KafkaException, match="destroyed"):
        poll()


def test_a_member_that_could_not_take_its_partitions_tries_again(
    kafka_server: KafkaServer, kafka_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker was restarted in that moment, say."""
    failed: list[bool] = []
    decode = member.decode

    def fail_once(*args: Any) -> Any:
        if not failed:
            failed.append(True)
            raise KafkaException(KafkaError(KafkaError._DESTROY_BROKER))
        return decode(*args)

    monkeypatch.setattr(member, "decode", fail_once)
    transport = open_transport(url_of(kafka_server, kafka_name))
    transport.send(sent := messages(3))
    taken: list[str] = []
    end = time.monotonic() + PATIENCE
    while len(taken) < 3:
        assert time.monotonic() < end
        with contextlib.suppress(Exception):
            taken += ids(transport.receive(["mail"], 10, 1.0, 1.0, "w"))
    assert failed
    assert sorted(taken) == sorted(ids(sent))
    transport.close()
