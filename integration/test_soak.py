"""A short soak: `python -m integration.soak` is the long one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from integration.conftest import server_or_skip
from integration.servers.redis import RedisServer
from integration.soak import soak

TASKS = 30_000

pytestmark = [
    pytest.mark.serial,
    pytest.mark.skipif(sys.platform != "linux", reason="looks into Linux's /proc"),
]


@pytest.mark.parametrize("store", ["sqlite", "redis"])
def test_what_a_worker_holds_does_not_grow_with_its_tasks(store: str, tmp_path: Path) -> None:
    """Each task that left a descriptor or a kilobyte behind would show."""
    servers = server_or_skip(RedisServer) if store == "redis" else iter([None])
    for server in servers:
        url = f"sqlite:///{tmp_path}/soak.db" if server is None else server.url
        verdict = soak(url, TASKS, tmp_path)
        assert max(verdict.leaked) < 0.1, str(verdict)
        grown = verdict.growth * verdict.between(0.1, 0.3)[0].rss
        assert grown < 1000 * 0.6 * TASKS, str(verdict)
