"""The whole workflow suite on MongoDB, where TASKLINE_TEST_WORKFLOWS is set."""

from __future__ import annotations

import pytest

from integration.everywhere import whole_suite
from taskline import Taskline
from taskline.testing.flow_suite import MakeApp, WorkflowConformance

pytestmark = whole_suite


class TestMongo(WorkflowConformance):
    @pytest.fixture
    def make_app(self, mongo_url: str) -> MakeApp:
        return lambda **settings: Taskline("test", broker=mongo_url, backend=mongo_url, **settings)
