"""The test broker itself: what is written is read, also after it was killed and started again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from integration.conftest import server_or_skip
from integration.servers.kafka import KafkaServer


@pytest.fixture
def server() -> Iterator[KafkaServer]:
    yield from server_or_skip(KafkaServer)


def test_what_was_acknowledged_survives_a_kill(server: KafkaServer) -> None:
    settings = {"bootstrap.servers": server.address}
    admin = AdminClient(settings)
    for created in admin.create_topics([NewTopic("orders", 1, 1)]).values():
        created.result(30)
    producer = Producer({**settings, "acks": "all"})
    producer.produce("orders", b"42")
    assert producer.flush(30) == 0
    server.kill()
    server.start()
    consumer = Consumer({**settings, "group.id": "readers"})
    consumer.assign([TopicPartition("orders", 0, 0)])
    try:
        message = consumer.poll(30)
        assert message is not None
        assert (message.error(), message.value()) == (None, b"42")
    finally:
        consumer.close()
