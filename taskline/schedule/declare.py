"""`@app.periodic`: schedules that the code declares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from taskline.errors import ConfigurationError
from taskline.schedule.entry import schedule
from taskline.task import Task, make

if TYPE_CHECKING:
    from taskline.app import Taskline


def declare(app: Taskline, function: Any, name: str | None, options: dict[str, Any]) -> Any:
    """Note the schedule of a task, or of a function that becomes one; returns the task."""
    task = function if isinstance(function, Task) else app._register(make(app, function, {}))
    found = schedule(name or task.name, task.name, options)
    found.check(app)
    old = app.periodics.get(found.name)
    if old is not None and (old[1] is task or old[1].name != task.name):
        raise ConfigurationError(
            f"there is a schedule {found.name!r} already: give this one another name="
        )
    app.periodics[found.name] = (found, task)
    return task
