"""Lines of delayed messages that go to another mover, and come back."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest

from integration.servers.kafka import KafkaServer, RunningKafka
from taskline.clock import SYSTEM_CLOCK
from taskline.testing.cases.transport import message
from taskline.transports.kafka import KafkaTransport
from taskline.transports.kafka.delays import HOLDS, Delays

pytestmark = pytest.mark.skipif(
    not os.environ.get("TASKLINE_TEST_KAFKA_ALL"), reason="minutes: set TASKLINE_TEST_KAFKA_ALL=1"
)

PATIENCE = 60.0
FIRST = 5
"""The lines before it hold a message for a minute at most."""


def wait_for(what: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_line_that_comes_back_is_read_again(
    kafka_server: KafkaServer | RunningKafka, kafka_name: str
) -> None:
    """One that slept when it went is not asleep for ever."""
    url = f"{kafka_server.url}?prefix={kafka_name}.&group={kafka_name}&partitions=1"

    def asleep(transport: KafkaTransport) -> set[int]:
        mover = transport._delays
        assert isinstance(mover, Delays)
        return {line for line in mover._wakes.copy() if line >= FIRST}

    lines = set(range(FIRST, len(HOLDS)))
    here = KafkaTransport.from_spec(url, SYSTEM_CLOCK)
    there = KafkaTransport.from_spec(url, SYSTEM_CLOCK)
    try:
        now = time.time()
        here.send([message(f"m{n}", eta=now + HOLDS[n] * 1.5) for n in lines])
        here.receive(["mail"], 1, PATIENCE, 0.1, "one")
        wait_for(lambda: asleep(here) == lines)
        there.receive(["mail"], 1, PATIENCE, 0.1, "two")
        wait_for(lambda: bool(asleep(there)))
        wait_for(lambda: not asleep(here) & asleep(there))
        there.close()
        wait_for(lambda: asleep(here) == lines)
    finally:
        here.close()
        there.close()
