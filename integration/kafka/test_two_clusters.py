"""Messages are received from one cluster and sent to another: each knows its own."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from integration.conftest import server_or_skip
from integration.servers.kafka import KafkaServer, RunningKafka
from taskline.clock import SYSTEM_CLOCK
from taskline.message import Delivery
from taskline.testing.cases.transport import ids, letter, message
from taskline.transports.kafka import KafkaTransport

pytestmark = pytest.mark.skipif(
    not os.environ.get("TASKLINE_TEST_KAFKA_ALL"), reason="minutes: set TASKLINE_TEST_KAFKA_ALL=1"
)

PATIENCE = 60.0


@pytest.fixture
def other() -> Iterator[KafkaServer]:
    yield from server_or_skip(KafkaServer)


def taken(transport: KafkaTransport) -> Delivery:
    end = time.monotonic() + PATIENCE
    while not (found := transport.receive(["mail"], 1, 30.0, 0.1, "w")):
        assert time.monotonic() < end
    return found[0]


def test_what_was_received_stays_where_it_came_from(
    kafka_server: KafkaServer | RunningKafka,
    other: KafkaServer,
    kafka_name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KAFKA_CONSUMER_BROKERS", kafka_server.address)
    monkeypatch.setenv("KAFKA_PRODUCER_BROKERS", other.address)
    own = f"?prefix={kafka_name}.&partitions=1&group={kafka_name}"
    both, here, there = (
        KafkaTransport.from_spec(f"{url}{own}{group}", SYSTEM_CLOCK)
        for url, group in (("kafka://", ""), (kafka_server.url, "-1"), (other.url, "-2"))
    )
    try:
        both.ping()
        both.send([message("sent"), message("later", eta=time.time() + 1)])
        assert sorted(ids([taken(there), taken(there)])) == ["later", "sent"]
        here.send([message("a")])
        assert both.replace([(taken(both), message("a", eta=time.time() + 0.5))]) == []
        assert both.release([taken(both)], 0.5) == []
        last = taken(both)
        assert both.bury([(last, letter(last))]) == []
        assert ids(here.dead_letters()) == ["a"]
        assert both.requeue([message("a")]) == ["a"]
        assert both.ack([taken(both)]) == []
        assert there.dead_letters() == []
        assert there.receive(["mail"], 1, 30.0, 0.3, "w") == []
    finally:
        for each in (both, here, there):
            each.close()
