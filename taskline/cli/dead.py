"""`taskline dead`: messages that will not be tried again by themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import click

from taskline.cli import output
from taskline.cli.options import (
    Commands,
    app_or_broker,
    as_json,
    broker_options,
    common_options,
)
from taskline.cli.params import duration, positive

if TYPE_CHECKING:
    from taskline.app import Taskline
    from taskline.message import DeadLetter

F = TypeVar("F", bound=Callable[..., Any])

_FIELDS = (
    *("id", "task", "queue", "args", "kwargs", "unreadable", "reason", "at", "attempt"),
    *("deliveries", "worker", "sent", "headers", "size", "errors", "traceback"),
)
"""What `dead show` shows, in this order."""


def _filters(command: F) -> F:
    for option in (
        click.option("--newer-than", "newer", type=duration, help="Buried less than 2h, 3d … ago."),
        click.option("--older-than", "older", type=duration, help="Buried more than 2h, 3d … ago."),
        click.option("--reason", metavar="TEXT", help="Whose reason contains TEXT."),
        click.option("--task", metavar="NAME", help="Of this task."),
        click.option("--queue", metavar="QUEUE", help="Of this queue."),
    ):
        command = option(command)
    return command


@click.group(cls=Commands, invoke_without_command=True)
@broker_options
@common_options
@click.pass_context
def dead(ctx: click.Context) -> None:
    """List, requeue and delete dead letters.

    A dead letter is a message that will not be tried again by itself.

    Alone it is the same as `taskline dead list`.

    \b
    Examples:
      taskline dead -A proj
      taskline dead requeue --task proj.add --newer-than 2h
    """
    if ctx.invoked_subcommand is None:
        _list(100, {})


@dead.command(name="list")
@_filters
@click.option(
    "--limit", type=positive, metavar="N", default=100, show_default=True, help="At most so many."
)
@broker_options
@common_options
def list_(limit: int, **filters: Any) -> None:
    """List dead letters, the newest first.

    \b
    Examples:
      taskline dead list -A proj --queue mail
      taskline dead list --reason Timeout --older-than 2h --json
    """
    _list(limit, filters)


def _list(limit: int, filters: dict[str, Any]) -> None:
    app = app_or_broker()
    # One more than shown tells whether there are more.
    found = list(islice(_find(app, **filters), limit + 1))
    if as_json():
        output.json([_summary(letter) for letter in found[:limit]])
        return
    now = app.now()
    output.table(
        ["id", "age", "queue", "task", "reason"],
        [
            (
                letter.id,
                output.span(now - letter.at),
                letter.queue,
                letter.task or None,
                output.shorten(letter.reason, 80),
            )
            for letter in found[:limit]
        ],
        empty="no dead letters",
    )
    if len(found) > limit:
        output.note(f"there are more: these are the newest {limit} (--limit shows more)")


def _summary(letter: DeadLetter) -> dict[str, Any]:
    return {
        "id": letter.id,
        "queue": letter.queue,
        "task": letter.task,
        "reason": letter.reason,
        "at": letter.at,
        "worker": letter.worker,
        "attempt": letter.attempt,
        "deliveries": letter.deliveries,
    }


@dead.command()
@click.argument("id")
@broker_options
@common_options
def show(id: str) -> None:
    """Show all that is known of one dead letter: arguments, traceback, attempts, worker.

    \b
    Examples:
      taskline dead show 0192f0c1a7b87d3e9c0a1b2c3d4e5f60 -A proj
      taskline dead show 0192f0c1a7b87d3e9c0a1b2c3d4e5f60 --json
    """
    app = app_or_broker()
    letter = app.transport.dead_letter(id)
    if letter is None:
        output.error(f"no dead letter {id!r} (taskline dead list shows them)")
        raise click.exceptions.Exit(output.FAILED)
    content = app.dead.describe(letter)
    if as_json():
        output.json(content)
    else:
        output.fields((name, _text(name, content[name])) for name in _FIELDS if name in content)


def _text(name: str, value: Any) -> Any:
    if name in ("at", "sent"):
        return output.when(value)
    if name == "size":
        return f"{value} bytes"
    if name in ("args", "kwargs"):
        return repr(value)
    if isinstance(value, list):
        return "\n".join(str(each) for each in value) + "\n" if value else None
    return None if value in ("", {}) else value


@dead.command()
@click.argument("ids", metavar="[ID]...", nargs=-1)
@_filters
@click.option("--all", "everything", is_flag=True, help="All dead letters there are.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@broker_options
@common_options
def requeue(ids: tuple[str, ...], everything: bool, yes: bool, **filters: Any) -> None:
    """Try dead letters again: these ids, or all that the filters pick.

    A requeued message starts with its first attempt, and keeps its id.

    \b
    Examples:
      taskline dead requeue 0192f0c1a7b87d3e9c0a1b2c3d4e5f60 -A proj
      taskline dead requeue --task proj.add --newer-than 2h --yes
    """
    app = app_or_broker()
    chosen = _chosen(app, ids, everything, filters)
    if len(chosen) > 1:
        output.confirm(f"Requeue {len(chosen)} dead letters?", yes)
    done = app.dead.requeue(chosen)
    if as_json():
        output.json({"requeued": done})
    else:
        output.line(f"{len(done)} requeued")
    _miss(ids, {letter.id for letter in chosen})
    left = [letter.id for letter in chosen if letter.id not in set(done)]
    for each in left:
        output.error(f"{each} stays: its message cannot be read (taskline dead show tells why)")
    if left:
        raise click.exceptions.Exit(output.FAILED)


@dead.command()
@click.argument("ids", metavar="[ID]...", nargs=-1)
@_filters
@click.option("--all", "everything", is_flag=True, help="All dead letters there are.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@broker_options
@common_options
def purge(ids: tuple[str, ...], everything: bool, yes: bool, **filters: Any) -> None:
    """Delete dead letters for ever: these ids, or all that the filters pick.

    \b
    Examples:
      taskline dead purge 0192f0c1a7b87d3e9c0a1b2c3d4e5f60 -A proj
      taskline dead purge --queue mail --older-than 30d --yes
    """
    app = app_or_broker()
    chosen = _chosen(app, ids, everything, filters)
    if len(chosen) > 1:
        output.confirm(f"Delete {len(chosen)} dead letters for ever?", yes)
    count = app.dead.purge(chosen)
    if as_json():
        output.json({"purged": count})
    else:
        output.line(f"{count} deleted")
    _miss(ids, {letter.id for letter in chosen})


def _find(
    app: Taskline, *, older: float | None = None, newer: float | None = None, **filters: Any
) -> Iterator[DeadLetter]:
    """Dead letters by the filters of the command line, whose times are ages in seconds."""
    now = app.now()
    return app.dead.find(
        before=None if older is None else now - older,
        since=None if newer is None else now - newer,
        **filters,
    )


def _chosen(
    app: Taskline, ids: tuple[str, ...], everything: bool, filters: dict[str, Any]
) -> list[DeadLetter]:
    """The dead letters meant; a usage error unless it was said which."""
    filtered = any(value is not None for value in filters.values())
    if sum((bool(ids), everything, filtered)) != 1:
        raise click.UsageError("which dead letters? Give their ids, or filters, or --all")
    if ids:
        return list(_existing(app, ids))
    return list(_find(app, **filters))


def _existing(app: Taskline, ids: tuple[str, ...]) -> Iterator[DeadLetter]:
    for each in dict.fromkeys(ids):
        letter = app.transport.dead_letter(each)
        if letter is not None:
            yield letter


def _miss(ids: tuple[str, ...], found: set[str]) -> None:
    """Exit with 1 when dead letters were named that do not exist."""
    missing = [each for each in dict.fromkeys(ids) if each not in found]
    for each in missing:
        output.error(f"no dead letter {each!r}")
    if missing:
        raise click.exceptions.Exit(output.FAILED)
