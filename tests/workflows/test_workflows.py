"""Workflows, on every kind of broker and backend that a laptop has."""

from __future__ import annotations

from pathlib import Path

import pytest

from taskline import Taskline
from taskline.testing.flow_suite import MakeApp, WorkflowConformance


class TestMemory(WorkflowConformance):
    @pytest.fixture
    def make_app(self, taskline_memory: str) -> MakeApp:
        url = taskline_memory
        return lambda **settings: Taskline("test", broker=url, backend=url, **settings)


class TestSQLite(WorkflowConformance):
    @pytest.fixture
    def make_app(self, tmp_path: Path) -> MakeApp:
        url = f"sqlite:///{tmp_path}/tasks.db"
        return lambda **settings: Taskline("test", broker=url, backend=url, **settings)


class TestSQLiteApart(WorkflowConformance):
    @pytest.fixture
    def make_app(self, tmp_path: Path) -> MakeApp:
        broker, backend = (f"sqlite:///{tmp_path}/{name}.db" for name in ("tasks", "results"))
        return lambda **settings: Taskline("test", broker=broker, backend=backend, **settings)
