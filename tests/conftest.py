"""What every test gets."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

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
