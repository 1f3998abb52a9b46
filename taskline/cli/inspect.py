"""`taskline inspect`: which workers there are, and what they do."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from taskline.cli import output
from taskline.cli.limits import limits
from taskline.cli.options import Commands, app_option, as_json, common_options, the_app
from taskline.cli.params import lasting

if TYPE_CHECKING:
    from taskline.app import Taskline
    from taskline.control import Told, WorkerInfo

F = TypeVar("F", bound=Callable[..., Any])

SILENT_AFTER = 11.0
"""Seconds since its last beat after which a worker is called silent: it has missed one."""
SHOWN = 60
"""Characters of a task's arguments in a table."""


def worker_option(command: F) -> F:
    """`--worker`."""
    return click.option(
        "-w",
        "--worker",
        "workers",
        metavar="NAME",
        multiple=True,
        help="Only this worker; may be given again.  [default: all]",
    )(command)


def timeout_option(command: F) -> F:
    """`--timeout`."""
    return click.option(
        "--timeout",
        type=lasting,
        metavar="DURATION",
        default="5s",
        show_default=True,
        help="How long the workers have to answer.",
    )(command)


arguments_option = click.option(
    "--args", "arguments", is_flag=True, help="Show the tasks' arguments, but for secrets."
)


@click.group(cls=Commands, invoke_without_command=True)
@worker_option
@app_option
@common_options
@click.pass_context
def inspect(ctx: click.Context, workers: tuple[str, ...]) -> None:
    """See the workers of an app, and what they do.

    Alone it is the same as `taskline inspect workers`. What workers say goes through the
    result backend, whatever the broker is.

    Exits with 1 when there is no worker, with 2 for a name that none has, and with 4 when one
    did not answer.

    \b
    Examples:
      taskline inspect -A proj
      taskline inspect active -A proj --args
      taskline inspect stats --worker mail-1 --json
    """
    if ctx.invoked_subcommand is None:
        _workers(workers)
    elif workers:
        raise click.UsageError(f"--worker stands after {ctx.invoked_subcommand!r}")


@inspect.command(name="workers")
@worker_option
@app_option
@common_options
def workers_(workers: tuple[str, ...]) -> None:
    """List the workers, as each was at its last beat.

    PROCS are its processes, SLOTS the places for `def` tasks in them; BEAT is the age of its
    last sign of life. A worker that was killed is shown as silent, and gone after 15 s.

    \b
    Examples:
      taskline inspect workers -A proj
      taskline inspect workers --worker mail-1 --json
    """
    _workers(workers)


def _workers(names: tuple[str, ...]) -> None:
    app, _ = the_app()
    found = app.control.workers(names or None)
    state = app.control.state()
    paused = sorted(state.paused_at(app.now()))
    if as_json():
        output.json({"workers": found, "paused": paused, "rates": state.rates})
    elif found:
        output.table(
            [
                *("worker", "state", "host", "pid", "procs", "slots", "active", "done", "failed"),
                *("queues", "version", "up", "beat"),
            ],
            [
                (
                    each.name,
                    _state(each),
                    each.host,
                    each.pid,
                    len(each.processes),
                    each.slots,
                    each.active,
                    each.done,
                    each.failed,
                    ",".join(each.queues),
                    "/".join(each.versions) or None,
                    output.span(round(each.up)),
                    output.span(each.beat),
                )
                for each in found
            ],
        )
    if not as_json():
        if paused:
            output.note(f"paused queues: {', '.join(paused)}")
        for task, rate in sorted(state.rates.items()):
            output.note(f"changed rate: {task} {rate}")
    _end(app, bool(found))


def _state(worker: WorkerInfo) -> str:
    if worker.beat > SILENT_AFTER:
        return "silent"
    return "stopping" if worker.stopping else "running"


@inspect.command()
@arguments_option
@worker_option
@timeout_option
@app_option
@common_options
def active(arguments: bool, workers: tuple[str, ...], timeout: float) -> None:
    """List the tasks that run now, the longest first.

    \b
    Examples:
      taskline inspect active -A proj
      taskline inspect active --worker mail-1 --args
    """
    app, _ = the_app()
    tasks, told = app.control.active(workers or None, arguments=arguments, timeout=timeout)
    if as_json():
        output.json({"active": tasks, "silent": _silent(told)})
    elif told.processes:
        output.table(
            ["id", "task", "queue", "for", "attempt", "worker", "pid", "slot"]
            + ["arguments"] * arguments,
            [
                (
                    each.id,
                    each.task,
                    each.queue,
                    output.span(each.seconds),
                    each.attempt,
                    each.worker,
                    each.pid,
                    each.slot,
                    *[output.shorten(each.arguments or "", SHOWN)] * arguments,
                )
                for each in tasks
            ],
            empty="nothing runs",
        )
    _end(app, bool(told.processes), told)


