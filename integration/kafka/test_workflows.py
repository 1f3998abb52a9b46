"""The whole workflow suite on Kafka, where TASKLINE_TEST_WORKFLOWS is set; results in SQLite."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.everywhere import whole_suite
from integration.servers.kafka import KafkaServer, RunningKafka
from taskline import Taskline
from taskline.testing.flow_suite import MakeApp, WorkflowConformance
from taskline.testing.stepping import Hand

pytestmark = whole_suite


class TestKafka(WorkflowConformance):
    @pytest.fixture
    def make_app(
        self,
        kafka_server: KafkaServer | RunningKafka,
        kafka_name: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> MakeApp:
        # A worker that joins waits for the one that died to be put out.
        monkeypatch.setattr(Hand, "patience", 4.0)
        options = f"prefix={kafka_name}.&group={kafka_name}&partitions=1&session.timeout.ms=1000"
        broker, backend = f"{kafka_server.url}?{options}", f"sqlite:///{tmp_path}/results.db"
        return lambda **settings: Taskline("test", broker=broker, backend=backend, **settings)
