"""`taskline queues` and `taskline purge`: what waits, and how to be rid of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from taskline.cli import output
from taskline.cli.options import (
    Commands,
    app_or_broker,
    as_json,
    broker_options,
    common_options,
)
from taskline.cli.params import natural, positive
from taskline.errors import ConfigurationError, TasklineError

if TYPE_CHECKING:
    from taskline.app import Taskline
    from taskline.transports.base import StoredMessage


@click.group(cls=Commands, invoke_without_command=True)
@broker_options
@common_options
@click.pass_context
def queues(ctx: click.Context) -> None:
    """Count and show the messages of queues.

    Alone it is the same as `taskline queues list`.

    \b
    Examples:
      taskline queues -A proj
      taskline queues peek mail --broker sqlite:///shop.db
    """
    if ctx.invoked_subcommand is None:
        _list(())


@queues.command(name="list")
@click.argument("names", metavar="[QUEUE]...", nargs=-1)
@broker_options
@common_options
def list_(names: tuple[str, ...]) -> None:
    """Count the messages of these queues, or of all.

    READY can be run now; DELAYED wait for their time; LEASED are with a worker; DEAD will
    not be tried again by themselves; OLDEST is the age of the oldest ready message.

    \b
    Examples:
      taskline queues list -A proj
      taskline queues list mail video --json
    """
    _list(names)


def _list(names: tuple[str, ...]) -> None:
    app = app_or_broker()
    stats = app.transport.stats(names or None)
    if as_json():
        output.json(stats)
        return
    rows: list[tuple[Any, ...]] = [
        (each.queue, each.ready, each.delayed, each.leased, each.dead, output.span(each.oldest))
        for each in stats
    ]
    columns = ["queue", "ready", "delayed", "leased", "dead", "oldest"]
    if app.queues.routed:
        columns.append("at")
        rows = [(*row, app.queues.place(row[0])) for row in rows]
    output.table(columns, rows, empty="no messages in any queue")
    for each in stats if names else ():
        if not (each.ready or each.delayed or each.leased or each.dead):
            _say_empty(app, each.queue)


@queues.command()
@click.argument("queue")
@click.option(
    "--limit", type=positive, metavar="N", default=10, show_default=True, help="At most so many."
)
@click.option("--offset", type=natural, metavar="N", default=0, help="Skip so many.")
@broker_options
@common_options
def peek(queue: str, limit: int, offset: int) -> None:
    """Show the messages of a queue, the next one first, without taking any.

    \b
    Examples:
      taskline queues peek mail -A proj
      taskline queues peek mail --limit 100 --json
    """
    app = app_or_broker()
    messages = [
        (each, _read(app, each)) for each in app.transport.peek(queue, limit=limit, offset=offset)
    ]
    if as_json():
        output.json([content for _, content in messages])
        return
    if not messages:
        _say_empty(app, queue)
        return
    output.table(
        ["id", "state", "due", "task", "arguments", "attempt", "deliveries"],
        [
            (
                content["id"],
                content["state"],
                output.when(stored.due),
                content.get("task"),
                output.shorten(content.get("error") or _call(content), 60),
                content.get("attempt"),
                content["deliveries"],
            )
            for stored, content in messages
        ],
    )


@queues.command(name="drain-node")
@click.argument("node", metavar="URL")
@broker_options
@common_options
def drain_node(node: str) -> None:
    """Move what waits at the broker URL to the broker of the app.

    To take one of several nodes out: remove it from the configuration of those that
    send, then drain it. To change brokers: point the app at the new one, then drain the
    old one. Messages keep their ids, attempts and due times; a message that is delayed by
    a retry stays so. What workers hold is moved by draining again when they are done.

    \b
    Examples:
      taskline queues drain-node redis://old.example -A proj
      taskline queues drain-node sqlite:///shop.db --broker redis://localhost
    """
    from taskline.moving import drain
    from taskline.transports import open_transport

    app = app_or_broker()
    source = open_transport(node, clock=app.clock)
    try:
        _refuse_same(source.info(), app.transport.info())
        moved = drain(source, app.transport, app.codec)
    finally:
        source.close()
    if as_json():
        output.json(moved)
        return
    output.line(f"{moved.ready} ready and {moved.delayed} delayed messages moved")
    if moved.unreadable:
        output.note(f"{moved.unreadable} could not be read: they are dead letters there now")
    if moved.held:
        output.note(f"{moved.held} are with workers: drain again when those are done")
    if moved.dead:
        output.note(f"{moved.dead} dead letters stay there: taskline dead list --broker URL")


def _refuse_same(source: dict[str, Any], target: dict[str, Any]) -> None:
    address = source.get("address")
    others = [target, *target.get("nodes", ())]
    if address and address in [each.get("address") for each in others]:
        raise ConfigurationError(
            f"{address} is among the app's own brokers: take it out of the configuration first"
        )


def _read(app: Taskline, stored: StoredMessage) -> dict[str, Any]:
    """A stored message as people want to see it; why not, where it cannot be read."""
    content: dict[str, Any] = {
        "id": stored.id,
        "queue": stored.queue,
        "state": stored.state,
        "due": stored.due,
        "deliveries": stored.deliveries,
    }
    try:
        header, body = app.codec.open(stored.frame)
        content |= {
            "task": header.task,
            "attempt": header.attempt,
            "priority": header.priority,
            "sent": header.sent,
            "expires": header.expires,
        }
        args, kwargs = app.codec.arguments(header, body)
        task = app.tasks.get(header.task)
        if task is not None:
            args, kwargs = task.signature.redacted(args, kwargs)
        content["args"], content["kwargs"] = list(args), kwargs
    except TasklineError as error:
        content["error"] = str(error)
    return content


def _call(content: dict[str, Any]) -> str:
    parts = [repr(each) for each in content["args"]]
    parts += [f"{name}={value!r}" for name, value in content["kwargs"].items()]
    return ", ".join(parts)


def _say_empty(app: Taskline, queue: str) -> None:
    import difflib

    known = [stats.queue for stats in app.transport.stats()]
    near = [] if queue in known else difflib.get_close_matches(queue, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    output.note(f"no messages in queue {queue!r}{hint}")


@click.command()
@click.argument("names", metavar="QUEUE...", nargs=-1, required=True)
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@broker_options
@common_options
def purge(names: tuple[str, ...], yes: bool) -> None:
    """Delete the waiting messages of queues.

    Messages that a worker holds and dead letters stay (`taskline dead purge` deletes those).

    \b
    Examples:
      taskline purge mail -A proj
      taskline purge mail video --yes --json
    """
    app = app_or_broker()
    stats = {each.queue: each for each in app.transport.stats(names)}
    waiting = sum(
        (each.ready or 0) + (each.delayed or 0) for each in stats.values() if each.queue in names
    )
    if waiting:
        output.confirm(f"Delete {waiting} messages of {', '.join(names)}?", yes)
    deleted = {name: app.transport.purge(name) for name in dict.fromkeys(names)}
    if as_json():
        output.json(deleted)
        return
    for name, count in deleted.items():
        if count:
            output.line(f"{name}: {count} messages deleted")
        else:
            _say_empty(app, name)
