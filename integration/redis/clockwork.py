"""An app with a schedule, for tests that kill its workers."""

from __future__ import annotations

import os

from taskline import Taskline, current_task

app = Taskline("clockwork", lease=2.0)


@app.periodic(every=1)
@app.task
def beat() -> None:
    """Write a line to the file that NOTES names."""
    line = f"{current_task.scheduled_for!r} {current_task.id} {current_task.deliveries}\n"
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(line)
