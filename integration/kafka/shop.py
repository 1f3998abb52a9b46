"""The app of the tests with worker processes; the environment names its servers."""

from __future__ import annotations

import os
import time

from taskline import Taskline

app = Taskline("shop", lease=2.0)


@app.task
def note(number: int, takes: float = 0.02) -> int:
    """Write a line to the file that NOTES names, and take a while."""
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(f"{number} {os.getpid()}\n")
    time.sleep(takes)
    return number
