"""Several servers that know nothing of each other: some die, and some come back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from integration.conftest import server_or_skip
from integration.nodes import DyingServers
from integration.servers.mongo import MongoServer


class TestMongo(DyingServers):
    product = "MongoDB"
    logger = "taskline.mongo"

    @pytest.fixture
    def servers(self) -> Iterator[list[MongoServer]]:
        runs = [server_or_skip(lambda: MongoServer(durable=True)) for _ in range(2)]
        yield [next(run) for run in runs]
        for run in runs:
            next(run, None)
