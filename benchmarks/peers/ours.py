"""Taskline on any store, as shipped: one supervisor, one worker process, one thread."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from common import RESULTS, Peer, marks

from taskline import Taskline


class Ours(Peer):
    """`module` is the one that has the app, in which the worker looks for it."""

    def __init__(self, module: str, broker: str, *, keeps_results: bool = True) -> None:
        backend = broker if RESULTS and keeps_results else None
        self.module = module
        self.app = app = Taskline("bench", broker=broker, backend=backend)

        @app.task(name=f"{module}.noop")
        def noop() -> int:
            return marks.tick()

        @app.task(name=f"{module}.late")
        def late(sent: float) -> None:
            marks.late(sent)

        @app.task(name=f"{module}.due")
        def due(eta: float) -> None:
            marks.due(eta)

        @app.task(name=f"{module}.echo")
        def echo(number: int) -> int:
            return number

        @app.task(name=f"{module}.one")
        def one() -> int:
            return 1

        @app.task(name=f"{module}.more")
        def more(number: int) -> int:
            return number + 1

        @app.task(name=f"{module}.total")
        def total(numbers: list[int]) -> int:
            return sum(numbers)

        self.noop, self.late, self.due, self.echo = noop, late, due, echo
        self.one, self.more, self.total = one, more, total

    def prepare(self) -> None:
        self.app.transport.ping()

    def send_noop(self) -> object:
        return self.noop.delay()

    def send_many(self, count: int) -> None:
        noop = self.noop
        with self.app.batch():
            for _ in range(count):
                noop.delay()

    def send_late(self, sent: float) -> object:
        return self.late.delay(sent)

    def send_delayed(self, etas: Iterable[float]) -> None:
        with self.app.batch():
            for eta in etas:
                self.due.apply_async((eta,), eta=eta)

    def round_trip(self, number: int) -> int:
        return self.echo.delay(number).get(timeout=60)

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
