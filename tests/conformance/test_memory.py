from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from taskline.backends import memory as backends
from taskline.backends.memory import MemoryBackend
from taskline.clock import Clock
from taskline.testing.backend_suite import BackendConformance
from taskline.testing.key_suite import KeyStoreConformance
from taskline.testing.transport_suite import TransportConformance
from taskline.transports import memory as transports
from taskline.transports.memory import MemoryTransport


class TestMemoryTransport(TransportConformance):
    @pytest.fixture
    def make_transport(
        self, request: pytest.FixtureRequest
    ) -> Iterator[Callable[[Clock], MemoryTransport]]:
        name = request.node.nodeid
        yield lambda clock: MemoryTransport(name, clock)
        transports.forget(name)


class TestMemoryBackend(BackendConformance):
    @pytest.fixture
    def make_backend(
        self, request: pytest.FixtureRequest
    ) -> Iterator[Callable[[Clock], MemoryBackend]]:
        name = request.node.nodeid
        yield lambda clock: MemoryBackend(name, clock)
        backends.forget(name)


class TestMemoryKeys(KeyStoreConformance):
    @pytest.fixture
    def make_backend(
        self, request: pytest.FixtureRequest
    ) -> Iterator[Callable[[Clock], MemoryBackend]]:
        name = request.node.nodeid
        yield lambda clock: MemoryBackend(name, clock)
        backends.forget(name)
