"""Workflows, schedules, durable steps, streams and batches on MongoDB: broker and results."""

from __future__ import annotations

import pytest

from integration.everywhere import Everywhere, Place


class TestMongo(Everywhere):
    @pytest.fixture
    def place(self, mongo_url: str) -> Place:
        return Place(mongo_url, mongo_url)
