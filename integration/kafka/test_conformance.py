from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from integration.servers.kafka import KafkaServer
from taskline.clock import Clock
from taskline.testing.transport_suite import TransportConformance
from taskline.transports.kafka import KafkaTransport

pytestmark = pytest.mark.skipif(
    not os.environ.get("TASKLINE_TEST_KAFKA_ALL"), reason="minutes: set TASKLINE_TEST_KAFKA_ALL=1"
)


class TestKafkaTransport(TransportConformance):
    """Topics of one partition, so that a second connection gets what the first gives up."""

    manual_clock = False
    short = 0.8
    partitions = 1
    contested = 4
    crowd = 200

    @pytest.fixture
    def make_transport(
        self, kafka_server: KafkaServer, kafka_name: str
    ) -> Callable[[Clock], KafkaTransport]:
        url = (
            f"{kafka_server.url}?prefix={kafka_name}.&group={kafka_name}"
            f"&partitions={self.partitions}"
        )
        return lambda clock: KafkaTransport.from_spec(url, clock)
