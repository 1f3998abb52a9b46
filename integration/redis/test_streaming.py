"""Streams and progress on Redis."""

from __future__ import annotations

from collections.abc import Iterator

from taskline import Taskline, current_task
from taskline.worker import Worker, WorkerOptions


def test_items_and_progress(redis_url: str) -> None:
    app = Taskline("shop", broker=redis_url, backend=redis_url)

    @app.task
    def count(number: int) -> Iterator[int]:
        for each in range(number):
            current_task.progress(each + 1, number)
            yield each

    worker = Worker(app, WorkerOptions(schedule=False))
    worker.start()
    try:
        result = count.delay(50)
        assert list(result.stream(timeout=20)) == list(range(50))
        assert list(app.AsyncResult(result.id).stream(33, timeout=20)) == list(range(33, 50))
        result.get(timeout=20)
        assert result.progress() == (50, 50, "")
    finally:
        worker.stop(0)
        app.close()
