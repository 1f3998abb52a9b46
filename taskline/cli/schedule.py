"""`taskline schedule`: see and change what is sent again and again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from taskline.cli import output
from taskline.cli.options import Commands, app_option, as_json, common_options, the_app
from taskline.cli.params import duration, lasting, moment, natural, positive
from taskline.cli.send import TakesValues

if TYPE_CHECKING:
    from taskline.app import Taskline


@click.group(cls=Commands, invoke_without_command=True)
@app_option
@common_options
@click.pass_context
def schedule(ctx: click.Context) -> None:
    """Show and change schedules, while workers run.

    Alone it is the same as `taskline schedule list`.

    \b
    Examples:
      taskline schedule -A proj
      taskline schedule add night proj.report --cron '0 3 * * *' --tz Europe/Berlin
      taskline schedule pause night
    """
    if ctx.invoked_subcommand is None:
        _list()


@schedule.command(name="list")
@app_option
@common_options
def list_() -> None:
    """List the schedules: those that the code declares, and the stored ones.

    NEXT is when it is due next; LAST is the slot for which a message was sent last.

    \b
    Examples:
      taskline schedule list -A proj
      taskline schedule list -A proj --json
    """
    _list()


def _list() -> None:
    app, _ = the_app()
    found = app.schedules.list()
    if as_json():
        output.json(found)
        return
    output.table(
        ["schedule", "task", "when", "state", "next", "last", "sent", "from"],
        [
            (
                each.name,
                each.task,
                each.when,
                each.state,
                output.when(each.next),
                output.when(each.last),
                each.sent,
                "stored" if each.stored else "code",
            )
            for each in found
        ],
        empty="no schedules",
    )


@schedule.command(cls=TakesValues, context_settings={"ignore_unknown_options": True})
@click.argument("name")
@click.argument("task")
@click.argument("values", metavar="[VALUE]...", nargs=-1)
@click.option("--kw", metavar="NAME=VALUE", multiple=True, help="A keyword argument.")
@click.option("--cron", metavar="EXPRESSION", help="When: minute hour day month weekday.")
@click.option("--tz", metavar="ZONE", help="The time zone, such as Europe/Berlin.  [default: UTC]")
@click.option("--every", type=lasting, metavar="DURATION", help="When: each 30s, 5m, 2h.")
@click.option("--at", type=moment, metavar="TIME", help="When: once, at 2030-01-31T12:00.")
@click.option("--start", type=moment, metavar="TIME", help="Not before.")
@click.option("--end", type=moment, metavar="TIME", help="Not after.")
@click.option("--jitter", type=duration, help="Each is due up to so much later.")
@click.option("--catch-up", type=natural, metavar="N", help="Missed ones to send.  [default: 1]")
@click.option("--repeats", type=positive, metavar="N", help="It ends after so many.")
@click.option("--pass-time", metavar="ARGUMENT", help="The argument that gets the intended time.")
@click.option("--queue", metavar="QUEUE", help="Send to this queue.")
@click.option("--priority", type=click.IntRange(0, 9), help="0 to 9, the highest first.")
@click.option(
    "--expires", type=lasting, metavar="DURATION", help="Not to be started later than that."
)
@click.option("--replace", is_flag=True, help="Replace a stored schedule of this name.")
@app_option
@common_options
def add(
    name: str,
    task: str,
    values: tuple[str, ...],
    kw: tuple[str, ...],
    replace: bool,
    **options: Any,
) -> None:
    """Store a schedule. Running workers know it within seconds.

    VALUEs are arguments, as those of `taskline send`. One of --cron, --every and --at is needed.

    \b
    Examples:
      taskline schedule add night proj.report --cron '0 3 * * *' --tz Europe/Berlin
      taskline schedule add poll proj.fetch https://example.org --every 5m --jitter 20s
    """
    app, _ = the_app()
    args, kwargs = _arguments(app, task, values, kw)
    given = {option: value for option, value in options.items() if value is not None}
    app.schedules.add(name, task, replace=replace, args=args, kwargs=kwargs, **given)
    found = next(each for each in app.schedules.list() if each.name == name)
    _done(name, "added", f": next at {output.when(found.next)}")


def _arguments(
    app: Taskline, task: str, values: tuple[str, ...], kw: tuple[str, ...]
) -> tuple[list[Any], dict[str, Any]]:
    """The arguments in plain data: as JSON where they are JSON, as the task declares them."""
    from taskline.cli import values as words
    from taskline.cli.send import known_task

    named = words.pairs("--kw", kw)
    known = known_task(app, task)
    if known is None:
        return [words.parse(each) for each in values], {
            name: words.parse(each) for name, each in named.items()
        }
    types = words.Types(known)
    return (
        [words.fit(each, types.at(index)) for index, each in enumerate(values)],
        {name: words.fit(each, types.of(name)) for name, each in named.items()},
    )


@schedule.command()
@click.argument("name")
@app_option
@common_options
def pause(name: str) -> None:
    """Send nothing for a schedule until it is resumed.

    \b
    Examples:
      taskline schedule pause night -A proj
    """
    the_app()[0].schedules.pause(name)
    _done(name, "paused")


@schedule.command()
@click.argument("name")
@app_option
@common_options
def resume(name: str) -> None:
    """Send again for a paused schedule, from its next time on.

    \b
    Examples:
      taskline schedule resume night -A proj
    """
    the_app()[0].schedules.resume(name)
    _done(name, "resumed")


@schedule.command()
@click.argument("name")
@app_option
@common_options
def run(name: str) -> None:
    """Send a message of a schedule now, and print its task's id.

    \b
    Examples:
      taskline schedule run night -A proj
    """
    result = the_app()[0].schedules.run(name)
    if as_json():
        output.json({"schedule": name, "done": "sent", "id": result.id})
    else:
        output.line(result.id)


@schedule.command()
@click.argument("name")
@app_option
@common_options
def remove(name: str) -> None:
    """Delete a stored schedule. One that the code declares can be paused instead.

    \b
    Examples:
      taskline schedule remove night -A proj
    """
    the_app()[0].schedules.remove(name)
    _done(name, "removed")


def _done(name: str, what: str, more: str = "") -> None:
    if as_json():
        output.json({"schedule": name, "done": what})
    else:
        output.line(f"{name}: {what}{more}")
