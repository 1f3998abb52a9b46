from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from taskline.clock import Clock
from taskline.testing.transport_suite import TransportConformance
from taskline_contrib.rsmq import RSMQTransport


class TestRSMQTransport(TransportConformance):
    manual_clock = False

    @pytest.fixture
    def make_transport(self, redis_server: str, redis: Any) -> Callable[[Clock], RSMQTransport]:
        return lambda clock: RSMQTransport.from_spec(f"rsmq://{redis_server}/0", clock)
