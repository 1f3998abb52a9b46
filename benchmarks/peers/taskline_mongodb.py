# /// script
# dependencies = ["taskline", "pymongo"]
# ///
"""Taskline on MongoDB, as shipped: one supervisor, one worker process, one thread.

Receipts are leases. Where results are kept, they are in the same server, for a day.
"""

from __future__ import annotations

import sys
from pathlib import Path

from common import MONGODB, RESULTS, Peer, marks

from taskline import Taskline

URL = MONGODB or "mongodb://127.0.0.1"
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


class TasklineMongoDB(Peer):
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
        return [str(command), "worker", "-A", "taskline_mongodb", "-c", "1", "--threads", "1"]


peer = TasklineMongoDB()
