from __future__ import annotations

from collections.abc import Callable

import pytest

from taskline.backends.memory import MemoryBackend
from taskline.clock import Clock
from taskline.testing.backend_suite import BackendConformance
from taskline.testing.key_suite import KeyStoreConformance
from taskline.testing.transport_suite import TransportConformance
from taskline.transports.memory import MemoryTransport


class TestMemoryTransport(TransportConformance):
    @pytest.fixture
    def make_transport(self, taskline_memory: str) -> Callable[[Clock], MemoryTransport]:
        return lambda clock: MemoryTransport.from_spec(taskline_memory, clock)


class TestMemoryBackend(BackendConformance):
    @pytest.fixture
    def make_backend(self, taskline_memory: str) -> Callable[[Clock], MemoryBackend]:
        return lambda clock: MemoryBackend.from_spec(taskline_memory, clock)


class TestMemoryKeys(KeyStoreConformance):
    @pytest.fixture
    def make_backend(self, taskline_memory: str) -> Callable[[Clock], MemoryBackend]:
        return lambda clock: MemoryBackend.from_spec(taskline_memory, clock)
