"""`taskline queues` and `taskline purge`: what waits, and how to be rid of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
import msgspec

from taskline.cli import output
from taskline.cli.options import (
    Commands,
    app_option,
    app_or_broker,
    as_json,
    broker_options,
    choice,
    common_options,
    the_app,
)
from taskline.cli.params import lasting, natural, positive
from taskline.errors import ConfigurationError, TasklineError
from taskline.loading import did_you_mean

if TYPE_CHECKING:
    from taskline.app import Taskline
    from taskline.transports.base import StoredMessage


@click.group(cls=Commands, invoke_without_command=True)
@broker_options
@common_options
@click.pass_context
def queues(ctx: click.Context) -> None:
    """Count and show the messages of queues, pause and resume them.

    Alone it is the same as `taskline queues list`.

    \b
    Examples:
      taskline queues -A proj
      taskline queues peek mail --broker sqlite:///shop.db
      taskline queues pause mail --for 10m
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
    not be tried again by themselves; OLDEST is the age of the oldest ready message. PAUSED is
    shown when a queue is: workers take nothing of it.

    \b
    Examples:
      taskline queues list -A proj
      taskline queues list mail video --json
    """
    _list(names)


def _list(names: tuple[str, ...]) -> None:
    app = app_or_broker()
    paused = _paused(app)
    stats = app.transport.stats(names or None)
    if not (stats or names):
        # A broker that cannot tell which queues there are can at least say that of each.
        from taskline.worker.process import served_queues

        asked = app.transport.stats(served_queues(app))
        stats = [each for each in asked if each.ready is None]
    if not names and paused:
        missing = set(paused) - {each.queue for each in stats}
        stats = sorted(
            [*stats, *(app.transport.stats(sorted(missing)) if missing else ())],
            key=lambda each: each.queue,
        )
    if as_json():
        output.json(
            [
                {
                    **msgspec.structs.asdict(each),
                    "paused": None if paused is None else each.queue in paused,
                    "paused_until": (paused or {}).get(each.queue),
                }
                for each in stats
            ]
        )
        return
    rows: list[tuple[Any, ...]] = [
        (each.queue, each.ready, each.delayed, each.leased, each.dead, output.span(each.oldest))
        for each in stats
    ]
    columns = ["queue", "ready", "delayed", "leased", "dead", "oldest"]
    if any(each.queue in (paused or ()) for each in stats):
        columns.append("paused")
        rows = [(*row, _until(paused or {}, row[0])) for row in rows]
    if app.queues.routed:
        columns.append("at")
        rows = [(*row, app.queues.place(row[0])) for row in rows]
    output.table(columns, rows, empty="no messages in any queue")
    for each in stats if names else ():
        if each.ready is not None and not (each.ready or each.delayed or each.leased or each.dead):
            _say_empty(app, each.queue)


def _paused(app: Taskline) -> dict[str, float | None] | None:
    """The paused queues; None where that cannot be known, which is said if it should be."""
    if choice().target() is None:
        return None  # broker and backend alone: the name of the app is not known
    try:
        return app.paused_queues()
    except TasklineError as error:
        output.note(f"which queues are paused is not known: {error}")
        return None


def _until(paused: dict[str, float | None], queue: str) -> str:
    if queue not in paused:
        return "-"
    end = paused[queue]
    return "yes" if end is None else f"until {output.when(end)}"


@queues.command()
@click.argument("names", metavar="QUEUE...", nargs=-1, required=True)
@click.option(
    "--for", "seconds", type=lasting, metavar="DURATION", help="Resume after that: 30s, 10m, 2h."
)
@app_option
@common_options
def pause(names: tuple[str, ...], seconds: float | None) -> None:
    """Let the workers take nothing of these queues.

    All workers of the app heed it within 2 seconds, also those that start later. What runs
    comes to its end, and sending goes on.

    \b
    Examples:
      taskline queues pause mail -A proj
      taskline queues pause mail video --for 10m
    """
    from taskline.worker.process import served_queues

    app, _ = the_app()
    known = {*served_queues(app), *(each.queue for each in app.transport.stats())}
    for name in names:
        app.pause_queue(name, seconds=seconds)
        if name not in known:
            near = did_you_mean(name, sorted(known))
            output.note(f"warning: no task of {app.name} and no message is of {name!r}{near}")
        end = app.paused_queues().get(name)
        if as_json():
            output.json({"queue": name, "done": "paused", "until": end})
        else:
            output.line(f"{name}: paused" + ("" if end is None else f" until {output.when(end)}"))


@queues.command()
@click.argument("names", metavar="QUEUE...", nargs=-1, required=True)
@app_option
@common_options
def resume(names: tuple[str, ...]) -> None:
    """Let the workers take of these queues again.

    \b
    Examples:
      taskline queues resume mail -A proj
    """
    app, _ = the_app()
    for name in names:
        done = "resumed" if app.resume_queue(name) else "was not paused"
        if as_json():
            output.json({"queue": name, "done": done})
        else:
            output.line(f"{name}: {done}")


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
