"""The whole workflow suite on RabbitMQ, where TASKLINE_TEST_WORKFLOWS is set; results in SQLite."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.everywhere import whole_suite
from taskline import Taskline
from taskline.testing.flow_suite import MakeApp, WorkflowConformance
from taskline.testing.stepping import Hand

pytestmark = whole_suite


class TestRabbitMQ(WorkflowConformance):
    @pytest.fixture
    def make_app(
        self, rabbitmq_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> MakeApp:
        monkeypatch.setattr(Hand, "patience", 0.3)
        backend = f"sqlite:///{tmp_path}/results.db"
        return lambda **settings: Taskline("test", broker=rabbitmq_url, backend=backend, **settings)
