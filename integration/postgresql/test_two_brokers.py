"""What comes by PostgreSQL is passed on by Redis."""

from __future__ import annotations

import pytest

from integration.two_brokers import Bus, TwoBrokers


class TestPostgreSQLToRedis(TwoBrokers):
    @pytest.fixture
    def bus(self, postgresql_url: str, installed: str) -> Bus:
        address = postgresql_url.removeprefix("postgresql://")
        connector = {"type": "taskline_postgresql.PostgreSQLTransport", "address": address}
        return Bus(connector, installed)
