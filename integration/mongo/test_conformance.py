from __future__ import annotations

from collections.abc import Callable

import pytest

from integration.mongo.conftest import Stores
from taskline.clock import Clock
from taskline.testing.cases import dead, fencing, leases, looking, receiving, sending
from taskline.testing.transport_suite import TransportConformance
from taskline.transports.mongodb import MongoTransport


class TestMongoTransport(TransportConformance):
    """In the tests' time, which the commands then name instead of the server's."""

    histories = 5
    shrink = False
    crowd = 120

    @pytest.fixture
    def make_transport(self, mongo_url: str) -> Callable[[Clock], MongoTransport]:
        return lambda clock: MongoTransport.from_spec(mongo_url, clock)


class TestMongoTransportInServerTime(
    sending.Delay,
    leases.Leases,
    fencing.Fencing,
    leases.Release,
    leases.Replace,
    leases.Recovery,
    looking.Stats,
):
    """All that has to do with time. The stand-in may take long for a command."""

    manual_clock = False
    short = 0.8

    @pytest.fixture
    def make_transport(self, mongo_url: str) -> Callable[[Clock], MongoTransport]:
        return lambda clock: MongoTransport.from_spec(mongo_url, clock)

    @pytest.mark.skip("in the tests' time only: it takes the stand-in long")
    def test_many_at_once(self) -> None: ...


class TestSeveralServers(
    sending.Sending,
    sending.Delay,
    sending.Idempotence,
    receiving.Waking,
    receiving.Crowds,
    leases.Leases,
    leases.Recovery,
    dead.DeadLetters,
    looking.Peek,
    looking.Removal,
    looking.Health,
):
    """Two servers that know nothing of each other. Redis has the random histories of such."""

    crowd = 100

    @pytest.fixture
    def make_transport(self, mongo_nodes: Stores) -> Callable[[Clock], MongoTransport]:
        return lambda clock: MongoTransport.from_spec(mongo_nodes.urls, clock)

    @pytest.mark.skip("on one server only: it takes the stand-in long")
    def test_many_at_once(self) -> None: ...
