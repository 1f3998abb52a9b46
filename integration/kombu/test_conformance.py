"""What of the conformance suite each kind of kombu transport keeps."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from integration.servers.redis import RedisServer
from taskline.clock import Clock
from taskline.testing.cases import dead, leases, looking, sending
from taskline.testing.transport_suite import TransportConformance
from taskline.transports.kombu import KombuTransport


class TestRabbitMQ(TransportConformance):
    manual_clock = False
    short = 0.6
    crowd = 200
    contested = 6

    @pytest.fixture
    def make_transport(self, rabbitmq_url: str) -> Callable[[Clock], KombuTransport]:
        return lambda clock: KombuTransport.from_spec(rabbitmq_url, clock)


class Essentials(
    sending.Delay,
    leases.Connections,
    leases.Release,
    leases.Replace,
    dead.DeadLetters,
    looking.Health,
):
    """What differs most between kinds of brokers."""

    manual_clock = False
    short = 0.6
    contested = 4


class TestQuorumQueues(Essentials):
    @pytest.fixture
    def make_transport(self, rabbitmq_url: str) -> Callable[[Clock], KombuTransport]:
        return lambda clock: KombuTransport.from_spec(f"{rabbitmq_url}&queue_type=quorum", clock)


class TestMemory(TransportConformance):
    """kombu's memory, in the tests' time: its messages wait in queues that are polled."""

    @pytest.fixture
    def make_transport(self, own_prefix: str) -> Callable[[Clock], KombuTransport]:
        return lambda clock: KombuTransport.from_spec(f"kombu+memory://?prefix={own_prefix}", clock)


class TestRedis(Essentials):
    @pytest.fixture
    def make_transport(
        self, redis_server: RedisServer, own_prefix: str
    ) -> Callable[[Clock], KombuTransport]:
        url = f"kombu+{redis_server.url}/3?prefix={own_prefix}&timeout=30"
        return lambda clock: KombuTransport.from_spec(url, clock)
