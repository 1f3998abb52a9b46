"""The app of the tests with two brokers: what comes by the one is passed on by the other."""

from __future__ import annotations

import json
import os
import time

from taskline import Taskline, emit

QUEUES = {
    "events": {"broker": "bus", "name": "prod.events.v1"},
    "slow": {"broker": "bus", "name": "prod.slow.v1"},
}
app = Taskline(
    "etl",
    lease=2.0,
    connectors={"bus": json.loads(os.environ.get("BUS", '"memory://"'))},
    queues=QUEUES,
)


def note(text: str) -> None:
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(f"{text}\n")


@app.task(name="etl.report", queue="reports")
def report(number: int) -> None:
    note(f"report {number}")


@app.task(name="etl.count", queue="events")
def count(number: int) -> int:
    time.sleep(0.02)
    return emit(report.si(number), result=number)


@app.task(name="etl.tick", queue="slow")
def tick(number: int) -> None:
    note(f"tick {number}")
