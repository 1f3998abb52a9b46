from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from stage import Stage

from taskline import Taskline

MakeApp = Callable[..., Taskline]


@pytest.fixture(params=["memory", "sqlite", "sqlite-apart"])
def make_app(
    request: pytest.FixtureRequest, taskline_memory: str, tmp_path: Path, open_app: MakeApp
) -> MakeApp:
    """Apps on every kind of broker and backend that a laptop has; all apps of a test share them."""
    broker = taskline_memory if request.param == "memory" else f"sqlite:///{tmp_path}/broker.db"
    apart = request.param == "sqlite-apart"
    backend = f"sqlite:///{tmp_path}/results.db" if apart else broker
    return partial(open_app, "test", broker=broker, backend=backend)


@pytest.fixture
def make_memory_app(taskline_memory: str, open_app: MakeApp) -> MakeApp:
    """Apps in this process's memory; all apps of a test share it."""
    return partial(open_app, "test", broker=taskline_memory, backend=taskline_memory)


@pytest.fixture
def make_sqlite_app(tmp_path: Path, open_app: MakeApp) -> MakeApp:
    """Apps with broker and backend in one SQLite file; all apps of a test share it."""
    url = f"sqlite:///{tmp_path}/broker.db"
    return partial(open_app, "test", broker=url, backend=url)


@pytest.fixture
def app(make_app: MakeApp) -> Taskline:
    return make_app()


@pytest.fixture
def memory_app(make_memory_app: MakeApp) -> Taskline:
    return make_memory_app()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """A broker in a file, on which supervisors can be started."""
    stage = Stage(tmp_path)
    yield stage
    stage.end()
