# /// script
# dependencies = ["taskline", "confluent-kafka"]
# ///
"""Taskline on Kafka, as shipped: acks=all, a receipt for every message, 8 partitions.

One supervisor, one worker process, one thread.
"""

from __future__ import annotations

import sys
from pathlib import Path

from common import KAFKA, Peer, marks

from taskline import Taskline

app = Taskline("bench", broker=f"kafka://{KAFKA}")


@app.task
def noop() -> int:
    return marks.tick()


@app.task
def late(sent: float) -> None:
    marks.late(sent)


class TasklineKafka(Peer):
    lacks = ("results",)

    def prepare(self) -> None:
        app.transport.ping()
        noop.delay()  # makes the topic
        app.transport.purge("default")

    def send_noop(self) -> object:
        return noop.delay()

    def send_many(self, count: int) -> None:
        with app.batch():
            for _ in range(count):
                noop.delay()

    def send_late(self, sent: float) -> object:
        return late.delay(sent)

    def empty(self) -> bool:
        return all(queue.ready == 0 for queue in app.transport.stats(["default"]))

    def worker(self) -> list[str]:
        command = Path(sys.executable).with_name("taskline")
        return [str(command), "worker", "-A", "taskline_kafka", "-c", "1", "--threads", "1"]


peer = TasklineKafka()
