# /// script
# dependencies = ["celery==5.7.0", "confluent-kafka==2.16.1"]
# ///
"""Celery on Kafka by kombu's confluentkafka: late acknowledgement, prefetch 32, the solo pool.

Its acknowledgement commits what was read so far, whichever message it is for. Each send waits
for the broker (`flush`). It polls for 5 seconds at a time as it comes, which makes no difference
while there is something to do. What another worker or an event would want is off.
"""

from __future__ import annotations

import sys
from pathlib import Path

from celery import Celery
from common import KAFKA, Peer, empty_group, marks

app = Celery("bench", broker=f"confluentkafka://{KAFKA}")
app.conf.update(
    task_acks_late=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=32,
    worker_enable_remote_control=False,
)


@app.task
def noop() -> int:
    return marks.tick()


@app.task
def late(sent: float) -> None:
    marks.late(sent)


class CeleryKafka(Peer):
    lacks = ("bulk", "results")
    scale = 0.1

    def prepare(self) -> None:
        app.connection_for_write().ensure_connection(max_retries=1)

    def send_noop(self) -> object:
        return noop.delay()

    def send_late(self, sent: float) -> object:
        return late.delay(sent)

    def empty(self) -> bool:
        return empty_group("celery-consumer-group", "celery")

    def worker(self) -> list[str]:
        celery = Path(sys.executable).with_name("celery")
        quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "WARNING"]
        return [str(celery), "-A", "celery_kafka", "worker", "-P", "solo", "-c", "1", *quiet]


peer = CeleryKafka()
