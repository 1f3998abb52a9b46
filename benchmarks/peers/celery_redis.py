# /// script
# dependencies = ["celery[redis]==5.7.0"]
# ///
"""Celery on Redis: late acknowledgement, prefetch 32, the solo pool, which is its fastest here.

What another worker or an event would want is off: gossip, mingle, heartbeats, remote control.
"""

from __future__ import annotations

import sys
from pathlib import Path

import redis
from celery import Celery, chain, chord
from common import REDIS, RESULTS, Peer, marks

app = Celery("bench", broker=REDIS, backend=REDIS if RESULTS else None)
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


@app.task
def one() -> int:
    return 1


@app.task
def more(number: int) -> int:
    return number + 1


@app.task
def total(numbers: list[int]) -> int:
    return sum(numbers)


class CeleryRedis(Peer):
    lacks = ("bulk",)

    def prepare(self) -> None:
        self.client = redis.Redis.from_url(REDIS)
        app.connection_for_write().ensure_connection(max_retries=1)

    def send_noop(self) -> object:
        return noop.delay()

    def send_late(self, sent: float) -> object:
        return late.delay(sent)

    def round_trip(self, number: int) -> int:
        return echo.delay(number).get(timeout=60)

    def chord(self, count: int) -> int:
        return chord([one.s() for _ in range(count)], total.s()).delay().get(timeout=60)

    def chain(self, steps: int) -> int:
        return chain(one.s(), *(more.s() for _ in range(steps - 1))).delay().get(timeout=60)

    def empty(self) -> bool:
        return self.client.llen("celery") == 0 and self.client.hlen("unacked") == 0

    def worker(self) -> list[str]:
        celery = Path(sys.executable).with_name("celery")
        quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "WARNING"]
        return [str(celery), "-A", "celery_redis", "worker", "-P", "solo", "-c", "1", *quiet]


peer = CeleryRedis()
