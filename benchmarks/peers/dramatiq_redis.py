# /// script
# dependencies = ["dramatiq[redis]==2.2.1"]
# ///
"""Dramatiq on Redis: one process of eight threads, its default; one thread is far slower."""

from __future__ import annotations

import sys
from pathlib import Path

import dramatiq
from common import REDIS, RESULTS, Peer, marks
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

broker = RedisBroker(url=REDIS)
if RESULTS:
    broker.add_middleware(Results(backend=RedisBackend(url=REDIS)))
dramatiq.set_broker(broker)
options = {"store_results": True} if RESULTS else {}


@dramatiq.actor(**options)
def noop() -> int | None:
    count = marks.tick()
    return count if RESULTS else None


@dramatiq.actor
def late(sent: float) -> None:
    marks.late(sent)


@dramatiq.actor(**options)
def echo(number: int) -> int:
    return number


class DramatiqRedis(Peer):
    lacks = ("bulk",)

    def prepare(self) -> None:
        broker.client.ping()

    def send_noop(self) -> object:
        return noop.send()

    def send_late(self, sent: float) -> object:
        return late.send(sent)

    def round_trip(self, number: int) -> int:
        return echo.send(number).get_result(block=True, timeout=60_000)

    def empty(self) -> bool:
        return broker.do_qsize("default") == 0

    def worker(self) -> list[str]:
        program = Path(sys.executable).with_name("dramatiq")
        return [str(program), "dramatiq_redis", "-p", "1", "-t", "8"]


peer = DramatiqRedis()
