"""Worker processes and brokers that are killed, paused, added and taken away: no task is lost.

What runs twice is counted, and never more than what had been begun and was not finished.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from integration.conftest import server_or_skip
from integration.kafka.shop import hold, note
from integration.servers.kafka import KafkaServer
from taskline import Taskline
from taskline.result import AsyncResult

long = pytest.mark.skipif(
    not os.environ.get("TASKLINE_TEST_KAFKA_ALL"), reason="minutes: set TASKLINE_TEST_KAFKA_ALL=1"
)

TASKS = 300
PATIENCE = 60.0
APP = "integration.kafka.shop"


class Shop:
    """A caller, and workers that note what they begin."""

    def __init__(self, url: str, directory: Path) -> None:
        self.notes = directory / "notes"
        self.environment = {
            **os.environ,
            "TASKLINE_BROKER": url,
            "TASKLINE_BACKEND": f"sqlite:///{directory}/results.db",
            "NOTES": str(self.notes),
        }
        self.caller = Taskline("caller", broker=url, backend=self.environment["TASKLINE_BACKEND"])
        self.workers: list[subprocess.Popen[bytes]] = []

    def worker(self, processes: int = 1, *options: str) -> subprocess.Popen[bytes]:
        """One more worker in a process group of its own, with one thread in each process."""
        options = ("-c", str(processes), "--threads", "1", *options)
        with (self.notes.parent / "log").open("ab") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "taskline", "worker", "-A", APP, *options],
                env=self.environment,
                start_new_session=True,
                stdout=log,
                stderr=log,
            )
        self.workers.append(worker)
        return worker

    def send(self, count: int, takes: float = 0.02) -> list[AsyncResult[int]]:
        with self.caller.batch() as results:
            for number in range(count):
                self.caller.send_task(note.name, (number, takes))
        return list(results)

    def begun(self) -> list[tuple[int, int]]:
        """What was begun, by which process."""
        if not self.notes.exists():
            return []
        lines = self.notes.read_text().splitlines()
        return [(int(number), int(pid)) for number, pid in map(str.split, lines)]

    def until(self, what: Callable[[], object]) -> None:
        end = time.monotonic() + PATIENCE
        while not what():
            assert time.monotonic() < end, (self.notes.parent / "log").read_text()[-3000:]
            time.sleep(0.01)

    def finish(self, results: list[AsyncResult[int]]) -> int:
        """Wait until all are done; returns how many were begun more often than once."""
        wanted = list(range(len(results)))
        assert [each.get(timeout=PATIENCE) for each in results] == wanted
        counts = Counter(number for number, _ in self.begun())
        assert sorted(counts) == wanted
        self.until(lambda: all(not each.ready for each in self.caller.transport.stats(["default"])))
        assert self.caller.transport.dead_letters() == []
        return sum(counts.values()) - len(counts)

    def stop(self, worker: subprocess.Popen[bytes]) -> None:
        worker.terminate()
        assert worker.wait(30) == 0
        self.workers.remove(worker)

    def kill(self, worker: subprocess.Popen[bytes]) -> None:
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
        self.workers.remove(worker)

    def close(self) -> None:
        for worker in self.workers:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGCONT)
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
        self.caller.close()


def url_of(server: KafkaServer, name: str) -> str:
    return f"{server.url}?prefix={name}.&group={name}&partitions=4&session.timeout.ms=1000"


@pytest.fixture
def shop(kafka_server: KafkaServer, kafka_name: str, tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(url_of(kafka_server, kafka_name), tmp_path)
    yield shop
    shop.close()


@long
def test_a_killed_process_costs_what_it_was_running(shop: Shop) -> None:
    """Its supervisor lives: what it held is handed back at once, the rest has not begun."""
    results = shop.send(TASKS)
    shop.worker(processes=2)
    killed = 0
    for share in (0.2, 0.5):
        shop.until(lambda share=share: len(shop.begun()) > share * TASKS)  # type: ignore[misc]
        os.kill(shop.begun()[-1][1], signal.SIGKILL)
        killed += 1
    assert shop.finish(results) <= killed * (1 + 2)


def test_no_task_is_lost_when_all_workers_are_killed(shop: Shop) -> None:
    results = shop.send(TASKS)
    first = [shop.worker(2), shop.worker(1)]
    shop.until(lambda: len(shop.begun()) > TASKS // 3)
    for worker in first:
        shop.kill(worker)
    begun = len(shop.begun())
    shop.worker(2)
    repeated = shop.finish(results)
    assert begun < TASKS
    # Each process ran one, and may have finished some whose receipts had not been committed.
    assert repeated <= 3 + 3 * 5


@long
def test_a_thousand_in_flight_are_all_that_repeats(shop: Shop) -> None:
    """Between them as many that were finished, whose receipts reach beyond the first unfinished."""
    in_flight = 1000
    with shop.caller.batch() as sent:
        for number in range(2 * in_flight):
            shop.caller.send_task(hold.name, (number,))
    results = list(sent)
    slots = ("--async-slots", str(in_flight + 100))
    first = shop.worker(1, *slots)
    shop.until(lambda: len(shop.begun()) == 2 * in_flight)
    shop.until(lambda: shop.caller.transport.stats(["default"])[0].ready == in_flight)
    shop.kill(first)
    shop.notes.with_suffix(".go").touch()
    shop.worker(1, *slots)
    assert shop.finish(results) == in_flight
    again = Counter(number for number, _ in shop.begun())
    assert all(times == 1 + number % 2 for number, times in again.items())


@long
def test_a_worker_that_is_paused_beyond_its_session_does_no_harm(shop: Shop) -> None:
    results = shop.send(TASKS)
    paused = shop.worker()
    shop.until(lambda: len(shop.begun()) > 10)
    other = shop.worker()
    os.killpg(paused.pid, signal.SIGSTOP)
    repeated = shop.finish(results)
    os.killpg(paused.pid, signal.SIGCONT)
    again = shop.send(TASKS // 3)
    assert [each.get(timeout=PATIENCE) for each in again] == list(range(TASKS // 3))
    assert [each.get(timeout=PATIENCE) for each in results] == list(range(TASKS))
    assert repeated <= 1 + 5
    shop.stop(other)
    shop.stop(paused)


@long
def test_workers_come_and_go_under_load(shop: Shop) -> None:
    """1 → 3 → 1: who stops hands over, whose partition moves finishes first."""
    results = shop.send(2 * TASKS, takes=0.01)
    first = shop.worker()
    shop.until(lambda: len(shop.begun()) > 30)
    more = [shop.worker(), shop.worker()]
    shop.until(lambda: len({pid for _, pid in shop.begun()}) == 3)
    for worker in more:
        shop.stop(worker)
    assert shop.finish(results) == 0
    shop.stop(first)


@long
def test_a_broker_that_is_killed_and_comes_back(tmp_path: Path, kafka_name: str) -> None:
    for server in server_or_skip(KafkaServer):
        shop = Shop(url_of(server, kafka_name), tmp_path)
        try:
            results = shop.send(TASKS)
            shop.worker(2)
            shop.until(lambda shop=shop: len(shop.begun()) > TASKS // 3)  # type: ignore[misc]
            server.kill()
            server.start()
            later = shop.caller.send_task(note.name, (TASKS,))
            results.append(later)
            # What was finished while the broker was away was not committed.
            assert shop.finish(results) <= 2 * 10
        finally:
            shop.close()
