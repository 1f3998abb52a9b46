# /// script
# dependencies = ["confluent-kafka==2.16.1"]
# ///
"""The floor: confluent-kafka and nothing else.

Sends as Taskline does: acks=all, idempotent, one request under way, a header and an answer for each
record. `bulk` is librdkafka's own bound for it, since the records, of the size of Taskline's, are
made before. Its worker is a loop around consume that commits a batch's offsets when all of it has
run: no receipts, no retries, no delays.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from itertools import count

from common import KAFKA, Peer, empty_group, marks
from confluent_kafka import Consumer, KafkaError, Message, Producer
from confluent_kafka.admin import AdminClient, NewTopic

TOPIC, GROUP, PARTITIONS, BATCH = "bench", "bench", 8, 500
SERVERS = {"bootstrap.servers": KAFKA or "127.0.0.1"}
numbers = count()


def call(task: str, *args: object) -> tuple[bytes, list[tuple[str, bytes]]]:
    """The value and the headers of a record."""
    number = f"{next(numbers):032x}"
    told = {"v": 1, "id": number, "task": task, "queue": TOPIC, "sent": time.time(), "args": args}
    return json.dumps(told, separators=(",", ":")).encode(), [("id", number.encode())]


class Answers:
    """What the broker says of so many records."""

    def __init__(self, count: int) -> None:
        self.left = count

    def __call__(self, error: KafkaError | None, record: Message) -> None:
        if error is not None or (record.offset() or 0) < 0:
            raise SystemExit(f"not stored: {error}")
        self.left -= 1


class BareKafka(Peer):
    lacks = ("results",)
    filled: Sequence[tuple[bytes, list[tuple[str, bytes]]]] = ()

    def prepare(self) -> None:
        new = NewTopic(TOPIC, PARTITIONS, 1)
        client = AdminClient(SERVERS)
        for created in client.create_topics([new]).values():
            created.result(30)
        self.producer = Producer(
            SERVERS
            | {
                "enable.idempotence": True,
                "acks": "all",
                "max.in.flight.requests.per.connection": 1,
                "linger.ms": 0,
                "sticky.partitioning.linger.ms": 0,
                "queue.buffering.max.messages": 500_000,
            }
        )
        self.producer.list_topics(TOPIC)

    def _send(self, records: Iterable[tuple[bytes, list[tuple[str, bytes]]]], count: int) -> None:
        produce, answers = self.producer.produce, Answers(count)
        for value, headers in records:
            produce(TOPIC, value, None, -1, answers, headers=headers)
        self.producer.flush()
        if answers.left:
            raise SystemExit(f"no answer for {answers.left} records")

    def send_noop(self) -> object:
        return self._send([call("noop")], 1)

    def fill(self, count: int) -> None:
        self.filled = [call("noop") for _ in range(count)]

    def send_many(self, count: int) -> None:
        self._send(self.filled or (call("noop") for _ in range(count)), count)

    def send_late(self, sent: float) -> object:
        return self._send([call("late", sent)], 1)

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
