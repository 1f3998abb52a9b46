from __future__ import annotations

import os
from collections.abc import Callable
from itertools import count

import pytest

from integration.servers.redis import RedisServer
from taskline.backends.redis import RedisBackend
from taskline.clock import Clock
from taskline.testing.backend_suite import BackendConformance
from taskline.testing.key_suite import KeyStoreConformance
from taskline.testing.transport_suite import TransportConformance
from taskline.transports.redis import RedisTransport

_numbers = count(1)


def own_store(*servers: RedisServer) -> list[str]:
    """The URLs of what no other test uses on these servers."""
    name = f"conformance-{os.getpid()}-{next(_numbers)}"
    return [f"{server.url}?namespace={name}" for server in servers]


class OnRedis:
    @pytest.fixture
    def urls(self, redis_server: RedisServer) -> list[str]:
        return own_store(redis_server)


class OnValkey:
    @pytest.fixture
    def urls(self, valkey_server: RedisServer) -> list[str]:
        return own_store(valkey_server)


class OnNodes:
    """Three servers that know nothing of each other."""

    @pytest.fixture
    def urls(self, redis_nodes: list[RedisServer]) -> list[str]:
        return own_store(*redis_nodes)


class Sent(TransportConformance):
    """In the tests' time, which the scripts then take instead of the server's."""

    @pytest.fixture
    def make_transport(self, urls: list[str]) -> Callable[[Clock], RedisTransport]:
        return lambda clock: RedisTransport.from_spec(one_or_all(urls), clock)

    @pytest.fixture
    def make_shared_backend(self, urls: list[str]) -> Callable[[Clock], RedisBackend] | None:
        return lambda clock: RedisBackend.from_spec(one_or_all(urls), clock)


class InServerTime:
    manual_clock = False
    short = 0.5
    early = 0.05


class Kept(InServerTime):
    @pytest.fixture
    def make_backend(self, urls: list[str]) -> Callable[[Clock], RedisBackend]:
        return lambda clock: RedisBackend.from_spec(one_or_all(urls), clock)


def one_or_all(urls: list[str]) -> str | list[str]:
    """A URL alone is one server; in a list they are nodes."""
    return urls[0] if len(urls) == 1 else urls


class TestRedisTransport(OnRedis, Sent):
    histories = 40


class TestValkeyTransport(OnValkey, Sent):
    histories = 10


class TestRedisTransportInServerTime(InServerTime, TestRedisTransport): ...


class TestSeveralNodes(OnNodes, Sent):
    histories = 10

    @pytest.fixture
    def make_shared_backend(self) -> None:
        return None


class TestRedisBackend(OnRedis, Kept, BackendConformance): ...


class TestValkeyBackend(OnValkey, Kept, BackendConformance): ...


class TestBackendOfSeveralNodes(OnNodes, Kept, BackendConformance): ...


class TestRedisKeys(OnRedis, Kept, KeyStoreConformance): ...


class TestValkeyKeys(OnValkey, Kept, KeyStoreConformance): ...


class TestKeysOfSeveralNodes(OnNodes, Kept, KeyStoreConformance): ...
