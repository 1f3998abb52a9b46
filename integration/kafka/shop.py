"""The app of the tests with worker processes; the environment names its servers."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from taskline import Taskline

app = Taskline("shop", lease=2.0)


@app.task
def note(number: int, takes: float = 0.02) -> int:
    """Write a line to the file that NOTES names, and take a while."""
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(f"{number} {os.getpid()}\n")
    time.sleep(takes)
    return number


@app.task
async def hold(number: int) -> int:
    """Note it too; every second one waits until there is a file of the notes' name and `.go`."""
    notes = Path(os.environ["NOTES"])
    with notes.open("a") as lines:
        lines.write(f"{number} {os.getpid()}\n")
    while number % 2 and not notes.with_suffix(".go").exists():
        await asyncio.sleep(0.1)
    return number
