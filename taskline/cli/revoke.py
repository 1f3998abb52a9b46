"""`taskline revoke`: keep tasks from running."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from taskline.cli import output
from taskline.cli.options import app_or_broker, as_json, broker_options, choice, common_options
from taskline.cli.params import moment
from taskline.cli.result import check_backend, revoke_these
from taskline.loading import did_you_mean

if TYPE_CHECKING:
    from taskline.app import Taskline


@click.command()
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--task", metavar="NAME", help="All messages of this task.")
@click.option(
    "--header", metavar="NAME=VALUE", multiple=True, help="All messages with this header."
)
@click.option(
    "--before", type=moment, metavar="TIME", help="Of these those sent until then.  [default: now]"
)
@click.option("--terminate", is_flag=True, help="Stop those that run, too.")
@broker_options
@common_options
def revoke(
    ids: tuple[str, ...],
    task: str | None,
    header: tuple[str, ...],
    before: float | None,
    terminate: bool,
) -> None:
    """Keep tasks from running.

    Those of these ids, or all of a task, or all with a header.

    --task and --header concern what was sent until now; what is sent later runs. Given
    together, a message must have them all. A VALUE is read as JSON where it is JSON, else as
    text. Workers see to it, also those that start later; what waits is REVOKED when a worker
    comes to it.

    \b
    Examples:
      taskline revoke 0192f0c1a7b87d3e9c0a1b2c3d4e5f60 -A proj --terminate
      taskline revoke --task shop.send_mail -A proj
      taskline revoke --header tenant=7 --before 2030-01-31T12:00 -A proj
    """
    if bool(ids) == bool(task or header):
        raise click.UsageError("give IDs, or --task and --header")
    if ids and before is not None:
        raise click.UsageError("--before goes with --task and --header")
    headers = _headers(header)
    app = app_or_broker()
    check_backend(app)
    if ids:
        revoke_these(app, ids, terminate)
        return
    if task is not None:
        _doubt(app, task)
    app.revoke(task=task, headers=headers, before=before, terminate=terminate)
    if as_json():
        output.json({"task": task, "headers": headers, "done": "workers are told to revoke them"})
    else:
        output.line(f"workers are told to revoke {_named(task, headers)}")


def _headers(words: tuple[str, ...]) -> dict[str, Any]:
    from taskline.cli.values import parse

    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise click.BadParameter(
                f"{word!r} is not NAME=VALUE, such as tenant=7", param_hint="--header"
            )
        if name in found:
            raise click.BadParameter(f"{name!r} is given twice", param_hint="--header")
        found[name] = parse(value)
    return found


def _doubt(app: Taskline, task: str) -> None:
    """Say that the app has no such task, where its code was read: it may be a slip."""
    if choice().target() is not None and task not in app.tasks:
        output.note(
            f"warning: {app.name} has no task {task!r}{did_you_mean(task, list(app.tasks))}"
        )


def _named(task: str | None, headers: dict[str, Any]) -> str:
    """What is revoked, for people."""
    about = ", ".join(f"{name}={value!r}" for name, value in headers.items())
    kind = "all messages" if task is None else f"all messages of {task}"
    return f"{kind} with {about}" if about else kind
