"""A great group is in nobody's memory: not the caller's, not its callback's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import resource, sys
from taskline import Taskline
from taskline.worker import Worker, WorkerOptions
from taskline.workflows import FlowResult, Results, chord

role, size, url = sys.argv[1], int(sys.argv[2]), sys.argv[3]
app = Taskline("great", broker=url, backend=url)

@app.task(name="same")
def same(number: int) -> int:
    return number

@app.task(name="total")
def total(numbers: Results[int]) -> int:
    return sum(numbers)

if role == "caller":
    chord((same.s(number) for number in range(size)), total.s()).apply_async(task_id="great")
else:
    worker = Worker(app, WorkerOptions())
    worker.start()
    assert FlowResult(app, "great").get(timeout=120) == sum(range(size))
    worker.stop(1.0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def peak(role: str, size: int, directory: Path) -> int:
    """MiB that a process needs at most to be the caller or the worker of such a chord."""
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, role, str(size), f"sqlite:///{directory}/{size}.db"],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stderr
    return int(run.stdout.split()[-1])


@pytest.mark.serial
def test_ten_times_the_members_need_no_more_memory(tmp_path: Path) -> None:
    small, great = 2_000, 20_000
    callers = [peak("caller", size, tmp_path) for size in (small, great)]
    assert callers[1] - callers[0] < 8, "MiB of the caller"
    workers = [peak("worker", size, tmp_path) for size in (small, great)]
    assert workers[1] - workers[0] < 24, "MiB of the worker, which also holds a thousand messages"
