# /// script
# dependencies = ["taskiq==0.13.0", "taskiq-aio-kafka==1.0.0", "kafka-python==2.2.21"]
# ///
"""TaskIQ on Kafka by taskiq-aio-kafka, acks=1 as it comes; one worker process.

As it comes its worker is in no group and gets what is sent after its start alone; here it has a
group, which begins with what is there. It has no receipts: what was read is committed every
5 seconds, finished or not. So its queue counts as empty when the last task has run.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from common import KAFKA, Peer, marks
from taskiq_aio_kafka import AioKafkaBroker

broker = AioKafkaBroker(KAFKA)
broker.configure_consumer(group_id="bench", auto_offset_reset="earliest")


@broker.task(task_name="noop")
async def noop() -> int:
    return marks.tick()


@broker.task(task_name="late")
async def late(sent: float) -> None:
    marks.late(sent)


class TaskIQKafka(Peer):
    lacks = ("bulk", "results", "threads")

    def prepare(self) -> None:
        self.loop = asyncio.new_event_loop()
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

    def empty(self) -> bool:
        return True

    def worker(self) -> list[str]:
        program = Path(sys.executable).with_name("taskiq")
        module = "taskiq_kafka:broker"
        return [str(program), "worker", module, "--workers", "1", "--log-level", "WARNING"]


peer = TaskIQKafka()
