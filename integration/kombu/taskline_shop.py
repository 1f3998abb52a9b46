"""The tasks of celery_shop, in Taskline: speaks Celery's protocol."""

from __future__ import annotations

import os
from datetime import datetime

from taskline import Taskline, current_task

app = Taskline("shop", protocol="celery", queue=os.environ.get("QUEUE", "celery"), lease=6.0)


@app.task(name="add")
def add(a: int, b: int) -> int:
    return a + b


@app.task(name="fail")
def fail(text: str) -> None:
    raise ValueError(text)


@app.task(name="next_day")
def next_day(day: datetime) -> str:
    return f"{type(day).__name__} {day.day + 1}"


@app.task(name="flaky", retry={"max": 3, "wait": 0.1})
def flaky() -> int:
    attempt = current_task.attempt
    if attempt < 3:
        raise ConnectionError(f"attempt {attempt}")
    return attempt - 1


@app.task(name="stubborn", retry={"max": 6, "wait": 0.3})
def stubborn() -> int:
    attempt = current_task.attempt
    if attempt < 6:
        raise ConnectionError(f"attempt {attempt}")
    return attempt
