"""Workers that are killed with SIGKILL, all at once: no task is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from integration.redis.shop import note
from integration.servers.mongo import MongoServer
from taskline import Taskline

TASKS = 100
"""Of 50 ms each."""


def start_worker(url: str, results: str, notes: Path) -> subprocess.Popen[bytes]:
    """A supervisor with two processes."""
    return subprocess.Popen(
        [sys.executable, "-m", "taskline", "worker", "-A", "integration.redis.shop", "-c", "2"],
        env={
            **os.environ,
            "TASKLINE_BROKER": url,
            "TASKLINE_BACKEND": results,
            "NOTES": str(notes),
            "TAKES": "0.05",
        },
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def left(app: Taskline) -> list[int | None]:
    (stats,) = app.transport.stats(["default"])
    return [stats.ready, stats.leased, stats.dead]


def lines(notes: Path) -> int:
    return len(notes.read_text().splitlines()) if notes.exists() else 0


@pytest.mark.parametrize("kept", ["sqlite", "mongodb"])
def test_no_task_is_lost_when_all_workers_are_killed(
    mongo_url: str, tmp_path: Path, kept: str
) -> None:
    notes = tmp_path / "notes"
    results = mongo_url if kept == "mongodb" else f"sqlite:///{tmp_path / 'results.db'}"
    caller = Taskline("caller", broker=mongo_url, backend=results)
    waited = [caller.send_task(note.name, (number,)) for number in range(TASKS)]
    first = start_worker(mongo_url, results, notes)
    try:
        while lines(notes) < TASKS // 3:
            assert first.poll() is None
            caller.clock.sleep(0.01)
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    second = start_worker(mongo_url, results, notes)
    try:
        assert [result.get(timeout=60) for result in waited] == list(range(TASKS))
        assert {int(line) for line in notes.read_text().split()} == set(range(TASKS))
        end = caller.clock.monotonic() + 30
        while left(caller) != [0, 0, 0]:  # the last receipts follow the results
            assert caller.clock.monotonic() < end, left(caller)
            caller.clock.sleep(0.05)
    finally:
        second.terminate()
        assert second.wait(30) == 0
        caller.close()


def test_no_task_and_no_result_is_lost_when_the_server_is_killed(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    with MongoServer(durable=True) as server:
        caller = Taskline("caller", broker=server.url, backend=server.url)
        waited = [caller.send_task(note.name, (number,)) for number in range(TASKS)]
        worker = start_worker(server.url, server.url, notes)
        try:
            for share in (4, 2):
                while lines(notes) < TASKS // share:
                    assert worker.poll() is None
                    caller.clock.sleep(0.01)
                server.kill()
                server.start()
            assert [result.get(timeout=60) for result in waited] == list(range(TASKS))
        finally:
            worker.terminate()
            assert worker.wait(30) == 0
            caller.close()
