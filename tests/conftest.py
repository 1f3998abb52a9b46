"""What every test gets."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from taskline import Taskline

MakeApp = Callable[..., Taskline]

# A machine that stands still for a second says nothing about a test.
settings.register_profile("calm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("calm")

pytest_plugins = ["taskline.testing.plugin", "pytester"]


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Commands set logging up for their process, which here is that of all tests."""
    root, ours = logging.getLogger(), logging.getLogger("taskline")
    before = root.level, ours.level, root.handlers[:]
    yield
    root.setLevel(before[0])
    ours.setLevel(before[1])
    root.handlers[:] = before[2]


@pytest.fixture
def open_app() -> Iterator[MakeApp]:
    """Makes apps as `Taskline` does, which are closed when the test is over."""
    apps = []

    def make(name: str, **settings: Any) -> Taskline:
        app = Taskline(name, **settings)
        apps.append(app)
        return app

    yield make
    for app in apps:
        app.close()


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, taskline_memory: str, tmp_path: Path) -> str:
    """The URL of an empty broker and backend, of every kind that a laptop has."""
    return taskline_memory if request.param == "memory" else f"sqlite:///{tmp_path}/shop.db"


@pytest.fixture
def make_app(store: str, open_app: MakeApp) -> MakeApp:
    """Apps on one store, which all apps of a test share; to be called with their settings."""
    return partial(open_app, "shop", broker=store, backend=store)
