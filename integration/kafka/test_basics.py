"""What every run of the tests checks; the rest of the suite wants TASKLINE_TEST_KAFKA_ALL."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from integration.servers.kafka import KafkaServer
from taskline.clock import Clock
from taskline.testing.cases.sending import Sending
from taskline.transports.kafka import KafkaTransport


class TestSending(Sending):
    manual_clock = False

    @pytest.fixture
    def make_transport(
        self, kafka_server: KafkaServer, kafka_name: str
    ) -> Callable[[Clock], KafkaTransport]:
        url = f"{kafka_server.url}?prefix={kafka_name}.&group={kafka_name}&partitions=2"
        return lambda clock: KafkaTransport.from_spec(url, clock)
