"""Celery on any broker: late acknowledgement, prefetch 32, the solo pool, its fastest for one slot.

What another worker or an event would want is off: gossip, mingle, heartbeats, remote control.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from celery import Celery, chain, chord
from declared import Declared


class OfCelery(Declared):
    """`settings` are Celery's, besides the usual ones."""

    lacks = ("bulk",)

    def __init__(
        self, module: str, broker: str, backend: str | None = None, **settings: Any
    ) -> None:
        app = Celery("bench", broker=broker, backend=backend)
        app.conf.update(
            task_acks_late=True,
            task_ignore_result=backend is None,
            worker_prefetch_multiplier=32,
            worker_enable_remote_control=False,
            **settings,
        )
        super().__init__(module, app)

    def prepare(self) -> None:
        self.app.connection_for_write().ensure_connection(max_retries=1)

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
