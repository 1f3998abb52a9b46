"""`taskline send`: call a task from the shell."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any

import click

from taskline.cli import output
from taskline.cli.checks import new_files
from taskline.cli.options import (
    as_json,
    broker_options,
    choice,
    common_options,
    silent_app_or_broker,
    tell_of_new_files,
)
from taskline.cli.params import duration, lasting, moment, natural
from taskline.cli.result import check_backend, report
from taskline.errors import ConfigurationError, UnknownTask
from taskline.loading import did_you_mean

if TYPE_CHECKING:
    from taskline.app import Taskline
    from taskline.result import AsyncResult
    from taskline.task import Task


class TakesValues(click.Command):
    """Lets negative numbers, and anything after `--`, be arguments of the task."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        split = args.index("--") if "--" in args else len(args)
        literal = tuple(args[split + 1 :])
        rest = super().parse_args(ctx, args[:split])
        for value in ctx.params.get("values", ()):
            if value.startswith("-") and not re.fullmatch(r"-|-[\d.].*|-inf|-Infinity", value):
                options = [name for each in self.params for name in each.opts if name[:2] == "--"]
                near = difflib.get_close_matches(value.partition("=")[0], options, n=1)
                raise click.NoSuchOption(value, possibilities=near, ctx=ctx)
        ctx.params["values"] = ctx.params.get("values", ()) + literal
        return rest


@click.command(cls=TakesValues, context_settings={"ignore_unknown_options": True})
@click.argument("task")
@click.argument("values", metavar="[VALUE]...", nargs=-1)
@click.option("--kw", metavar="NAME=VALUE", multiple=True, help="A keyword argument.")
@click.option(
    "--args", "args_json", metavar="JSON", help="All positional arguments, as a JSON array."
)
@click.option(
    "--kwargs", "kwargs_json", metavar="JSON", help="Keyword arguments, as a JSON object."
)
@click.option("--countdown", type=duration, help="Run it so much later: 30s, 5m, 2h.")
@click.option("--eta", type=moment, metavar="TIME", help="Run it at this time: 2030-01-31T12:00.")
@click.option(
    "--expires", type=lasting, metavar="DURATION", help="Do not start it later than that from now."
)
@click.option("--queue", metavar="QUEUE", help="Send it to this queue.")
@click.option("--priority", type=click.IntRange(0, 9), help="0 to 9, the highest first.")
@click.option("--retry", type=natural, metavar="N", help="Try it again so many times.")
@click.option(
    "--id", "task_id", metavar="ID", help="An id of your own: sending it twice runs once."
)
@click.option(
    "--idempotency-key",
    metavar="KEY",
    help="Sending it again with this key gives the first's result.",
)
@click.option("--wait", type=duration, help="Wait so long for the result, and print it.")
@broker_options
@common_options
def send(
    task: str,
    values: tuple[str, ...],
    kw: tuple[str, ...],
    args_json: str | None,
    kwargs_json: str | None,
    wait: float | None,
    **options: Any,
) -> None:
    """Send a task and print its id.

    With --wait its result is printed as well, and decides the exit code.

    A VALUE is read as JSON where it is JSON, else as text. With -A the values become what the
    task's signature declares. Negative numbers are values; put `--` before others that begin
    with a dash.

    \b
    Examples:
      taskline send -A proj proj.add 1 2 --wait 10
      taskline send proj.mail ann@example.org --kw copy=true --countdown 5m --queue mail
      taskline send proj.add --args '[1, 2]' --broker sqlite:///shop.db --json
    """
    from taskline.cli import values as words

    if (values and args_json is not None) or (kw and kwargs_json is not None):
        raise click.UsageError("give values, or --args and --kwargs, not both")
    args = words.positional("--args", args_json) if args_json is not None else None
    kwargs = words.keywords("--kwargs", kwargs_json) if kwargs_json is not None else None
    named = words.pairs("--kw", kw)
    app = silent_app_or_broker()
    _check_durable(app, task, options["queue"])
    made = new_files(app)
    if wait is not None:
        check_backend(app)
    known = known_task(app, task)
    if known is None:
        result = app.send_task(
            task,
            [words.parse(each) for each in values] if args is None else args,
            {name: words.parse(each) for name, each in named.items()} if kwargs is None else kwargs,
            **options,
        )
    else:
        types = words.Types(known)
        if args is None:
            args = [words.fit(each, types.at(index)) for index, each in enumerate(values)]
        if kwargs is None:
            kwargs = {name: words.fit(each, types.of(name)) for name, each in named.items()}
        converted, keywords = known.signature.convert(args, kwargs)
        result = known.apply_async(converted, keywords, **options)
    tell_of_new_files(made)
    if wait is None:
        _print_sent(result, task)
        return
    if not as_json():
        output.line(result.id)
    report([result], wait, brief=True)


def _check_durable(app: Taskline, task: str, queue: str | None) -> None:
    """Raise `ConfigurationError` for a broker that ends with this process."""
    from taskline.transports import TRANSPORTS

    if queue is None:
        queue = app.tasks[task].queue if task in app.tasks else app.settings.queue
    found, _ = TRANSPORTS.find(app.queues.spec(queue))
    if not found.capabilities.durable:
        raise ConfigurationError(
            f"{found.scheme}:// keeps messages in the process that sends them, and this one ends "
            "now: name a broker such as sqlite:///shop.db"
        )


def known_task(app: Taskline, name: str) -> Task[..., Any] | None:
    """The task of the user's app; None where there is only a broker."""
    if choice().target() is None:
        return None
    found = app.tasks.get(name)
    if found is None:
        hint = did_you_mean(name, list(app.tasks))
        raise UnknownTask(
            f"the app has no task {name!r} (to send it all the same, name the --broker "
            f"instead of the app){hint}"
        )
    return found


def _print_sent(result: AsyncResult[Any], task: str) -> None:
    if as_json():
        told = {"duplicate": True} if result.duplicate else {}
        output.json({"id": result.id, "task": task, **told})
    else:
        output.line(result.id)
