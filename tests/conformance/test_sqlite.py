from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from taskline.backends.sqlite import SQLiteBackend
from taskline.clock import Clock
from taskline.testing.backend_suite import BackendConformance
from taskline.testing.key_suite import KeyStoreConformance
from taskline.testing.transport_suite import TransportConformance
from taskline.transports.sqlite import SQLiteTransport


def url(file: Path, durability: str) -> str:
    return f"sqlite:///{file}?durability={durability}"


class TestSQLiteTransport(TransportConformance):
    durability = "normal"

    @pytest.fixture
    def make_transport(self, tmp_path: Path) -> Callable[[Clock], SQLiteTransport]:
        spec = url(tmp_path / "tasks.db", self.durability)
        return lambda clock: SQLiteTransport.from_spec(spec, clock)

    @pytest.fixture
    def make_shared_backend(self, tmp_path: Path) -> Callable[[Clock], SQLiteBackend]:
        spec = url(tmp_path / "tasks.db", self.durability)
        return lambda clock: SQLiteBackend.from_spec(spec, clock)


class TestFullyDurableSQLiteTransport(TestSQLiteTransport):
    durability = "full"
    histories = 10


class TestSQLiteBackend(BackendConformance):
    durability = "normal"

    @pytest.fixture
    def make_backend(self, tmp_path: Path) -> Callable[[Clock], SQLiteBackend]:
        spec = url(tmp_path / "results.db", self.durability)
        return lambda clock: SQLiteBackend.from_spec(spec, clock)


class TestFullyDurableSQLiteBackend(TestSQLiteBackend):
    durability = "full"


class TestSQLiteKeys(KeyStoreConformance):
    @pytest.fixture
    def make_backend(self, tmp_path: Path) -> Callable[[Clock], SQLiteBackend]:
        spec = url(tmp_path / "results.db", "normal")
        return lambda clock: SQLiteBackend.from_spec(spec, clock)
