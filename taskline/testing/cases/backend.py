"""What the test cases for result backends stand on: connections and outcomes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import pytest

from taskline.backends.base import Backend
from taskline.clock import Clock
from taskline.message import (
    FAILURE,
    RETRY,
    STARTED,
    SUCCESS,
    Outcome,
)
from taskline.testing.cases.base import Running, Suite, connections

MakeBackend: TypeAlias = Callable[[Clock], Backend]
Connect: TypeAlias = Callable[..., Backend]

LONG = 600.0
"""Seconds: longer than any test lasts."""

SOME_STATES = [STARTED, RETRY, SUCCESS, FAILURE]
FENCES = [(1.0, 1), (1.0, 2), (2.0, 1)]
"""From the least to the greatest."""


def outcome(
    id: str = "a",
    state: str = SUCCESS,
    *,
    sent: float = 1.0,
    deliveries: int = 1,
    ttl: float | None = None,
    frame: bytes = b"frame",
) -> Outcome:
    return Outcome(id, state, sent, deliveries, ttl, frame)


class BackendSuite(Suite):
    """The fixtures that a plug-in author overrides, and those made of them."""

    @pytest.fixture
    def make_backend(self) -> MakeBackend:
        """A function of a clock that opens one more connection to the test's own empty store."""
        pytest.fail("override the fixture make_backend: see docs/testing.md", pytrace=False)

    @pytest.fixture
    def connect(self, make_backend: MakeBackend, clock: Clock) -> Iterator[Connect]:
        """Opens one more connection, which is closed after the test."""
        yield from connections(make_backend, clock)

    @pytest.fixture
    def backend(self, connect: Connect) -> Backend:
        return connect()

    @pytest.fixture
    def other(self, connect: Connect) -> Backend:
        """A second connection to the same store."""
        return connect()

    def waiting(self, backend: Backend, *ids: str) -> Running[dict[str, Outcome]]:
        return self.in_thread(lambda: backend.wait(ids, LONG))

    def assert_state(self, backend: Backend, id: str, state: str | None) -> None:
        found = backend.fetch([id]).get(id)
        assert (found.state if found else None) == state
