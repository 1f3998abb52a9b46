"""What the test cases for key stores stand on: connections to one store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import pytest

from taskline.backends.base import Backend
from taskline.backends.keys import KeyStore
from taskline.clock import Clock
from taskline.testing.cases.backend import MakeBackend
from taskline.testing.cases.base import Suite, connections

Connect: TypeAlias = Callable[..., KeyStore]

NAMES = ["a", "a b", "a%'\"ü\n", "a:*{b}[c]?\\", "0", "é" * 256, "\0"]
"""Names that a store must keep apart, and take as they are."""


class KeyStoreSuite(Suite):
    """Connections to one store."""

    @pytest.fixture
    def make_backend(self) -> MakeBackend:
        """A function of a clock that opens one more connection to the test's own empty store."""
        raise NotImplementedError("override the fixture make_backend: see docs/testing.md")

    @pytest.fixture
    def backends(self, make_backend: MakeBackend, clock: Clock) -> Iterator[Callable[..., Backend]]:
        """Opens one more backend, which is closed after the test."""
        yield from connections(make_backend, clock)

    @pytest.fixture
    def connect(self, backends: Callable[..., Backend]) -> Connect:
        """The key store of one more connection."""
        return lambda *with_clock: backends(*with_clock).keys()

    @pytest.fixture
    def store(self, connect: Connect) -> KeyStore:
        return connect()

    @pytest.fixture
    def other(self, connect: Connect) -> KeyStore:
        """A second connection to the same store."""
        return connect()
