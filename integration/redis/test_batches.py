from __future__ import annotations

from pathlib import Path

from integration.batches import poison_a_batch
from taskline import Taskline
from taskline.worker import Worker, WorkerOptions


def test_one_that_kills_its_worker_takes_no_other_with_it(redis_url: str, tmp_path: Path) -> None:
    poison_a_batch(redis_url, tmp_path)


def test_many_messages_are_few_runs(redis_url: str) -> None:
    app, runs = Taskline("shop", broker=redis_url, backend=redis_url), list[int]()

    @app.task(batch=50, batch_wait=0.3)
    def double(numbers: list[int]) -> list[int]:
        runs.append(len(numbers))
        return [2 * each for each in numbers]

    results = double.map(range(500))
    worker = Worker(app, WorkerOptions(schedule=False))
    worker.start()
    try:
        assert results.get(timeout=30) == [2 * each for each in range(500)]
    finally:
        worker.stop(0)
        app.close()
    assert len(runs) <= 15
