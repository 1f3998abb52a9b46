# /// script
# dependencies = ["taskline", "confluent-kafka"]
# ///
"""Taskline on Kafka, as shipped: acks=all, a receipt for every message, 8 partitions."""

from __future__ import annotations

from common import KAFKA
from ours import Ours


class TasklineKafka(Ours):
    lacks = ("results",)

    def prepare(self) -> None:
        super().prepare()
        self.noop.delay()  # makes the topic
        self.app.transport.purge("default")

    def empty(self) -> bool:
        return all(queue.ready == 0 for queue in self.app.transport.stats(["default"]))


peer = TasklineKafka("taskline_kafka", f"kafka://{KAFKA or '127.0.0.1'}", keeps_results=False)
app = peer.app
