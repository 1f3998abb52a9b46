"""Workflows, schedules, durable steps, streams and batches by the PostgreSQL plug-in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from integration.everywhere import Everywhere, Place


class TestPostgreSQL(Everywhere):
    """With results in SQLite."""

    @pytest.fixture
    def place(
        self,
        postgresql_url: str,
        tmp_path: Path,
        installed: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> Place:
        monkeypatch.syspath_prepend(installed.split(os.pathsep)[0])
        return Place(postgresql_url, f"sqlite:///{tmp_path}/results.db")
