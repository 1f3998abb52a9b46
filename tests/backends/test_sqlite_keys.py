"""Locks and keys in a file: many processes, killed holders, upkeep, and older layouts."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from taskline import Taskline
from taskline.backends.sqlite import SQLiteBackend
from taskline.clock import Clock, ManualClock
from taskline.sqlite import schema
from taskline.sqlite.location import Location
from taskline.testing.cases.locks import Waiting

fork = multiprocessing.get_context("fork")
BOUND = 30.0
"""Seconds after which anything counts as hanging."""


def opened(file: Path, clock: Clock | None = None) -> SQLiteBackend:
    return SQLiteBackend(Location(str(file)), clock or Clock())


def app_on(file: Path) -> Taskline:
    return Taskline("shop", broker="memory://", backend=f"sqlite:///{file}")


class Processes:
    """Children that are all gone after the test."""

    def __init__(self) -> None:
        self.all: list[multiprocessing.process.BaseProcess] = []

    def start(self, target: Callable[..., None], *args: Any) -> multiprocessing.process.BaseProcess:
        process = fork.Process(target=target, args=args)
        process.start()
        self.all.append(process)
        return process

    def join(self) -> None:
        for process in self.all:
            process.join(BOUND)
        assert [process.exitcode for process in self.all] == [0] * len(self.all)


@pytest.fixture
def processes() -> Iterator[Processes]:
    made = Processes()
    yield made
    for process in made.all:
        process.kill()
        process.join()


class TestWithoutFifos(Waiting):
    """Who waits looks whether the file has changed, where it cannot be told."""

    @pytest.fixture
    def make_backend(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Callable[[Clock], SQLiteBackend]:
        monkeypatch.delattr(os, "mkfifo")
        return lambda clock: opened(tmp_path / "results.db", clock)


# Processes


def _add(file: Path, shared: Path, rounds: int) -> None:
    """Read, add and write, which loses counts where two do it at once; refuse older fences."""
    app = app_on(file)
    for _ in range(rounds):
        with app.lock("shared", ttl=BOUND, timeout=BOUND) as lock:
            number, fence = map(int, shared.read_text().split())
            assert lock.fence > fence
            shared.write_text(f"{number + 1} {lock.fence}")
    app.close()


def test_processes_exclude_one_another_and_fences_grow(
    tmp_path: Path, processes: Processes
) -> None:
    file, shared = tmp_path / "results.db", tmp_path / "shared"
    shared.write_text("0 0")
    for _ in range(4):
        processes.start(_add, file, shared, 25)
    processes.join()
    assert shared.read_text().split()[0] == "100"


def _hold(file: Path, ttl: float, told: Any) -> None:
    lock = app_on(file).lock("shared", ttl=ttl)
    assert lock.acquire()
    told.send(lock.fence)
    signal.pause()


def test_the_lock_of_a_killed_process_is_free_after_its_ttl(
    tmp_path: Path, processes: Processes
) -> None:
    file, shared = tmp_path / "results.db", tmp_path / "shared"
    hear, told = fork.Pipe(duplex=False)
    holder = processes.start(_hold, file, 1.0, told)
    assert hear.poll(BOUND)
    fence = hear.recv()
    shared.write_text(f"0 {fence}")
    for _ in range(3):
        processes.start(_add, file, shared, 10)
    holder.kill()
    holder.join(BOUND)
    app = app_on(file)
    left, before = app.lock("shared").get_ttl(), app.clock.monotonic()
    assert left is not None
    lock = app.lock("shared", ttl=BOUND, timeout=BOUND)
    with lock:
        # Not earlier than the lease ends, by the difference of the two clocks.
        assert app.clock.monotonic() - before >= left - 0.05
        assert lock.fence > fence
    processes.all.remove(holder)
    processes.join()
    assert shared.read_text().split()[0] == "30"
    app.close()


def test_the_lock_of_a_killed_process_stays_its_own_until_its_ttl(
    tmp_path: Path, processes: Processes
) -> None:
    file = tmp_path / "results.db"
    hear, told = fork.Pipe(duplex=False)
    holder = processes.start(_hold, file, 10 * BOUND, told)
    assert hear.poll(BOUND)
    holder.kill()
    holder.join(BOUND)
    app = app_on(file)
    assert not app.lock("shared").acquire(timeout=0.1)
    assert app.lock("shared").is_locked()
    app.close()


def _count(file: Path, times: int, told: Any) -> None:
    app = app_on(file)
    told.send([app.kv.increment("hits", ttl=BOUND) for _ in range(times)])
    app.close()


def test_processes_count_together(tmp_path: Path, processes: Processes) -> None:
    hear, told = fork.Pipe(duplex=False)
    for _ in range(4):
        processes.start(_count, tmp_path / "results.db", 50, told)
    seen = []
    for _ in range(4):
        assert hear.poll(BOUND)
        seen += hear.recv()
    processes.join()
    assert sorted(seen) == list(range(1, 201))


def _wait(file: Path, told: Any) -> None:
    app = app_on(file)
    keys = app._keys()
    with keys.watch("shared") as watch:
        assert keys.acquire("shared", "waiter", BOUND).token != "waiter"
        told.send("waiting")
        watch.wait(BOUND)
        told.send(keys.acquire("shared", "waiter", BOUND).token)
    app.close()


def test_a_release_wakes_another_process(tmp_path: Path, processes: Processes) -> None:
    """By the release itself: the waiter would look by itself only after the bound."""
    file = tmp_path / "results.db"
    hear, told = fork.Pipe(duplex=False)
    app = app_on(file)
    lock = app.lock("shared", ttl=10 * BOUND)
    lock.acquire()
    processes.start(_wait, file, told)
    assert hear.poll(BOUND)
    assert hear.recv() == "waiting"
    lock.release()
    assert hear.poll(BOUND / 2)
    assert hear.recv() == "waiter"
    processes.join()
    app.close()


# The file


def test_upkeep_deletes_what_has_ended(tmp_path: Path) -> None:
    clock = ManualClock()
    backend = opened(tmp_path / "results.db", clock)
    keys = backend.keys()
    for number in range(2500):
        keys.set(f"short-{number}", b"1", 10.0)
    keys.set("long", b"1", 1000.0)
    keys.set("ever", b"1", None)
    keys.acquire("short", "me", 10.0)
    fence = keys.acquire("long", "me", 1000.0).fence
    clock.advance(11.0)
    for _ in range(3):
        backend.maintain()
    with sqlite3.connect(tmp_path / "results.db") as raw:
        assert sorted(raw.execute("SELECT key FROM keys")) == [("ever",), ("long",)]
        assert raw.execute("SELECT name FROM locks").fetchall() == [("long",)]
    raw.close()
    held = keys.holder("long")
    assert held is not None
    assert held.fence == fence
    backend.close()


def test_fences_grow_beyond_those_of_a_file_that_was_lost(tmp_path: Path) -> None:
    """Or else a resource that remembers the last fence would refuse every new holder."""
    clock = ManualClock()
    first, second = opened(tmp_path / "a.db", clock), opened(tmp_path / "b.db", clock)
    for number in range(5):
        fence = first.keys().acquire(f"{number}", "me", 10.0).fence
    clock.advance(1.0)
    assert second.keys().acquire("0", "me", 10.0).fence > fence
    first.close()
    second.close()


def test_a_file_without_keys_gets_them_and_keeps_what_it_has(tmp_path: Path) -> None:
    file = tmp_path / "results.db"
    with sqlite3.connect(file) as old:
        for step in schema.STEPS[:2]:
            for statement in step:
                old.execute(statement)
        old.execute(
            "INSERT INTO outcomes (id, state, sent, deliveries, frame) "
            "VALUES ('old', 'SUCCESS', 1.0, 1, x'00')"
        )
        old.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        old.execute("PRAGMA user_version = 2")
    old.close()
    backend = opened(file)
    assert backend.keys().increment("hits", 1, None) == 1
    assert backend.keys().acquire("lock", "me", 10.0).token == "me"
    assert backend.fetch(["old"])["old"].frame == b"\0"
    backend.close()


def test_who_waits_does_not_lock_the_file(tmp_path: Path) -> None:
    """Only a lock that is free is worth the file's one writer."""
    waiting, file = opened(tmp_path / "results.db"), tmp_path / "results.db"
    keys = waiting.keys()
    keys.acquire("a", "me", 100.0)
    with sqlite3.connect(file, isolation_level=None) as writer:
        writer.execute("BEGIN IMMEDIATE")
        assert keys.acquire("a", "you", 100.0).token == "me"
        writer.execute("ROLLBACK")
    writer.close()
    waiting.close()
