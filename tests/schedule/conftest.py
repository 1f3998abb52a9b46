from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from taskline import Taskline
from taskline.clock import ManualClock

sys.path.insert(0, str(Path(__file__).parent.parent / "worker"))  # for its workbench

MakeApp = Callable[..., Taskline]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def make_app(store: str, clock: ManualClock, open_app: MakeApp) -> MakeApp:
    """Apps in virtual time on every store that a laptop has; all apps of a test share it."""
    return partial(open_app, "shop", broker=store, backend=store, clock=clock)


@pytest.fixture
def app(make_app: MakeApp) -> Taskline:
    return make_app()
