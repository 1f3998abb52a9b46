"""One app on another broker and Redis: workers, and one of the servers, are killed with SIGKILL."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from integration.conftest import server_or_skip
from integration.etl import QUEUES
from integration.servers.redis import RedisServer
from taskline import Taskline

EVENTS = 100
"""Of 20 ms each."""


class Bus(NamedTuple):
    """Where the events are: a broker that only this test uses, with queues named as it can."""

    connector: str | dict[str, Any]
    path: str = ""
    """What PYTHONPATH must have for it."""


class Etl:
    """A caller, and its workers."""

    def __init__(self, redis: RedisServer, bus: Bus, at: Path) -> None:
        self.notes = at / "notes"
        backend = f"sqlite:///{at}/results.db"
        self.caller = Taskline(
            "caller",
            broker=redis.url,
            backend=backend,
            connectors={"bus": bus.connector},
            queues=QUEUES,
        )
        self._environment = {
            **os.environ,
            **({"PYTHONPATH": bus.path} if bus.path else {}),
            "TASKLINE_BROKER": redis.url,
            "TASKLINE_BACKEND": backend,
            "BUS": json.dumps(bus.connector),
            "NOTES": str(self.notes),
        }
        self.log = at / "worker.log"

    def start_worker(self) -> subprocess.Popen[bytes]:
        words = ["-m", "taskline", "worker", "-A", "integration.etl", "-c", "2"]
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


class TwoBrokers:
    """Subclass it as `Test…` and override the fixture `bus`."""

    @pytest.fixture
    def bus(self) -> Bus:
        raise NotImplementedError("override bus: a broker beside Redis")

    @pytest.fixture
    def redis(self) -> Iterator[RedisServer]:
        yield from server_or_skip(lambda: RedisServer(appendonly=True))

    @pytest.fixture
    def etl(self, redis: RedisServer, bus: Bus, tmp_path: Path) -> Iterator[Etl]:
        etl = Etl(redis, bus, tmp_path)
        with etl.caller:
            yield etl

    def test_nothing_is_lost_between_the_brokers_when_workers_are_killed(self, etl: Etl) -> None:
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

    def test_one_broker_that_is_down_does_not_stop_the_other(
        self, etl: Etl, redis: RedisServer
    ) -> None:
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
