"""Unique calls on Redis."""

from __future__ import annotations

import pytest

from integration.unique import calls_that_do_not_meet
from taskline import Taskline
from taskline.worker import Worker, WorkerOptions


def test_calls_that_do_not_meet(redis_url: str) -> None:
    with Taskline("shop", broker=redis_url, backend=redis_url) as app:
        calls_that_do_not_meet(app)


def test_a_result_that_was_waited_for_is_there_for_the_next(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As that of the first is for all who joined it."""
    with Taskline("shop", broker=redis_url, backend=redis_url) as app:

        @app.task
        def work() -> int:
            return 1

        first = work.delay()
        worker = Worker(app, WorkerOptions(schedule=False))
        worker.start()
        try:
            assert first.get(timeout=60) == 1
        finally:
            worker.stop(5)

        def waits(*anything: object) -> None:
            raise AssertionError("it is there, and is waited for")

        monkeypatch.setattr("taskline.backends.redis.wait_for_push", waits)
        for _ in range(3):
            assert app.AsyncResult(first.id).get(timeout=60) == 1
