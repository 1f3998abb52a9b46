"""Celery on any broker: late acknowledgement, prefetch 32, the solo pool, its fastest for one slot.

What another worker or an event would want is off: gossip, mingle, heartbeats, remote control.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from celery import Celery, chain, chord
from common import Peer, marks


class OfCelery(Peer):
    """`module` is the one that has the app, in which the worker looks for it; `settings` are
    Celery's, besides the usual ones."""

    lacks = ("bulk",)

    def __init__(
        self, module: str, broker: str, backend: str | None = None, **settings: Any
    ) -> None:
        self.module = module
        self.app = app = Celery("bench", broker=broker, backend=backend)
        app.conf.update(
            task_acks_late=True,
            task_ignore_result=backend is None,
            worker_prefetch_multiplier=32,
            worker_enable_remote_control=False,
            **settings,
        )

        @app.task(name=f"{module}.noop")
        def noop() -> int:
            return marks.tick()

        @app.task(name=f"{module}.late")
        def late(sent: float) -> None:
            marks.late(sent)

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

        self.noop, self.late, self.echo = noop, late, echo
        self.one, self.more, self.total = one, more, total

    def prepare(self) -> None:
        self.app.connection_for_write().ensure_connection(max_retries=1)

    def send_noop(self) -> object:
        return self.noop.delay()

    def send_late(self, sent: float) -> object:
        return self.late.delay(sent)

    def round_trip(self, number: int) -> int:
        return self.echo.delay(number).get(timeout=60)

    def chord(self, count: int) -> int:
        ones = [self.one.s() for _ in range(count)]
        return chord(ones, self.total.s()).delay().get(timeout=60)

    def chain(self, steps: int) -> int:
        more = (self.more.s() for _ in range(steps - 1))
        return chain(self.one.s(), *more).delay().get(timeout=60)

    def worker(self) -> list[str]:
        celery = Path(sys.executable).with_name("celery")
        quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "WARNING"]
        return [str(celery), "-A", self.module, "worker", "-P", "solo", "-c", "1", *quiet]
