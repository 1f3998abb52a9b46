"""Schedules on Redis: what they cost, and workers that are killed while they send."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from integration.conftest import server_or_skip
from integration.servers.redis import RedisServer
from taskline import Taskline
from taskline.redis.node import Node
from taskline.schedule import Scheduler
from taskline.schedule.scheduler import TICK


@pytest.fixture
def server() -> Iterator[RedisServer]:
    yield from server_or_skip(RedisServer)


def test_a_waiting_scheduler_asks_less_than_once_a_second(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = 0
    once = Node.once

    def counted(node: Node, *args: Any) -> Any:
        nonlocal commands
        commands += 1
        return once(node, *args)

    monkeypatch.setattr(Node, "once", counted)
    app = Taskline("shop", broker=server.url, backend=server.url)

    @app.periodic(cron="0 0 1 1 *")
    def newyear() -> None: ...

    leader, other = Scheduler(app), Scheduler(app)
    leader.step()
    other.step()
    commands = 0
    leader._next_look = 0.0  # as after TICK seconds
    assert leader.step() <= TICK
    assert 0 < commands / TICK < 1
    commands = 0
    wait = other.step()
    assert 0 < commands / wait < 1
    leader.close()
    app.close()


def start_worker(url: str, notes: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "taskline", "worker", "-A", "integration.redis.clockwork"],
        env={
            **os.environ,
            "TASKLINE_BROKER": url,
            "TASKLINE_BACKEND": url,
            "NOTES": str(notes),
        },
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def test_each_slot_is_sent_once_though_workers_are_killed(
    server: RedisServer, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    caller = Taskline("clockwork", broker=server.url, backend=server.url)

    def count() -> int:
        return len(notes.read_text().splitlines()) if notes.exists() else 0

    def await_more(number: int) -> None:
        by = caller.clock.monotonic() + 60
        wanted = count() + number
        while count() < wanted:
            assert caller.clock.monotonic() < by, "no further slots"
            caller.clock.sleep(0.02)

    workers = [start_worker(server.url, notes)]
    try:
        await_more(2)
        for _ in range(2):
            workers.append(start_worker(server.url, notes))
            caller.clock.sleep(1.0)
            dead = workers.pop(0)
            os.killpg(dead.pid, signal.SIGKILL)
            dead.wait()
            await_more(3)
        workers[0].terminate()
        assert workers[0].wait(30) == 0
    finally:
        for worker in workers:
            if worker.poll() is None:
                os.killpg(worker.pid, signal.SIGKILL)
                worker.wait()
        caller.close()
    ids = dict[str, str]()
    for line in notes.read_text().splitlines():
        slot, task_id, _ = line.split()
        # One that was running when its worker was killed may run again: the same message.
        assert ids.setdefault(slot, task_id) == task_id
    slots = sorted(map(float, ids))
    gaps = {round(later - earlier) for earlier, later in pairwise(slots)}
    assert gaps == {1}, slots
    runs = [line for line in notes.read_text().splitlines() if line.endswith(" 1")]
    assert len(runs) == len({line.split()[0] for line in runs}), "a slot was run twice"
