# /// script
# dependencies = ["taskiq==0.13.0", "taskiq-redis==1.2.4"]
# ///
"""TaskIQ on a Redis stream, its only Redis broker with receipts; one worker process."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import redis
from common import REDIS, RESULTS, Peer, marks
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

broker = RedisStreamBroker(REDIS)
if RESULTS:
    broker = broker.with_result_backend(RedisAsyncResultBackend(REDIS, result_ex_time=86400))


@broker.task(task_name="noop")
async def noop() -> int:
    return marks.tick()


@broker.task(task_name="late")
async def late(sent: float) -> None:
    marks.late(sent)


@broker.task(task_name="echo")
async def echo(number: int) -> int:
    return number


class TaskIQRedis(Peer):
    lacks = ("bulk",)

    def prepare(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.client = redis.Redis.from_url(REDIS)
        self.run(broker.startup())

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(coroutine)

    def send_each(self, count: int) -> None:
        async def send() -> None:
            for _ in range(count):
                await noop.kiq()

        self.run(send())

    def send_late(self, sent: float) -> object:
        return self.run(late.kiq(sent))

    def round_trip(self, number: int) -> int:
        async def trip() -> int:
            task = await echo.kiq(number)
            result = await task.wait_result(check_interval=0.001, timeout=60)
            return int(result.return_value)

        return int(self.run(trip()))

    def empty(self) -> bool:
        groups = self.client.xinfo_groups("taskiq")
        return all(group["pending"] == 0 and group["lag"] == 0 for group in groups)

    def worker(self) -> list[str]:
        program = Path(sys.executable).with_name("taskiq")
        module = "taskiq_stream_redis:broker"
        return [str(program), "worker", module, "--workers", "1", "--log-level", "WARNING"]


peer = TaskIQRedis()
