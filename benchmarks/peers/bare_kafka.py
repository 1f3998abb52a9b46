# /// script
# dependencies = ["confluent-kafka==2.16.1"]
# ///
"""The floor: confluent-kafka as it comes, an idempotent producer, JSON, a loop around consume.

A batch's offsets are committed when all of it has run. No receipts, no retries, no delays.
"""

from __future__ import annotations

import json
import sys
from itertools import count

from common import KAFKA, Peer, empty_group, marks
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, NewTopic

TOPIC, GROUP, PARTITIONS, BATCH = "bench", "bench", 8, 500
SERVERS = {"bootstrap.servers": KAFKA or "127.0.0.1"}
numbers = count()


def call(task: str, *args: object) -> bytes:
    return json.dumps({"id": next(numbers), "task": task, "args": args}).encode()


class BareKafka(Peer):
    lacks = ("results",)

    def prepare(self) -> None:
        new = NewTopic(TOPIC, PARTITIONS, 1)
        client = AdminClient(SERVERS)
        for created in client.create_topics([new]).values():
            created.result(30)
        self.producer = Producer(
            SERVERS
            | {
                "enable.idempotence": True,
                "linger.ms": 0,
                "sticky.partitioning.linger.ms": 0,
                "queue.buffering.max.messages": 500_000,
            }
        )
        self.producer.list_topics(TOPIC)

    def _send(self, value: bytes) -> None:
        self.producer.produce(TOPIC, value)
        self.producer.flush()

    def send_noop(self) -> object:
        return self._send(call("noop"))

    def send_many(self, count: int) -> None:
        produce = self.producer.produce
        for _ in range(count):
            produce(TOPIC, call("noop"))
        self.producer.flush()

    def send_late(self, sent: float) -> object:
        return self._send(call("late", sent))

    def empty(self) -> bool:
        return empty_group(GROUP, TOPIC)

    def worker(self) -> list[str]:
        return [sys.executable, "-m", "bare_kafka"]


def work() -> None:
    tasks = {"noop": marks.tick, "late": marks.late}
    consumer = Consumer(
        SERVERS | {"group.id": GROUP, "enable.auto.commit": False, "auto.offset.reset": "earliest"}
    )
    consumer.subscribe([TOPIC])
    while True:
        first = consumer.poll(1.0)
        if first is None:
            continue
        for record in [first, *consumer.consume(BATCH, 0)]:
            if record.error() is None:
                message = json.loads(record.value())
                tasks[message["task"]](*message["args"])
        consumer.commit(asynchronous=False)


peer = BareKafka()
if __name__ == "__main__":
    work()
