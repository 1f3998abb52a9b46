# /// script
# dependencies = ["saq[redis]==0.26.4", "typing-extensions"]
# ///
"""SAQ: one worker of ten coroutines, its default; results only where they are asked for.

A caller that waits polls every ms.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import redis
from common import REDIS, RESULTS, Peer, marks
from saq import Queue

queue = Queue.from_url(REDIS or "redis://127.0.0.1", name="bench")
KEPT = 86400 if RESULTS else -1
"""Seconds; -1: none."""


async def noop(context: object) -> int:
    return marks.tick()


async def late(context: object, *, sent: float) -> None:
    marks.late(sent)


async def echo(context: object, *, number: int) -> int:
    return number


settings = {"queue": queue, "functions": [noop, late, echo]}


class SAQRedis(Peer):
    lacks = ("bulk",)

    def prepare(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.client = redis.Redis.from_url(REDIS)
        self.run(queue.connect())

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(coroutine)

    def send_each(self, count: int) -> None:
        async def send() -> None:
            for _ in range(count):
                await queue.enqueue("noop", ttl=KEPT)

        self.run(send())

    def send_late(self, sent: float) -> object:
        return self.run(queue.enqueue("late", sent=sent, ttl=-1))

    def round_trip(self, number: int) -> int:
        return int(self.run(queue.apply("echo", poll_interval=0.001, number=number)))

    def empty(self) -> bool:
        return self.client.llen("saq:bench:queued") == self.client.llen("saq:bench:active") == 0

    def worker(self) -> list[str]:
        return [str(Path(sys.executable).with_name("saq")), "saq_redis.settings"]


peer = SAQRedis()