@inspect.command()
@arguments_option
@worker_option
@timeout_option
@app_option
@common_options
def reserved(arguments: bool, workers: tuple[str, ...], timeout: float) -> None:
    """List the messages that workers hold and have not begun to run.

    \b
    Examples:
      taskline inspect reserved -A proj
      taskline inspect reserved --worker mail-1 --json
    """
    app, _ = the_app()
    tasks, told = app.control.reserved(workers or None, arguments=arguments, timeout=timeout)
    if as_json():
        output.json({"reserved": tasks, "silent": _silent(told)})
    elif told.processes:
        output.table(
            ["id", "task", "queue", "attempt", "worker", "pid"] + ["arguments"] * arguments,
            [
                (
                    each.id,
                    each.task,
                    each.queue,
                    each.attempt,
                    each.worker,
                    each.pid,
                    *[output.shorten(each.arguments or "", SHOWN)] * arguments,
                )
                for each in tasks
            ],
            empty="nothing is held ahead",
        )
    _end(app, bool(told.processes), told)


@inspect.command()
@worker_option
@app_option
@common_options
def stats(workers: tuple[str, ...]) -> None:
    """Count what each worker process has done.

    RATE is of the last seconds; RETRIED are runs after which the message was put back;
    AHEAD is how many messages it would hold; LAG is how late its event loop was.

    \b
    Examples:
      taskline inspect stats -A proj
      taskline inspect stats --json
    """
    app, _ = the_app()
    found = app.control.processes(workers or None)
    if as_json():
        output.json(found)
    elif found:
        output.table(
            [
                *("worker", "pid", "done", "failed", "retried", "rate", "active", "reserved"),
                *("ahead", "memory", "lag", "up", "beat"),
            ],
            [
                (
                    each.worker,
                    each.pid,
                    each.done,
                    each.failed,
                    each.retried,
                    f"{each.rate:.1f}/s",
                    each.active,
                    each.reserved,
                    each.prefetch,
                    f"{each.memory / 2**20:.0f}M" if each.memory else None,
                    output.span(each.lag),
                    output.span(round(each.up)),
                    output.span(each.beat),
                )
                for each in found
            ],
        )
    _end(app, bool(found))


@inspect.command()
@worker_option
@timeout_option
@app_option
@common_options
def registered(workers: tuple[str, ...], timeout: float) -> None:
    """List the tasks that workers know, and who does not.

    A worker that lacks a task has other code than the rest: its version tells which.

    \b
    Examples:
      taskline inspect registered -A proj
      taskline inspect registered --json
    """
    app, _ = the_app()
    tasks, told = app.control.registered(workers or None, timeout=timeout)
    answered = {each.id: each for each in told.processes if each.id in told.answers}
    if as_json():
        known = {
            f"{each.worker}:{each.pid}": told.answers[each.id].registered
            for each in answered.values()
        }
        missing = {
            task: [f"{each.worker}:{each.pid}" for each in answered.values() if each.id not in ids]
            for task, ids in tasks.items()
            if len(ids) < len(answered)
        }
        output.json({"registered": known, "missing": missing, "silent": _silent(told)})
    elif answered:
        output.table(
            ["task", "processes", "missing in"],
            [
                (
                    task,
                    f"{len(ids)} of {len(answered)}",
                    ", ".join(
                        f"{each.worker} (pid {each.pid}{_versioned(each.version)})"
                        for each in answered.values()
                        if each.id not in ids
                    )
                    or None,
                )
                for task, ids in tasks.items()
            ],
            empty="no tasks",
        )
    _end(app, bool(told.processes), told)


def _versioned(version: str) -> str:
    return f", version {version}" if version else ""


def _silent(told: Told) -> list[str]:
    return [f"{each.worker}:{each.pid}" for each in told.silent]


def say_silent(told: Told) -> bool:
    """Say which workers did not answer; returns whether there are any."""
    for each in told.silent:
        output.note(
            f"worker {each.worker} (pid {each.pid} on {each.host}) did not answer; "
            f"its last sign of life was {output.span(each.beat)} before"
        )
    more = sum(answer.more for answer in told.answers.values())
    if more:
        output.note(f"{more} more are not shown")
    return bool(told.silent)


def say_none(app: Taskline) -> None:
    """Say that there is no worker."""
    output.error(
        f"no worker of the app {app.name} gives a sign of life in its backend "
        f"{output.address(app.settings.backend)}"
    )


def _end(app: Taskline, any_found: bool, told: Told | None = None) -> None:
    """The exit code, and why it is not 0."""
    if told is not None and say_silent(told):
        raise click.exceptions.Exit(output.UNFINISHED)
    if not any_found:
        say_none(app)
        raise click.exceptions.Exit(output.FAILED)


inspect.add_command(limits)
