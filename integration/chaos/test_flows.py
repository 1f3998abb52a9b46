"""Chords under `kill -9`, for some seconds: `integration.chaos.flows` does it for long."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from integration.chaos.flows import run
from integration.conftest import server_or_skip
from integration.servers.redis import RedisServer

pytestmark = [
    pytest.mark.serial,
    pytest.mark.skipif(sys.platform != "linux", reason="finds processes by Linux's /proc"),
]


@pytest.mark.parametrize("store", ["redis", "sqlite"])
def test_every_chord_completes_and_none_twice(store: str, tmp_path: Path) -> None:
    servers = server_or_skip(RedisServer) if store == "redis" else iter([None])
    for server in servers:
        url = f"sqlite:///{tmp_path}/chords.db" if server is None else server.url
        report = run(url, chords=400, size=4, every=0.15, seed=7, kills=3)
        assert report.good, str(report)
        assert report.kills >= 3
