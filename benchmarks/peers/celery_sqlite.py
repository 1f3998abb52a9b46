# /// script
# dependencies = ["celery[sqlalchemy]==5.7.0"]
# ///
"""Celery on SQLite, through SQLAlchemy, for broker and results.

Late acknowledgement, as safe as it can be made here; the solo pool, which is its fastest for one
slot; prefetch 32. Every commit is synced: there is no other choice, so it is the same in both
durabilities. An idle worker looks once a second: this transport has no setting for it.
"""

from __future__ import annotations

import sqlite3
import sys
from pathlib import Path

from celery import Celery
from common import DIRECTORY, RESULTS, Peer, marks

app = Celery(
    "bench",
    broker=f"sqla+sqlite:///{DIRECTORY / 'celery.db'}",
    backend=f"db+sqlite:///{DIRECTORY / 'celery-results.db'}" if RESULTS else None,
)
app.conf.update(
    task_acks_late=True,
    task_ignore_result=not RESULTS,
    worker_prefetch_multiplier=32,
    worker_enable_remote_control=False,
)


@app.task
def noop() -> int:
    return marks.tick()


@app.task
def late(sent: float) -> None:
    marks.late(sent)


@app.task
def echo(number: int) -> int:
    return number


class CelerySQLite(Peer):
    def send_noop(self) -> object:
        return noop.delay()

    def send_late(self, sent: float) -> object:
        return late.delay(sent)

    def round_trip(self, number: int) -> int:
        return echo.delay(number).get(interval=0.005)

    def empty(self) -> bool:
        with sqlite3.connect(DIRECTORY / "celery.db", timeout=30) as connection:
            query = "select count(*) from kombu_message where visible = 1"
            return connection.execute(query).fetchone() == (0,)

    def worker(self) -> list[str]:
        celery = Path(sys.executable).with_name("celery")
        quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "WARNING"]
        return [str(celery), "-A", "celery_sqlite", "worker", "-P", "solo", "-c", "1", *quiet]


peer = CelerySQLite()
