"""The app of the tests that kill a worker; the environment names its broker."""

from __future__ import annotations

import os
import time

from taskline import Taskline

app = Taskline("guests", retry=0)


@app.task
def note(number: int) -> int:
    """Write a line to the file that NOTES names."""
    time.sleep(0.05)
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(f"{number}\n")
    return number
