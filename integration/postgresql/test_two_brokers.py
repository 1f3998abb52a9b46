"""One app on PostgreSQL and Redis: workers, and one of the servers, are killed with SIGKILL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.conftest import server_or_skip
from integration.servers.postgresql import PostgreSQLServer
from integration.servers.redis import RedisServer
from taskline import Taskline

EVENTS = 100
"""Of 20 ms each."""


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    yield from server_or_skip(lambda: RedisServer(appendonly=True))


@pytest.fixture
def postgresql() -> Iterator[PostgreSQLServer]:
    yield from server_or_skip(PostgreSQLServer)


class Etl:
    """A caller, and its workers."""

    def __init__(self, redis: RedisServer, postgresql: PostgreSQLServer, at: Path, path: str):
        self.notes = at / "notes"
        backend = f"sqlite:///{at}/results.db"
        connector = {
            "type": "taskline_postgresql.PostgreSQLTransport",
            "address": postgresql.url[13:],
        }
        self.caller = Taskline(
            "caller",
            broker=redis.url,
            backend=backend,
            connectors={"pg": connector},
            queues={
                "events": {"broker": "pg", "name": "prod.events.v1"},
                "slow": {"broker": "pg", "name": "prod.slow.v1"},
            },
        )
        self._environment = {
            **os.environ,
            "PYTHONPATH": path,
            "TASKLINE_BROKER": redis.url,
            "TASKLINE_BACKEND": backend,
            "POSTGRES": postgresql.url,
            "NOTES": str(self.notes),
        }
        self.log = at / "worker.log"

    def start_worker(self) -> subprocess.Popen[bytes]:
        words = ["-m", "taskline", "worker", "-A", "integration.postgresql.etl", "-c", "2"]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, *words],
                env=self._environment,
                start_new_session=True,
                stdout=log,
                stderr=log,
            )

    def noted(self, word: str) -> list[int]:
        lines = self.notes.read_text().splitlines() if self.notes.exists() else []
        return [int(line.split()[1]) for line in lines if line.startswith(word)]

    def wait_for(self, word: str, number: int, worker: subprocess.Popen[bytes]) -> None:
        by = self.caller.clock.monotonic() + 90
        while len(set(self.noted(word))) < number:
            assert worker.poll() is None, self.log.read_text()
            assert self.caller.clock.monotonic() < by, self.log.read_text()
            self.caller.clock.sleep(0.01)

    def assert_drained(self) -> None:
        by = self.caller.clock.monotonic() + 30
        while any(
            each.ready or each.leased for each in self.caller.transport.stats()
        ):  # what is acknowledged last
            assert self.caller.clock.monotonic() < by, self.caller.transport.stats()
            self.caller.clock.sleep(0.01)
        assert self.caller.transport.dead_letters() == []


@pytest.fixture
def etl(
    redis: RedisServer, postgresql: PostgreSQLServer, tmp_path: Path, installed: str
) -> Iterator[Etl]:
    etl = Etl(redis, postgresql, tmp_path, installed)
    with etl.caller:
        yield etl


def test_nothing_is_lost_between_the_brokers_when_workers_are_killed(etl: Etl) -> None:
    for number in range(EVENTS):
        etl.caller.send_task("etl.count", (number,), queue="events")
    first = etl.start_worker()
    try:
        etl.wait_for("report", EVENTS // 3, first)
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    second = etl.start_worker()
    try:
        etl.wait_for("report", EVENTS, second)
        etl.assert_drained()
        assert set(etl.noted("report")) == set(range(EVENTS))
    finally:
        second.terminate()
        assert second.wait(60) == 0


def test_one_broker_that_is_down_does_not_stop_the_other(etl: Etl, redis: RedisServer) -> None:
    worker = etl.start_worker()
    try:
        etl.caller.send_task("etl.count", (0,), queue="events")
        etl.wait_for("report", 1, worker)
        redis.kill()
        for number in range(10):
            etl.caller.send_task("etl.tick", (number,), queue="slow")
        etl.wait_for("tick", 10, worker)
        redis.start()
        for number in range(1, 10):
            etl.caller.send_task("etl.count", (number,), queue="events")
        etl.wait_for("report", 10, worker)
        etl.assert_drained()
        assert sorted(etl.noted("tick")) == list(range(10))
    finally:
        worker.terminate()
        assert worker.wait(60) == 0
