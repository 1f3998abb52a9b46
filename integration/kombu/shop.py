"""The app of the tests with worker processes; the environment names its servers."""

from __future__ import annotations

import os
import time

from taskline import Taskline

app = Taskline("shop", lease=6.0)


@app.task
def note(number: int) -> int:
    """Write a line to the file that NOTES names."""
    time.sleep(float(os.environ.get("TAKES", "0")))
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(f"{number}\n")
    return number


@app.task
def kill() -> None:
    """Kill the process that runs it."""
    with open(os.environ["NOTES"], "a") as notes:
        notes.write("kill\n")
    os.kill(os.getpid(), 9)
