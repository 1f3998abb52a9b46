# /// script
# dependencies = ["rq==2.12.0"]
# ///
"""RQ: SimpleWorker, which forks for no job. Fewer jobs are drained: 20 000 would take a minute."""

from __future__ import annotations

import sys
from pathlib import Path

from common import REDIS, RESULTS, Peer, marks
from redis import Redis
from rq import Queue

connection = Redis.from_url(REDIS or "redis://127.0.0.1")
queue = Queue("bench", connection=connection)
KEPT = 86400 if RESULTS else 0
BATCH = 1000


def noop() -> int:
    return marks.tick()


def late(sent: float) -> None:
    marks.late(sent)


def echo(number: int) -> int:
    return number


class RQRedis(Peer):
    scale = 0.1

    def prepare(self) -> None:
        connection.ping()

    def send_noop(self) -> object:
        return queue.enqueue("rq_redis.noop", result_ttl=KEPT)

    def send_many(self, count: int) -> None:
        for start in range(0, count, BATCH):
            some = range(min(BATCH, count - start))
            queue.enqueue_many([Queue.prepare_data("rq_redis.noop", result_ttl=KEPT) for _ in some])

    def send_late(self, sent: float) -> object:
        return queue.enqueue("rq_redis.late", sent, result_ttl=0)

    def round_trip(self, number: int) -> int:
        result = queue.enqueue("rq_redis.echo", number).latest_result(timeout=60)
        return int(result.return_value)

    def empty(self) -> bool:
        return queue.count == 0 and queue.started_job_registry.count == 0

    def worker(self) -> list[str]:
        program = str(Path(sys.executable).with_name("rq"))
        return [program, "worker", "-w", "rq.SimpleWorker", "-q", "--url", REDIS, "bench"]


peer = RQRedis()
