# /// script
# dependencies = ["taskline"]
# ///
"""Taskline on SQLite, as shipped: one supervisor, one worker process, one thread."""

from __future__ import annotations

import sys
from pathlib import Path

from common import DIRECTORY, DURABILITY, RESULTS, Peer, marks

from taskline import Taskline

URL = f"sqlite:///{DIRECTORY / 'taskline.db'}?durability={DURABILITY}"
app = Taskline("bench", broker=URL, backend=URL if RESULTS else None)


@app.task
def noop() -> int:
    return marks.tick()


@app.task
def late(sent: float) -> None:
    marks.late(sent)


@app.task
def echo(number: int) -> int:
    return number


class TasklineSQLite(Peer):
    def prepare(self) -> None:
        app.transport.ping()

    def send_noop(self) -> object:
        return noop.delay()

    def send_many(self, count: int) -> None:
        with app.batch():
            for _ in range(count):
                noop.delay()

    def send_late(self, sent: float) -> object:
        return late.delay(sent)

    def round_trip(self, number: int) -> int:
        return echo.delay(number).get(timeout=60)

    def empty(self) -> bool:
        stats = app.transport.stats()
        return all(queue.ready == queue.leased == 0 for queue in stats)

    def worker(self) -> list[str]:
        command = Path(sys.executable).with_name("taskline")
        return [str(command), "worker", "-A", "taskline_sqlite", "-c", "1", "--threads", "1"]


peer = TasklineSQLite()
