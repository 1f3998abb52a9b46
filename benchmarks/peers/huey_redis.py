# /// script
# dependencies = ["huey==3.5.4", "redis==8.1.0"]
# ///
"""Huey on Redis: one worker thread that blocks on the queue, results only where they are asked for.

Quiet logs, no periodic tasks. A caller that waits polls every ms, as Huey's do;
BENCH_HUEY_NOTIFY=1 makes the worker push to it, an option that costs it commands for each result.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from common import REDIS, RESULTS, Peer, marks
from huey import RedisHuey

huey = RedisHuey(
    "bench", url=REDIS, results=RESULTS, notify_result=os.environ.get("BENCH_HUEY_NOTIFY") == "1"
)


@huey.task()
def noop() -> int:
    return marks.tick()


@huey.task()
def late(sent: float) -> None:
    marks.late(sent)


@huey.task()
def echo(number: int) -> int:
    return number


class HueyRedis(Peer):
    lacks = ("bulk",)

    def prepare(self) -> None:
        len(huey)

    def send_noop(self) -> object:
        return noop()

    def send_late(self, sent: float) -> object:
        return late(sent)

    def round_trip(self, number: int) -> int:
        return echo(number).get(blocking=True, max_delay=0.001)

    def empty(self) -> bool:
        return len(huey) == 0

    def worker(self) -> list[str]:
        consumer = Path(sys.executable).with_name("huey_consumer")
        return [str(consumer), "huey_redis.huey", "-w", "1", "-k", "thread", "-n", "-q"]


peer = HueyRedis()
