"""Workflows on Redis."""

from __future__ import annotations

import pytest

from taskline import Taskline
from taskline.testing.flow_suite import MakeApp, WorkflowConformance


class TestRedis(WorkflowConformance):
    @pytest.fixture
    def make_app(self, redis_url: str) -> MakeApp:
        return lambda **settings: Taskline("test", broker=redis_url, backend=redis_url, **settings)
