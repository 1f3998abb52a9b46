from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stage import Stage

from taskline import Taskline
from taskline.backends import memory as memory_backends
from taskline.message import new_id
from taskline.transports import memory as memory_transports

MakeApp = Callable[..., Taskline]


@pytest.fixture(params=["memory", "sqlite", "sqlite-apart"])
def make_app(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeApp]:
    """Apps on every kind of broker and backend that a laptop has; all apps of a test share them."""
    name = new_id()
    broker = f"memory://{name}" if request.param == "memory" else f"sqlite:///{tmp_path}/broker.db"
    apart = request.param == "sqlite-apart"
    backend = f"sqlite:///{tmp_path}/results.db" if apart else broker
    yield from _apps(name, broker, backend)


@pytest.fixture
def make_memory_app() -> Iterator[MakeApp]:
    """Apps in this process's memory; all apps of a test share it."""
    name = new_id()
    yield from _apps(name, f"memory://{name}", f"memory://{name}")


@pytest.fixture
def make_sqlite_app(tmp_path: Path) -> Iterator[MakeApp]:
    """Apps with broker and backend in one SQLite file; all apps of a test share it."""
    url = f"sqlite:///{tmp_path}/broker.db"
    yield from _apps("", url, url)


def _apps(name: str, broker: str, backend: str) -> Iterator[MakeApp]:
    apps = []

    def make(**settings: Any) -> Taskline:
        app = Taskline("test", **{"broker": broker, "backend": backend, **settings})
        apps.append(app)
        return app

    yield make
    for app in apps:
        app.close()
    memory_transports.forget(name)
    memory_backends.forget(name)


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
