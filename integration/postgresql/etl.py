"""The app of the tests with two brokers: what comes by PostgreSQL is passed on by Redis."""

from __future__ import annotations

import os
import time

from taskline import Taskline, emit

app = Taskline(
    "etl",
    lease=2.0,
    connectors={"pg": os.environ.get("POSTGRES", "memory://")},
    queues={
        "events": {"broker": "pg", "name": "prod.events.v1"},
        "slow": {"broker": "pg", "name": "prod.slow.v1"},
    },
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
