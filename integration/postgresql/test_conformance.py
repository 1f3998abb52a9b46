from __future__ import annotations

from collections.abc import Callable

import pytest
from taskline_postgresql import PostgreSQLTransport

from taskline.clock import Clock
from taskline.testing.cases import leases, sending
from taskline.testing.transport_suite import TransportConformance


class TestPostgreSQL(TransportConformance):
    """In the tests' time, which the statements then take instead of the server's."""

    histories = 8
    shrink = False

    @pytest.fixture
    def make_transport(self, postgresql_url: str) -> Callable[[Clock], PostgreSQLTransport]:
        return lambda clock: PostgreSQLTransport.from_spec(postgresql_url, clock)


class TestInServerTime(sending.Delay, leases.Leases):
    manual_clock = False
    short = 1.0

    @pytest.fixture
    def make_transport(self, postgresql_url: str) -> Callable[[Clock], PostgreSQLTransport]:
        return lambda clock: PostgreSQLTransport.from_spec(postgresql_url, clock)
