"""Workflows, schedules, durable steps, streams and batches on RabbitMQ, results elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.everywhere import Everywhere, Place


class TestRabbitMQ(Everywhere):
    """Through kombu, with results in SQLite."""

    @pytest.fixture
    def place(self, rabbitmq_url: str, tmp_path: Path) -> Place:
        return Place(rabbitmq_url, f"sqlite:///{tmp_path}/results.db")
