"""What every run of the tests checks; the rest of the suite wants TASKLINE_TEST_KAFKA_ALL."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from integration.servers.kafka import KafkaServer
from taskline.clock import SYSTEM_CLOCK, Clock
from taskline.errors import ConfigurationError
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


def test_a_group_that_does_not_let_us_in_is_told_of(
    kafka_server: KafkaServer, kafka_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    own = f"prefix={kafka_name}.&group={kafka_name}&partitions=1"
    transport = KafkaTransport.from_spec(
        f"{kafka_server.url}?{own}&session.timeout.ms=100", SYSTEM_CLOCK
    )
    end = SYSTEM_CLOCK.monotonic() + 60
    try:
        while "Invalid session timeout; trying until it works" not in caplog.text:
            assert SYSTEM_CLOCK.monotonic() < end
            assert transport.receive(["mail"], 1, 30.0, 0.1, "w") == []
    finally:
        transport.close()


def test_settings_that_librdkafka_does_not_take_are_told_before_work_begins(
    kafka_server: KafkaServer, kafka_name: str
) -> None:
    own = f"prefix={kafka_name}.&group={kafka_name}&partitions=1&max.poll.interval.ms=1000"
    transport = KafkaTransport.from_spec(f"{kafka_server.url}?{own}", SYSTEM_CLOCK)
    with pytest.raises(ConfigurationError, match="must be >= `session"):
        transport.prepare(["mail"], 30.0, "w")
    transport.close()
