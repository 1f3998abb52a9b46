"""A transaction whose answer is lost: the message is moved once, be it committed or not."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from integration.servers.kafka import KafkaServer, RunningKafka
from taskline.clock import SYSTEM_CLOCK
from taskline.message import Delivery
from taskline.testing.cases.transport import ids, message
from taskline.transports.kafka import KafkaTransport, receipts

pytestmark = pytest.mark.skipif(
    not os.environ.get("TASKLINE_TEST_KAFKA_ALL"), reason="minutes: set TASKLINE_TEST_KAFKA_ALL=1"
)

PATIENCE = 30.0


class Forgetful:
    """A producer whose first commit is answered by an error that says nothing of the outcome."""

    committed: bool
    """Whether that commit reaches the broker."""
    failed: bool

    def __init__(self, producer: Any) -> None:
        self._producer = producer
        self._failed_here = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._producer, name)

    def abort_transaction(self, timeout: float) -> None:
        if self._failed_here:
            raise KafkaException(KafkaError(KafkaError._STATE))
        self._producer.abort_transaction(timeout)

    def commit_transaction(self, timeout: float) -> None:
        if type(self).failed:
            return self._producer.commit_transaction(timeout)
        type(self).failed = self._failed_here = True
        if self.committed:
            self._producer.commit_transaction(timeout)
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))


@pytest.mark.parametrize("committed", [True, False])
def test_an_answer_that_is_lost(
    kafka_server: KafkaServer | RunningKafka,
    kafka_name: str,
    monkeypatch: pytest.MonkeyPatch,
    committed: bool,
) -> None:
    new_producer = receipts.new_producer
    monkeypatch.setattr(receipts, "new_producer", lambda *a, **b: Forgetful(new_producer(*a, **b)))
    Forgetful.committed, Forgetful.failed = committed, False
    url = f"{kafka_server.url}?prefix={kafka_name}.&group={kafka_name}&partitions=1"
    transport = KafkaTransport.from_spec(url, SYSTEM_CLOCK)

    def taken() -> Delivery:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            for each in transport.receive(["mail"], 1, PATIENCE, 0.2, "w"):
                return each
        raise AssertionError("nothing came")

    try:
        transport.send([message("a")])
        first = taken()
        end = time.monotonic() + PATIENCE
        while True:
            try:
                assert transport.replace([(first, message("a", frame=b"again"))]) == []
                break
            except receipts.TransportError:
                assert time.monotonic() < end
        assert Forgetful.failed
        second = taken()
        assert second.frame == b"again"
        assert transport.ack([second]) == []
        assert ids(transport.receive(["mail"], 9, PATIENCE, 1.0, "w")) == []
        assert transport.stats(["mail"])[0].ready == 0
    finally:
        transport.close()
