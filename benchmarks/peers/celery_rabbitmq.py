# /// script
# dependencies = ["celery==5.7.0"]
# ///
"""Celery on RabbitMQ: late acknowledgement, prefetch 32, the solo pool, which is its fastest here.

Its sends are confirmed, as ours are: it ships without that, and then loses what a broker refuses.

What another worker or an event would want is off: gossip, mingle, heartbeats, remote control.
"""

from __future__ import annotations

import sys
from pathlib import Path

from celery import Celery
from common import RABBITMQ, Peer, marks

app = Celery("bench", broker=RABBITMQ)
app.conf.update(
    task_acks_late=True,
    task_ignore_result=True,
    broker_transport_options={"confirm_publish": True},
    worker_prefetch_multiplier=32,
    worker_enable_remote_control=False,
)


@app.task
def noop() -> int:
    return marks.tick()


@app.task
def late(sent: float) -> None:
    marks.late(sent)


class CeleryRabbitMQ(Peer):
    lacks = ("bulk",)

    def prepare(self) -> None:
        app.connection_for_write().ensure_connection(max_retries=1)

    def send_noop(self) -> object:
        return noop.delay()

    def send_late(self, sent: float) -> object:
        return late.delay(sent)

    def empty(self) -> bool:
        with app.connection_for_write() as connection:
            return connection.default_channel.queue_declare("celery", passive=True)[1] == 0

    def worker(self) -> list[str]:
        celery = Path(sys.executable).with_name("celery")
        quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "WARNING"]
        return [str(celery), "-A", "celery_rabbitmq", "worker", "-P", "solo", "-c", "1", *quiet]


peer = CeleryRabbitMQ()
