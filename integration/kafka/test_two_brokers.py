"""What comes by Kafka is passed on by Redis."""

from __future__ import annotations

import pytest

from integration.servers.kafka import KafkaServer, RunningKafka
from integration.two_brokers import Bus, TwoBrokers


class TestKafkaToRedis(TwoBrokers):
    @pytest.fixture
    def bus(self, kafka_server: KafkaServer | RunningKafka, kafka_name: str) -> Bus:
        options = f"prefix={kafka_name}.&group={kafka_name}&partitions=2&session.timeout.ms=1000"
        return Bus(f"{kafka_server.url}?{options}")
