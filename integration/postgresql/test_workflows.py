"""The whole workflow suite on PostgreSQL where TASKLINE_TEST_WORKFLOWS is set; results: SQLite."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from integration.everywhere import whole_suite
from taskline import Taskline
from taskline.testing.flow_suite import MakeApp, WorkflowConformance

pytestmark = whole_suite


class TestPostgreSQL(WorkflowConformance):
    @pytest.fixture
    def make_app(
        self,
        postgresql_url: str,
        tmp_path: Path,
        installed: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> MakeApp:
        monkeypatch.syspath_prepend(installed.split(os.pathsep)[0])
        backend = f"sqlite:///{tmp_path}/results.db"
        return lambda **settings: Taskline(
            "test", broker=postgresql_url, backend=backend, **settings
        )
