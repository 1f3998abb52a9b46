"""Workflows, schedules, durable steps, streams and batches on Kafka, results in SQLite."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.everywhere import Everywhere, Place
from integration.servers.kafka import KafkaServer, RunningKafka


class TestKafka(Everywhere):
    @pytest.fixture
    def place(
        self, kafka_server: KafkaServer | RunningKafka, kafka_name: str, tmp_path: Path
    ) -> Place:
        options = f"prefix={kafka_name}.&group={kafka_name}&partitions=2"
        return Place(f"{kafka_server.url}?{options}", f"sqlite:///{tmp_path}/results.db")
