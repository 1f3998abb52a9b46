"""Workers that are killed with SIGKILL, all at once: no task is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.conftest import server_or_skip
from integration.redis.shop import note
from integration.servers.redis import RedisServer
from taskline import Taskline

TASKS = 120
"""Of 50 ms each."""


@pytest.fixture
def server() -> Iterator[RedisServer]:
    yield from server_or_skip(RedisServer)


def start_worker(url: str, notes: Path) -> subprocess.Popen[bytes]:
    """A supervisor with two processes."""
    return subprocess.Popen(
        [sys.executable, "-m", "taskline", "worker", "-A", "integration.redis.shop", "-c", "2"],
        env={
            **os.environ,
            "TASKLINE_BROKER": url,
            "TASKLINE_BACKEND": url,
            "NOTES": str(notes),
            "TAKES": "0.05",
        },
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def lines(notes: Path) -> int:
    return len(notes.read_text().splitlines()) if notes.exists() else 0


def test_no_task_is_lost_when_all_workers_are_killed(server: RedisServer, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    caller = Taskline("caller", broker=server.url, backend=server.url)
    results = [caller.send_task(note.name, (number,)) for number in range(TASKS)]
    first = start_worker(server.url, notes)
    try:
        while lines(notes) < TASKS // 3:
            assert first.poll() is None
            caller.clock.sleep(0.01)
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    second = start_worker(server.url, notes)
    try:
        assert [result.get(timeout=60) for result in results] == list(range(TASKS))
        assert {int(line) for line in notes.read_text().split()} == set(range(TASKS))
        (stats,) = caller.transport.stats(["default"])
        assert (stats.ready, stats.leased, stats.dead) == (0, 0, 0)
    finally:
        second.terminate()
        assert second.wait(30) == 0
        caller.close()
