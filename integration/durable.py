"""A durable task in a worker of its own that is killed between two steps, for any store."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from taskline import Taskline

PROGRAM = """
import os, sys, time
from taskline import Taskline, step
from taskline.worker import Supervisor, WorkerOptions

BROKER, BACKEND, NOTES = sys.argv[1:4]
app = Taskline("kill", broker=BROKER, backend=BACKEND, lease=3.0)

def note(word):
    with open(NOTES, "a") as notes:
        notes.write(f"{word}\\n")
    return word

@app.task(name="steps", durable=True)
def steps(count: int) -> list[str]:
    done = []
    for number in range(count):
        done.append(step(f"step-{number}", note, f"s{number}"))
        note(f"between {os.getpid()}")
        time.sleep(0.05)
    return done

if __name__ == "__main__":
    sys.exit(Supervisor(app, WorkerOptions(schedule=False)).run())
"""


def kill_between_steps(
    url: str, directory: Path, number: int, *, backend: str | None = None
) -> None:
    """A durable task whose process is killed with SIGKILL after so many of its six steps.

    Results are kept at the same URL, or at that of a `backend`.
    """
    backend = backend or url
    program, notes = directory / "program.py", directory / "notes"
    program.write_text(PROGRAM)
    caller = Taskline("kill", broker=url, backend=backend)
    result = caller.send_task("steps", (6,))
    worker = subprocess.Popen(
        [sys.executable, str(program), url, backend, str(notes)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        by = caller.clock.monotonic() + 30
        while not notes.exists() or notes.read_text().count("between") < number:
            assert caller.clock.monotonic() < by
            caller.clock.sleep(0.005)
        pid = int(notes.read_text().split("between ")[-1].split()[0])
        os.kill(pid, signal.SIGKILL)
        assert result.get(timeout=30) == [f"s{each}" for each in range(6)]
    finally:
        worker.terminate()
        worker.wait(20)
        caller.close()
    written = [line for line in notes.read_text().splitlines() if line.startswith("s")]
    assert written == [f"s{each}" for each in range(6)]
    assert len({line for line in notes.read_text().splitlines() if "between" in line}) == 2
