"""The benchmarks of Taskline on Redis still run; only what is counted, not timed, is looked at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from integration.conftest import server_or_skip
from integration.servers.redis import RedisServer

PEERS = Path(__file__).resolve().parents[2] / "benchmarks" / "peers"


@pytest.fixture
def server() -> Iterator[RedisServer]:
    yield from server_or_skip(RedisServer)


def figures(
    server: RedisServer, directory: Path, command: str, arguments: dict[str, Any], results: bool
) -> dict[str, float]:
    environment = os.environ | {
        "BENCH_DIRECTORY": str(directory),
        "BENCH_RESULTS": "1" if results else "0",
        "BENCH_REDIS": f"{server.url}/0",
    }
    run = subprocess.run(
        [sys.executable, PEERS / "run.py", "taskline_redis", command, json.dumps(arguments)],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    found: dict[str, float] = json.loads(run.stdout)
    return found


@pytest.mark.parametrize(
    ("command", "arguments", "results"),
    [
        ("enqueue", {"n": 20}, False),
        ("bulk", {"n": 2000}, False),
        ("drain", {"n": 200}, True),
        ("latency", {"n": 5, "every": 0.01}, False),
        ("roundtrip", {"n": 5}, True),
    ],
)
def test_taskline_is_measured(
    server: RedisServer, command: str, arguments: dict[str, Any], results: bool, tmp_path: Path
) -> None:
    found = figures(server, tmp_path, command, arguments, results)
    assert found
    assert all(number > 0 for number in found.values())


@pytest.mark.parametrize("results", [False, True])
def test_what_the_server_does_is_counted(
    server: RedisServer, results: bool, tmp_path: Path
) -> None:
    found = figures(server, tmp_path, "counts", {"n": 2000}, results)
    assert found["sent_commands"] == 1
    assert 100 < found["sent_bytes"] < 300
    assert 100 < found["memory_bytes"] < 300
    assert 0 < found["drain_commands"] < 0.5
    assert found["with_those_of_scripts"] > found["drain_commands"]
