from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest

from taskline.clock import Clock
from taskline.testing.transport_suite import TransportConformance
from taskline.transports.mongodb import MongoTransport

_numbers = count(1)


class TestMongoTransport(TransportConformance):
    """In the tests' time, which the commands then name instead of the server's."""

    histories = 25
    crowd = 200

    @pytest.fixture
    def make_transport(self, mongo_url: str) -> Callable[[Clock], MongoTransport]:
        return lambda clock: MongoTransport.from_spec(mongo_url, clock)


class TestMongoTransportInServerTime(TestMongoTransport):
    manual_clock = False
    short = 0.4
    early = 0.05
