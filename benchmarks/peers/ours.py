"""Taskline on any store, as shipped: one supervisor, one worker process, one thread."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from common import RESULTS, marks
from declared import Declared

from taskline import Taskline


def due(eta: float) -> None:
    marks.due(eta)


class Ours(Declared):
    def __init__(self, module: str, broker: str, *, keeps_results: bool = True) -> None:
        backend = broker if RESULTS and keeps_results else None
        super().__init__(module, Taskline("bench", broker=broker, backend=backend))
        self.due = self.declare(due)

    def prepare(self) -> None:
        self.app.transport.ping()

    def send_many(self, count: int) -> None:
        noop = self.noop
        with self.app.batch():
            for _ in range(count):
                noop.delay()

    def send_delayed(self, etas: Iterable[float]) -> None:
        with self.app.batch():
            for eta in etas:
                self.due.apply_async((eta,), eta=eta)

    def chord(self, count: int) -> int:
        from taskline.workflows import chord

        ones = [self.one.s() for _ in range(count)]
        return chord(ones, self.total.s()).delay().get(timeout=60)

    def chain(self, steps: int) -> int:
        from taskline.workflows import chain

        more = (self.more.s() for _ in range(steps - 1))
        return chain([self.one.s(), *more]).delay().get(timeout=60)

    def empty(self) -> bool:
        return not any(queue.ready or queue.leased for queue in self.app.transport.stats())

    def worker(self) -> list[str]:
        command = Path(sys.executable).with_name("taskline")
        return [str(command), "worker", "-A", self.module, "-c", "1", "--threads", "1"]
