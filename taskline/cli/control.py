"""`taskline control`: tell workers what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from taskline.cli import output
from taskline.cli.inspect import say_none, say_silent, timeout_option
from taskline.cli.options import Commands, app_option, as_json, common_options, the_app
from taskline.cli.params import duration, positive
from taskline.cli.queues import pause, resume
from taskline.errors import UnknownTask

if TYPE_CHECKING:
    from taskline.app import Taskline
    from taskline.control import Told

F = TypeVar("F", bound=Callable[..., Any])


@click.group(cls=Commands, invoke_without_command=True)
@app_option
@common_options
@click.pass_context
def control(ctx: click.Context) -> None:
    """Tell workers what to do, from anywhere.

    Orders go through the result backend, whatever the broker is; workers find them within
    2 seconds. With a signing_key they are signed, and workers heed no others.

    Exits with 1 when there is no worker or one refused, with 2 for a name that none has,
    and with 4 when one did not answer.

    \b
    Examples:
      taskline control restart --all -A proj
      taskline control scale 8 --worker mail-1 -A proj
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        raise click.exceptions.Exit(output.USAGE)


def _whom(command: F) -> F:
    """`--worker` and `--all`, of which one must be given."""
    for option in (
        click.option("--all", "everyone", is_flag=True, help="All workers of the app."),
        click.option(
            "-w",
            "--worker",
            "workers",
            metavar="NAME",
            multiple=True,
            help="This worker; may be given again.",
        ),
    ):
        command = option(command)
    return command


def _names(workers: tuple[str, ...], everyone: bool) -> tuple[str, ...] | None:
    if everyone and workers:
        raise click.UsageError("give --worker or --all, not both")
    if not everyone and not workers:
        raise click.UsageError(
            "name the workers with --worker NAME, or say --all: `taskline inspect` lists them"
        )
    return workers or None


@control.command()
@_whom
@click.option("--now", is_flag=True, help="Hand back at once what runs.")
@timeout_option
@app_option
@common_options
def shutdown(workers: tuple[str, ...], everyone: bool, now: bool, timeout: float) -> None:
    """Stop workers, as SIGTERM does.

    What runs has the grace of the worker to end, and is handed back then.

    Whatever has started a worker may start it again: systemd and Kubernetes do.

    \b
    Examples:
      taskline control shutdown --worker mail-1 -A proj
      taskline control shutdown --all --now
    """
    names = _names(workers, everyone)
    app, _ = the_app()
    told = app.control.shutdown(names, now=now, timeout=timeout)
    _say(app, told, "stops at once" if now else "stops")


@control.command()
@_whom
@click.option(
    "--grace",
    type=duration,
    metavar="DURATION",
    help="How long running tasks may go on.  [default: the worker's]",
)
@timeout_option
@app_option
@common_options
def restart(workers: tuple[str, ...], everyone: bool, grace: float | None, timeout: float) -> None:
    """Replace the processes of workers, without loss.

    A process that is forked has the code that its supervisor has loaded: new code comes with
    a new worker, or with --start-method forkserver or spawn.

    \b
    Examples:
      taskline control restart --all -A proj
      taskline control restart --worker mail-1 --grace 5m
    """
    names = _names(workers, everyone)
    app, _ = the_app()
    told = app.control.restart(names, grace=grace, timeout=timeout)
    _say(app, told, "replaces its processes")


@control.command()
@click.argument("processes", type=positive, metavar="N")
@_whom
@timeout_option
@app_option
@common_options
def scale(processes: int, workers: tuple[str, ...], everyone: bool, timeout: float) -> None:
    """Have N processes in each of these workers.

    Those that are too many end after what they run. It holds until the worker ends.

    \b
    Examples:
      taskline control scale 8 --worker mail-1 -A proj
      taskline control scale 2 --all
    """
    names = _names(workers, everyone)
    app, _ = the_app()
    told = app.control.scale(processes, names, timeout=timeout)
    _say(app, told, f"has {processes} process{'es' * (processes > 1)} from now on")


@control.command()
@click.argument("task")
@click.argument("limit", metavar="RATE", required=False)
@click.option("--default", "forget", is_flag=True, help="Let what the code says hold again.")
@app_option
@common_options
def rate(task: str, limit: str | None, forget: bool) -> None:
    """Change how often a task may begin, in all workers.

    RATE is a number for each second, minute, hour or day: 10/s, 100/m; `none` lifts the limit.

    \b
    Examples:
      taskline control rate proj.send_mail 10/s -A proj
      taskline control rate proj.send_mail --default
    """
    from taskline.loading import did_you_mean

    if forget == (limit is not None):
        raise click.UsageError("give a RATE such as 10/s, or --default")
    app, _ = the_app()
    if task not in app.tasks:
        raise UnknownTask(f"no task {task!r} in this app{did_you_mean(task, list(app.tasks))}")
    app.control.rate(task, limit)
    if as_json():
        output.json({"task": task, "rate": limit})
    else:
        output.line(f"{task}: " + (f"{limit} from now on" if limit else "as the code says"))


# The same commands as `taskline queues pause` and `resume`: who looks for them here finds them.
control.add_command(pause)
control.add_command(resume)


def _say(app: Taskline, told: Told, does: str) -> None:
    """What came of an order, and the exit code."""
    refusals = told.refusals()
    names = {each.id: each.worker for each in told.processes}
    heard = sorted({names[each] for each in told.answers} - set(refusals))
    if as_json():
        output.json(
            {
                "workers": heard,
                "refused": refusals,
                "silent": [f"{each.worker}:{each.pid}" for each in told.silent],
            }
        )
    else:
        for name in heard:
            output.line(f"worker {name} {does}")
    for name, reason in sorted(refusals.items()):
        output.error(f"worker {name} does not: {reason}")
    if not told.processes:
        say_none(app)
    if refusals or not told.processes:
        raise click.exceptions.Exit(output.FAILED)
    if say_silent(told):
        raise click.exceptions.Exit(output.UNFINISHED)
