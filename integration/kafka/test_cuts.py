"""Connections that are cut again and again."""

from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path

import pytest

from integration.chaos.stores.kafka import KafkaStore
from taskline.clock import SYSTEM_CLOCK
from taskline.errors import TransportError
from taskline.testing.cases.transport import message
from taskline.transports.kafka import KafkaTransport

pytestmark = pytest.mark.skipif(
    not os.environ.get("TASKLINE_TEST_KAFKA_ALL"), reason="minutes: set TASKLINE_TEST_KAFKA_ALL=1"
)

SECONDS, GAP = 15.0, 0.4
PATIENCE = 90.0


def test_no_call_waits_far_beyond_its_time(tmp_path: Path) -> None:
    """librdkafka 2.10 and later would, if it looked brokers up anew: see the decision page."""
    rng = random.Random(7)
    with KafkaStore(tmp_path) as store:
        link = store.links["north"]
        transport = KafkaTransport.from_spec(store.urls("north")[0], SYSTEM_CLOCK)
        moved = 0
        end = time.monotonic() + SECONDS

        def move() -> None:
            """Each in a transaction."""
            nonlocal moved
            while time.monotonic() < end:
                try:
                    for each in transport.receive(["mail"], 1, 60.0, 0.1, "w"):
                        transport.replace([(each, message("a"))])
                        moved += 1
                except TransportError:
                    continue

        transport.send([message("a")])
        mover = threading.Thread(target=move, name="mover", daemon=True)
        mover.start()
        while time.monotonic() < end:
            time.sleep(rng.uniform(GAP / 4, GAP))
            link.cut_after(rng.randrange(1, 3000))
        mover.join(PATIENCE)
        assert not mover.is_alive(), f"stands still after {moved} moves"
        assert moved
        transport.close()
