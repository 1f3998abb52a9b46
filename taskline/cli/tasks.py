"""`taskline tasks`: what an app can run."""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING, Any

import click

from taskline.cli import output
from taskline.cli.options import app_option, as_json, common_options, the_app

if TYPE_CHECKING:
    from taskline.task import Task


@click.command()
@click.argument("pattern", default="")
@app_option
@common_options
def tasks(pattern: str) -> None:
    """List the tasks of an app.

    Shows their names, typed signatures and the first line of what they say of themselves.
    PATTERN picks those that have it in their names; it may hold * and ?.

    \b
    Examples:
      taskline tasks -A proj
      taskline tasks -A proj mail --json
    """
    app, path = the_app()
    chosen = [
        task
        for name, task in sorted(app.tasks.items())
        if fnmatch.fnmatchcase(name, f"*{pattern}*")
    ]
    if as_json():
        output.json([_describe(task) for task in chosen])
    else:
        for task in chosen:
            queue = f"  [queue {task.queue}]" if task.queue != app.settings.queue else ""
            output.entry(task.name, f"{task.signature}{queue}", task.signature.doc)
    if not app.tasks:
        output.note(f"{path} has no tasks: name the modules that define them in include=[...]")
    elif not chosen:
        output.error(f"no task of {path} has {pattern!r} in its name")
        raise click.exceptions.Exit(output.FAILED)


def _describe(task: Task[..., Any]) -> dict[str, Any]:
    return {
        "name": task.name,
        "signature": str(task.signature),
        "doc": task.signature.doc,
        "async": task.is_async,
        "queue": task.queue,
        "priority": task.priority,
        "timeout": task.timeout,
        "soft_timeout": task.soft_timeout,
        "expires": task.expires,
        "result_ttl": task.result_ttl,
        "serializer": task.serializer,
        "ack": task.ack,
    }
