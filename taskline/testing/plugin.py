"""The pytest plug-in: fixtures for tests of apps and of transports.

Pytest finds it by itself where Taskline is installed. `docs/testing.md` tells more.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from taskline.clock import ManualClock
from taskline.message import new_id

# So that a failed assertion of a suite shows its values.
pytest.register_assert_rewrite(
    "taskline.testing.cases",
    "taskline.testing.backend_suite",
    "taskline.testing.transport_machine",
    "taskline.testing.transport_suite",
)


@pytest.fixture
def taskline_clock() -> ManualClock:
    """A clock that stands still until the test says `taskline_clock.advance(seconds)`."""
    return ManualClock()


@pytest.fixture
def taskline_memory() -> Iterator[str]:
    """The URL of an empty broker and backend in memory, of this test alone."""
    from taskline.backends import memory as backends
    from taskline.transports import memory as transports

    name = f"test-{new_id()}"
    yield f"memory://{name}"
    transports.forget(name)
    backends.forget(name)
