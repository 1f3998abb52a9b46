"""The pytest plug-in: fixtures for tests of apps and of transports.

Pytest finds it by itself where Taskline is installed. `docs/testing.md` tells more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from taskline.clock import ManualClock
from taskline.message import new_id

if TYPE_CHECKING:
    from taskline.app import Taskline
    from taskline.worker import Worker

# So that a failed assertion of a suite shows its values.
pytest.register_assert_rewrite(
    "taskline.testing.cases",
    "taskline.testing.backend_suite",
    "taskline.testing.flow_suite",
    "taskline.testing.transport_machine",
    "taskline.testing.transport_suite",
)

GRACE = 2.0
"""Seconds that running tasks get when a test is over."""


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


@pytest.fixture
def taskline_app(taskline_memory: str) -> Iterator[Taskline]:
    """A new app without tasks, in memory."""
    from taskline.app import Taskline

    with Taskline("test", broker=taskline_memory, backend=taskline_memory) as app:
        yield app


@pytest.fixture
def taskline_in_memory(taskline_memory: str) -> Iterator[Callable[[Taskline], Taskline]]:
    """A function that moves an app of yours into memory for this test, and returns it."""
    moved: list[tuple[Taskline, Any, Any, Any]] = []

    def move(app: Taskline) -> Taskline:
        connectors = app.queues.connectors
        moved.append((app, app.settings.broker, app.settings.backend, connectors))
        app.close()
        app.settings.broker = app.settings.backend = taskline_memory
        app.queues.connectors = dict.fromkeys(connectors, taskline_memory)
        return app

    yield move
    while moved:
        app, broker, backend, connectors = moved.pop()
        app.queues.connectors = connectors
        app.close()
        app.settings.broker, app.settings.backend = broker, backend


@pytest.fixture
def taskline_eager() -> Iterator[Callable[[Taskline], Taskline]]:
    """A function that lets an app of yours run its tasks inside `delay()` for this test."""
    changed: list[tuple[Taskline, bool]] = []

    def make_eager(app: Taskline) -> Taskline:
        changed.append((app, app.settings.eager))
        app.settings.eager = True
        return app

    yield make_eager
    while changed:
        app, eager = changed.pop()
        app.settings.eager = eager


@pytest.fixture
def taskline_worker() -> Iterator[Callable[..., Worker]]:
    """A function that starts a worker in threads of this process: `taskline_worker(app)`.

    Its further arguments are those of `taskline.worker.WorkerOptions`. The worker
    stops when the test is over; what still runs then gets two seconds.
    """
    from taskline.worker import Worker, WorkerOptions

    started: list[Worker] = []

    def start(app: Taskline, **options: Any) -> Worker:
        worker = Worker(app, WorkerOptions(**options))
        worker.start()
        started.append(worker)
        return worker

    yield start
    while started:
        started.pop().stop(GRACE)
