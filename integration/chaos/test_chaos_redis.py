"""Kills at random moments on Redis, of workers, supervisors, senders and of the server itself.

`TASKLINE_CHAOS_SECONDS` and `TASKLINE_CHAOS_SEED` choose how long and which plan.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from integration.chaos.__main__ import durable_server
from integration.chaos.checker import Evidence, check
from integration.chaos.driver import Driver
from integration.chaos.report import report
from integration.chaos.tasks import Config
from integration.conftest import server_or_skip
from integration.servers.redis import RedisServer

SECONDS = float(os.environ.get("TASKLINE_CHAOS_SECONDS") or 16)
SEED = int(os.environ.get("TASKLINE_CHAOS_SEED") or random.randrange(10**6))

pytestmark = [
    pytest.mark.serial,
    pytest.mark.skipif(sys.platform != "linux", reason="finds processes by Linux's /proc"),
]


@pytest.fixture
def server() -> Iterator[RedisServer]:
    yield from server_or_skip(durable_server)


def test_nothing_is_lost_whatever_is_killed(
    tmp_path: Path, server: RedisServer, figures: Callable[[str], None]
) -> None:
    Driver(Config(directory=str(tmp_path), redis=server.url), SEED, SECONDS, server).run()
    evidence = Evidence.read(tmp_path)
    violations = check(evidence)
    text = report(evidence, violations, SEED)
    figures(text)
    assert not violations, text
    kills = sum(len(record.get("pids", [0])) for record in evidence.records["kill"])
    assert kills >= SECONDS * 2, "the driver did not do its work"
    assert len(evidence.outcomes) >= SECONDS * 10, "the system did hardly any work"
