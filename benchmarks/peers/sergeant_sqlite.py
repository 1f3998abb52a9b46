# /// script
# dependencies = ["sergeant==0.27.0"]
# ///
"""Sergeant on its local connector, SQLite: 1 000 tasks a transaction, no results.

A pop deletes the messages, so what a killed worker holds is lost; there is no journal either, so
a process killed within a transaction may cost the file. An idle worker looks twice a second.
"""

from __future__ import annotations

import sys

import sergeant
from common import DIRECTORY, Peer, marks


class Worker(sergeant.worker.Worker):
    def generate_config(self) -> sergeant.config.WorkerConfig:
        return sergeant.config.WorkerConfig(
            name="bench",
            connector=sergeant.config.Connector(
                type="local", params={"file_path": str(DIRECTORY / "sergeant.db")}
            ),
            max_tasks_per_run=0,
            tasks_per_transaction=1000,
        )

    def work(self, task: sergeant.objects.Task) -> None:
        sent = task.kwargs.get("sent")
        if sent is None:
            marks.tick()
        else:
            marks.late(sent)


class SergeantSQLite(Peer):
    lacks = ("results", "full")

    def prepare(self) -> None:
        self.producer = Worker()
        self.producer.init_broker()

    def send_noop(self) -> object:
        return self.producer.push_task(kwargs={})

    def send_many(self, count: int) -> None:
        for start in range(0, count, 1000):
            self.producer.push_tasks(kwargs_list=[{}] * min(1000, count - start))

    def send_late(self, sent: float) -> object:
        return self.producer.push_task(kwargs={"sent": sent})

    def empty(self) -> bool:
        return self.producer.number_of_enqueued_tasks() == 0

    def worker(self) -> list[str]:
        module = ["--worker-module", "sergeant_sqlite", "--worker-class", "Worker"]
        return [sys.executable, "-m", "sergeant.supervisor", *module, "--concurrent-worker", "1"]


peer = SergeantSQLite()
