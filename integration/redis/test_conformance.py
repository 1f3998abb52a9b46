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


def own_store(server: RedisServer) -> str:
    return f"{server.url}?namespace=conformance-{os.getpid()}-{next(_numbers)}"


class TestRedisTransport(TransportConformance):
    """In the tests' time, which the scripts then take instead of the server's."""

    histories = 40

    @pytest.fixture
    def server(self, redis_server: RedisServer) -> RedisServer:
        return redis_server

    @pytest.fixture
    def store(self, server: RedisServer) -> str:
        return own_store(server)

    @pytest.fixture
    def make_transport(self, store: str) -> Callable[[Clock], RedisTransport]:
        return lambda clock: RedisTransport.from_spec(store, clock)

    @pytest.fixture
    def make_shared_backend(self, store: str) -> Callable[[Clock], RedisBackend]:
        return lambda clock: RedisBackend.from_spec(store, clock)


class TestValkeyTransport(TestRedisTransport):
    histories = 10

    @pytest.fixture
    def server(self, valkey_server: RedisServer) -> RedisServer:
        return valkey_server


class TestRedisTransportInServerTime(TestRedisTransport):
    manual_clock = False
    short = 0.5
    early = 0.05


class TestSeveralNodes(TestRedisTransport):
    """Three servers that know nothing of each other."""

    histories = 10

    @pytest.fixture
    def make_transport(self, redis_nodes: list[RedisServer]) -> Callable[[Clock], RedisTransport]:
        name = f"?namespace=conformance-{os.getpid()}-{next(_numbers)}"
        urls = [f"{server.url}{name}" for server in redis_nodes]
        return lambda clock: RedisTransport.from_spec(urls, clock)

    @pytest.fixture
    def make_shared_backend(self) -> None:
        return None


class TestRedisBackend(BackendConformance):
    manual_clock = False
    short = 0.5
    early = 0.05

    @pytest.fixture
    def server(self, redis_server: RedisServer) -> RedisServer:
        return redis_server

    @pytest.fixture
    def make_backend(self, server: RedisServer) -> Callable[[Clock], RedisBackend]:
        store = own_store(server)
        return lambda clock: RedisBackend.from_spec(store, clock)


class TestValkeyBackend(TestRedisBackend):
    @pytest.fixture
    def server(self, valkey_server: RedisServer) -> RedisServer:
        return valkey_server


class TestRedisKeys(KeyStoreConformance):
    manual_clock = False
    short = 0.5
    early = 0.05

    @pytest.fixture
    def server(self, redis_server: RedisServer) -> RedisServer:
        return redis_server

    @pytest.fixture
    def make_backend(self, server: RedisServer) -> Callable[[Clock], RedisBackend]:
        store = own_store(server)
        return lambda clock: RedisBackend.from_spec(store, clock)


class TestValkeyKeys(TestRedisKeys):
    @pytest.fixture
    def server(self, valkey_server: RedisServer) -> RedisServer:
        return valkey_server


class TestBackendOfSeveralNodes(TestRedisBackend):
    @pytest.fixture
    def make_backend(self, redis_nodes: list[RedisServer]) -> Callable[[Clock], RedisBackend]:
        name = f"?namespace=conformance-{os.getpid()}-{next(_numbers)}"
        urls = [f"{server.url}{name}" for server in redis_nodes]
        return lambda clock: RedisBackend.from_spec(urls, clock)


class TestKeysOfSeveralNodes(TestRedisKeys):
    @pytest.fixture
    def make_backend(self, redis_nodes: list[RedisServer]) -> Callable[[Clock], RedisBackend]:
        name = f"?namespace=conformance-{os.getpid()}-{next(_numbers)}"
        urls = [f"{server.url}{name}" for server in redis_nodes]
        return lambda clock: RedisBackend.from_spec(urls, clock)
