"""The MongoDB backend and its key store, by the conformance suites."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import count

import pytest

from integration.conftest import server_or_skip
from integration.mongo.conftest import drop, with_options
from integration.servers.mongo import MongoServer
from taskline.backends.mongodb import MongoBackend
from taskline.clock import Clock
from taskline.testing.backend_suite import BackendConformance
from taskline.testing.cases import keys, locks, outcomes, waiting
from taskline.testing.key_suite import KeyStoreConformance

_numbers = count(1)


@pytest.fixture(scope="session")
def second_server() -> Iterator[MongoServer]:
    yield from server_or_skip(MongoServer)


@pytest.fixture(scope="session")
def lone_server() -> Iterator[MongoServer]:
    """One that is no replica set, and so has no change streams."""
    yield from server_or_skip(lambda: MongoServer("--standalone"))


class Opened:
    """Connections to the test's own store."""

    @pytest.fixture
    def make_backend(self, mongo_url: str) -> Callable[[Clock], MongoBackend]:
        return lambda clock: MongoBackend.from_spec(mongo_url, clock)


class TestMongoBackend(Opened, BackendConformance):
    """In the tests' time, which the server then takes instead of its own."""

    many = 600


class TestMongoKeys(Opened, KeyStoreConformance):
    pass


class InServerTime(Opened):
    manual_clock = False
    short = 0.5
    early = 0.05


class TestMongoBackendInServerTime(
    InServerTime, outcomes.Ends, waiting.Revocations, waiting.Counts
):
    pass


class TestMongoKeysInServerTime(InServerTime, keys.Keys, keys.Counters, locks.Locks):
    pass


class Spread:
    """Two deployments that know nothing of each other."""

    @pytest.fixture
    def make_backend(
        self, mongo_url: str, second_server: MongoServer
    ) -> Iterator[Callable[[Clock], MongoBackend]]:
        namespace = f"spread-{os.getpid()}-{next(_numbers)}"
        urls = [mongo_url, with_options(second_server.url, namespace=namespace)]
        yield lambda clock: MongoBackend.from_spec(urls, clock)
        drop(second_server.url, namespace)


class TestMongoBackendOfSeveral(Spread, BackendConformance):
    many = 600


class TestMongoKeysOfSeveral(Spread, KeyStoreConformance):
    pass


class Lone:
    @pytest.fixture
    def make_backend(self, lone_server: MongoServer) -> Callable[[Clock], MongoBackend]:
        namespace = f"lone-{os.getpid()}-{next(_numbers)}"
        url = with_options(lone_server.url, namespace=namespace)
        return lambda clock: MongoBackend.from_spec(url, clock)


class TestMongoBackendWithoutChangeStreams(Lone, waiting.Waiting, waiting.Health):
    pass


class TestMongoKeysWithoutChangeStreams(Lone, locks.Waiting):
    pass
