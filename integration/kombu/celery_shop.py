"""The same tasks in Celery, whose workers and clients the tests start."""

from __future__ import annotations

import os
from datetime import datetime
from typing import Any

from celery import Celery

app = Celery("shop", broker=os.environ.get("BROKER"), backend=os.environ.get("RESULTS"))
app.conf.update(
    task_default_queue=os.environ.get("QUEUE", "celery"),
    broker_connection_retry_on_startup=True,
    result_extended=True,
    worker_hijack_root_logger=False,
)


@app.task(name="add")
def add(a: int, b: int) -> int:
    return a + b


@app.task(name="fail")
def fail(text: str) -> None:
    raise ValueError(text)


@app.task(name="next_day")
def next_day(day: datetime) -> str:
    return f"{type(day).__name__} {day.day + 1}"


@app.task(name="flaky", bind=True, max_retries=3)
def flaky(self: Any) -> int:
    if self.request.retries < 2:
        raise self.retry(countdown=0.1)
    return int(self.request.retries)
