"""A batch task in a worker of its own, one of whose messages kills the process, for any store."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from taskline import Taskline, TaskPoisoned

PROGRAM = """
import os, signal, sys
from taskline import Taskline
from taskline.worker import Supervisor, WorkerOptions

URL = sys.argv[1]
app = Taskline("batches", broker=URL, backend=URL, lease=2.0, max_deliveries=2)

@app.task(name="work", batch=8, batch_wait=0.2)
def work(numbers: list[int]) -> list[int]:
    if 3 in numbers:
        os.kill(os.getpid(), signal.SIGKILL)
    return [number + 1 for number in numbers]

if __name__ == "__main__":
    sys.exit(Supervisor(app, WorkerOptions(schedule=False)).run())
"""


def poison_a_batch(url: str, directory: Path) -> None:
    """The one that kills ends among the dead letters, and the others get their results."""
    program = directory / "program.py"
    program.write_text(PROGRAM)
    caller = Taskline("batches", broker=url, backend=url)
    with caller.batch() as results:
        for number in range(6):
            caller.send_task("work", (number,))
    worker = subprocess.Popen(
        [sys.executable, str(program), url],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for number, result in enumerate(results):
            if number != 3:
                assert result.get(timeout=60) == number + 1
        with pytest.raises(TaskPoisoned):
            results[3].get(timeout=60)
        assert [each.id for each in caller.transport.dead_letters()] == [results[3].id]
    finally:
        worker.terminate()
        worker.wait(20)
        caller.close()
