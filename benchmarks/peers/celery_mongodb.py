# /// script
# dependencies = ["celery==5.7.0", "pymongo==4.18.3"]
# ///
"""Celery with kombu's mongodb transport: late acknowledgement, prefetch 32, the solo pool.

What another worker or an event would want is off: gossip, mingle, heartbeats, remote control.
"""

from __future__ import annotations

import sys
from pathlib import Path

from celery import Celery
from common import MONGODB, RESULTS, Peer, marks
from pymongo import MongoClient

app = Celery("bench", broker=f"{MONGODB}/bench", backend=f"{MONGODB}/results" if RESULTS else None)
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


class CeleryMongoDB(Peer):
    lacks = ("bulk",)

    def prepare(self) -> None:
        self.client: MongoClient = MongoClient(MONGODB)
        app.connection_for_write().ensure_connection(max_retries=1)

    def send_noop(self) -> object:
        return noop.delay()

    def send_late(self, sent: float) -> object:
        return late.delay(sent)

    def round_trip(self, number: int) -> int:
        return echo.delay(number).get(timeout=60)

    def empty(self) -> bool:
        return self.client["bench"]["messages"].find_one({"queue": "celery"}) is None

    def worker(self) -> list[str]:
        celery = Path(sys.executable).with_name("celery")
        quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "WARNING"]
        return [str(celery), "-A", "celery_mongodb", "worker", "-P", "solo", "-c", "1", *quiet]


peer = CeleryMongoDB()
