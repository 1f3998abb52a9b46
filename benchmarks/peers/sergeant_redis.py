# /// script
# dependencies = ["sergeant==0.27.0"]
# ///
"""Sergeant on Redis: one worker, 32 tasks a transaction, no results.

A pop deletes the messages, so what a killed worker holds is lost. An idle worker looks twice a
second.
"""

from __future__ import annotations

import sys
from urllib.parse import urlsplit

import sergeant
from common import REDIS, Peer, marks

BATCH = 1000


class Worker(sergeant.worker.Worker):
    def generate_config(self) -> sergeant.config.WorkerConfig:
        server = urlsplit(REDIS)
        node = {"host": server.hostname, "port": server.port, "password": None, "database": 0}
        return sergeant.config.WorkerConfig(
            name="bench",
            connector=sergeant.config.Connector(type="redis", params={"nodes": [node]}),
            max_tasks_per_run=0,
            tasks_per_transaction=32,
        )

    def work(self, task: sergeant.objects.Task) -> None:
        sent = task.kwargs.get("sent")
        if sent is None:
            marks.tick()
        else:
            marks.late(sent)


class SergeantRedis(Peer):
    lacks = ("results",)

    def prepare(self) -> None:
        self.producer = Worker()
        self.producer.init_broker()

    def send_noop(self) -> object:
        return self.producer.push_task(kwargs={})

    def send_many(self, count: int) -> None:
        for start in range(0, count, BATCH):
            self.producer.push_tasks(kwargs_list=[{}] * min(BATCH, count - start))

    def send_late(self, sent: float) -> object:
        return self.producer.push_task(kwargs={"sent": sent})

    def empty(self) -> bool:
        return self.producer.number_of_enqueued_tasks() == 0

    def worker(self) -> list[str]:
        module = ["--worker-module", "sergeant_redis", "--worker-class", "Worker"]
        return [sys.executable, "-m", "sergeant.supervisor", *module, "--concurrent-worker", "1"]


peer = SergeantRedis()
