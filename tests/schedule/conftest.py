from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from taskline import Taskline
from taskline.backends import memory as memory_backends
from taskline.clock import ManualClock
from taskline.message import new_id
from taskline.transports import memory as memory_transports

sys.path.insert(0, str(Path(__file__).parent.parent / "worker"))  # for its workbench

MakeApp = Callable[..., Taskline]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(params=["memory", "sqlite"])
def make_app(
    request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock
) -> Iterator[MakeApp]:
    """Apps in virtual time on every store that a laptop has; all apps of a test share it."""
    name = new_id()
    url = f"memory://{name}" if request.param == "memory" else f"sqlite:///{tmp_path}/shop.db"
    apps = []

    def make(**settings: Any) -> Taskline:
        app = Taskline("shop", **{"broker": url, "backend": url, "clock": clock, **settings})
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
