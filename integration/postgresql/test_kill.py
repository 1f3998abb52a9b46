"""Workers and servers that are killed with SIGKILL: no task is lost.

The worker finds the plug-in as a user's does: by its entry point, from a URL.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from taskline_postgresql import PostgreSQLTransport

from integration.conftest import server_or_skip
from integration.postgresql.shop import note
from integration.servers.postgresql import PostgreSQLServer
from taskline import Taskline
from taskline.errors import TransportError

TASKS = 120
"""Of 50 ms each."""


@pytest.fixture
def server() -> Iterator[PostgreSQLServer]:
    yield from server_or_skip(lambda: PostgreSQLServer(fsync=True))


class Shop:
    """A caller, and its workers."""

    def __init__(self, server: PostgreSQLServer, directory: Path, path: str) -> None:
        self.notes = directory / "notes"
        backend = f"sqlite:///{directory}/results.db"
        broker = {"type": "taskline_postgresql:PostgreSQLTransport", "address": server.url[13:]}
        self.caller = Taskline("caller", broker=broker, backend=backend)
        self._environment = {
            **os.environ,
            "PYTHONPATH": path,
            "TASKLINE_BROKER": server.url,
            "TASKLINE_BACKEND": backend,
            "NOTES": str(self.notes),
            "TAKES": "0.05",
        }
        self.log = directory / "worker.log"

    def start_worker(self) -> subprocess.Popen[bytes]:
        """A supervisor with two processes."""
        words = ["-m", "taskline", "worker", "-A", "integration.postgresql.shop", "-c", "2"]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, *words],
                env=self._environment,
                start_new_session=True,
                stdout=log,
                stderr=log,
            )

    def wait_for(self, lines: int, worker: subprocess.Popen[bytes]) -> None:
        while not self.notes.exists() or len(self.notes.read_text().splitlines()) < lines:
            assert worker.poll() is None, self.log.read_text()
            self.caller.clock.sleep(0.01)

    def noted(self) -> set[int]:
        return {int(line) for line in self.notes.read_text().split()}

    def assert_drained(self) -> None:
        """Soon, since a message is acknowledged after its result is stored."""
        by = self.caller.clock.monotonic() + 30
        while any(each.ready or each.leased for each in self.caller.transport.stats()):
            assert self.caller.clock.monotonic() < by, self.caller.transport.stats()
            self.caller.clock.sleep(0.01)
        assert self.caller.transport.dead_letters() == []


@pytest.fixture
def shop(server: PostgreSQLServer, tmp_path: Path, installed: str) -> Iterator[Shop]:
    shop = Shop(server, tmp_path, installed)
    with shop.caller:
        yield shop


def test_no_task_is_lost_when_all_workers_are_killed(shop: Shop) -> None:
    results = [shop.caller.send_task(note.name, (number,)) for number in range(TASKS)]
    first = shop.start_worker()
    try:
        shop.wait_for(TASKS // 3, first)
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    second = shop.start_worker()
    try:
        assert [result.get(timeout=60) for result in results] == list(range(TASKS))
        assert shop.noted() == set(range(TASKS))
        shop.assert_drained()
    finally:
        second.terminate()
        assert second.wait(30) == 0


def test_no_task_is_lost_when_the_server_is_killed(shop: Shop, server: PostgreSQLServer) -> None:
    """Twice: while senders send, and while workers work; the workers find it again."""
    accepted = {}
    for number in range(TASKS):
        if number == TASKS // 2:
            server.kill()
        with contextlib.suppress(TransportError):
            accepted[number] = shop.caller.send_task(note.name, (number,))
        if number == TASKS // 2 + 3:
            server.start()
    assert TASKS - 5 <= len(accepted) < TASKS
    worker = shop.start_worker()
    try:
        shop.wait_for(TASKS // 3, worker)
        server.kill()
        server.start()
        assert {n: result.get(timeout=60) for n, result in accepted.items()} == {
            number: number for number in accepted
        }
        assert shop.noted() == set(accepted)
        shop.assert_drained()
    finally:
        worker.terminate()
        assert worker.wait(60) == 0


def test_a_password_is_never_shown(server: PostgreSQLServer) -> None:
    spec = server.url.replace("postgres@", "postgres:secret-1@")
    with pytest.raises(TransportError) as refused:
        PostgreSQLTransport.from_spec(f"{spec}nowhere", Taskline("x").clock).ping()
    assert str(refused.value).endswith('database "postgresnowhere" does not exist')
    assert not refused.value.retryable
    assert "secret-1" not in str(refused.value)
