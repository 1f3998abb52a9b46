"""What every run of the tests checks; the rest of the suite wants TASKLINE_TEST_KAFKA_ALL."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from integration.servers.kafka import KafkaServer
from taskline.clock import Clock
from taskline.testing.cases.dead import DeadLetters
from taskline.testing.cases.fencing import Fencing
from taskline.testing.cases.looking import Health
from taskline.testing.cases.receiving import Receiving
from taskline.testing.cases.sending import Sending
from taskline.transports.kafka import KafkaTransport


class TestBasics(Sending, Receiving, Fencing, DeadLetters, Health):
    manual_clock = False
    short = 0.8
    # Six waits for the end of a session: in the whole suite.
    test_a_delivery_that_another_worker_has_now_can_do_nothing = None  # type: ignore[assignment]

    @pytest.fixture
    def make_transport(
        self, kafka_server: KafkaServer, kafka_name: str
    ) -> Callable[[Clock], KafkaTransport]:
        url = f"{kafka_server.url}?prefix={kafka_name}.&group={kafka_name}&partitions=1&timeout=30"
        return lambda clock: KafkaTransport.from_spec(url, clock)
