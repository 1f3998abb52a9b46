# /// script
# dependencies = ["taskline"]
# ///
"""Taskline on Redis, as shipped: one supervisor, one worker process, one thread.

Receipts are leases. Where results are kept, they are in the same server, for a day.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from common import REDIS, RESULTS, Peer, marks

from taskline import Taskline
from taskline.workflows import chain, chord

URL = REDIS or "redis://127.0.0.1"
app = Taskline("bench", broker=URL, backend=URL if RESULTS else None)


@app.task
def noop() -> int:
    return marks.tick()


@app.task
def late(sent: float) -> None:
    marks.late(sent)


@app.task
def due(eta: float) -> None:
    marks.due(eta)


@app.task
def echo(number: int) -> int:
    return number


@app.task
def one() -> int:
    return 1


@app.task
def more(number: int) -> int:
    return number + 1


@app.task
def total(numbers: list[int]) -> int:
    return sum(numbers)


class TasklineRedis(Peer):
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

    def send_delayed(self, etas: Iterable[float]) -> None:
        with app.batch():
            for eta in etas:
                due.apply_async((eta,), eta=eta)

    def round_trip(self, number: int) -> int:
        return echo.delay(number).get(timeout=60)

    def chord(self, count: int) -> int:
        return chord([one.s() for _ in range(count)], total.s()).delay().get(timeout=60)

    def chain(self, steps: int) -> int:
        return chain([one.s(), *(more.s() for _ in range(steps - 1))]).delay().get(timeout=60)

    def empty(self) -> bool:
        stats = app.transport.stats()
        return all(queue.ready == queue.leased == 0 for queue in stats)

    def worker(self) -> list[str]:
        command = Path(sys.executable).with_name("taskline")
        return [str(command), "worker", "-A", "taskline_redis", "-c", "1", "--threads", "1"]


peer = TasklineRedis()
