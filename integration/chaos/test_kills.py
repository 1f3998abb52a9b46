"""Processes that are killed and told to stop on SQLite: what that costs, counted task by task."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from integration.chaos.history import Reader
from integration.chaos.processes import Group
from integration.chaos.stores.sqlite import SQLiteStore
from integration.chaos.tasks import LOAD, make_app
from taskline.worker import WorkerOptions

pytestmark = [
    pytest.mark.serial,
    pytest.mark.skipif(sys.platform != "linux", reason="finds processes by Linux's /proc"),
]

Figures = Callable[[str], None]


def wait_for(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """What `condition` returns once it is true."""
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, f"not within {seconds:g} s"
        time.sleep(0.005)
    return found


@pytest.fixture
def start_site(tmp_path: Path) -> Iterator[Callable[..., Group]]:
    """Starts supervisors, each with its processes, and ends them after the test."""
    config = SQLiteStore(tmp_path, lease=3.0).config()
    config.history.mkdir()
    (tmp_path / "disk").mkdir()
    groups = []

    def start(**options: Any) -> Group:
        options = {"queues": [LOAD], **options}
        group = Group(
            "integration.chaos.site",
            [config.dumps(), msgspec.json.encode(WorkerOptions(**options)).decode()],
            tmp_path / "site.log",
        )
        groups.append(group)
        return group

    yield start
    for group in groups:
        group.end()


def test_120_tasks_survive_the_death_of_all_processes(
    tmp_path: Path, start_site: Callable[..., Group], figures: Figures
) -> None:
    """The kill test that the others in the field were put to."""
    config = SQLiteStore(tmp_path, lease=3.0).config()
    app = make_app(config)
    results = app.tasks["medium"].map([30] * 120)  # each sleeps for 50 ms
    reader = Reader(config.history)
    records: list[dict[str, Any]] = []

    def finished() -> int:
        records.extend(reader.new())
        return sum(record["kind"] == "finish" for record in records)

    first = start_site(processes=2)
    wait_for(lambda: finished() >= 40)
    killed = time.monotonic()
    first.signal_all(signal.SIGKILL)
    first.process.wait(timeout=10)
    start_site(processes=2)
    values = results.get(timeout=60)
    took = time.monotonic() - killed
    finished()
    starts = [record["id"] for record in records if record["kind"] == "start"]
    repeated = len(starts) - len(set(starts))
    figures(
        f"120 tasks of 50 ms, kill -9 of all after 40: 0 lost, {repeated} repeated, "
        f"all final {took:.2f} s after the kill (lease {config.lease:g} s)"
    )
    assert len(set(values)) == 120
    assert set(starts) == set(results.ids)
    before = {record["id"] for record in records if record["t"] < killed}
    again = {record["id"] for record in records if record["t"] > killed} & before
    # Of each process what ran, and what had ended a moment before and was not acknowledged yet.
    assert len(again) == repeated <= 4, "only what ran, or had just ended, runs again"
    assert app.transport.dead_letters() == []
    app.close()


def test_sigterm_to_the_whole_group_lets_running_tasks_end(
    tmp_path: Path, start_site: Callable[..., Group]
) -> None:
    """As service managers send it: one signal to the supervisor and to each process."""
    config = SQLiteStore(tmp_path, lease=3.0).config()
    app = make_app(config)
    reader = Reader(config.history)
    site = start_site(processes=2)
    results = app.tasks["long"].map(range(2))
    running: list[dict[str, Any]] = []
    wait_for(lambda: running.extend(reader.new()) or len(running) == 2)
    site.signal_all(signal.SIGTERM)
    assert site.process.wait(timeout=30) == 0
    later = list(reader.new())
    assert [record["kind"] for record in later] == ["finish", "finish"]
    assert results.ready(), "both ended, and their results were stored"
    app.close()
