"""`taskline worker`: run tasks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import taskline
from taskline.cli import output, pidfiles, reload
from taskline.cli.options import app_option, as_json, choice, common_options, the_app
from taskline.cli.params import cpus, duration, lasting, positive, seconds, size
from taskline.cli.params import processes as processes_bounds
from taskline.errors import TransportError
from taskline.options import queue_name

if TYPE_CHECKING:
    from taskline.app import Taskline
    from taskline.worker import WorkerOptions

SHOWN = 5
"""How many tasks the banner names."""


@click.command()
@app_option
@click.option(
    "-c",
    "--processes",
    type=processes_bounds,
    metavar="N|MIN..MAX",
    default="1",
    show_default=True,
    help="Worker processes; as many as are needed, between two bounds.",
)
@click.option(
    "--threads",
    type=positive,
    metavar="N",
    default=1,
    show_default=True,
    help="Tasks at a time in one process.",
)
@click.option(
    "--async-slots",
    type=positive,
    metavar="N",
    default=100,
    show_default=True,
    help="`async def` tasks at a time in one process.",
)
@click.option(
    "-Q",
    "--queues",
    metavar="QUEUE[:WEIGHT],…",
    multiple=True,
    help="Queues to serve. Given again: queues that get only what the earlier -Q leave."
    "  [default: those of the app's tasks]",
)
@click.option(
    "--lease", type=seconds, metavar="DURATION", help="How long a silent worker keeps its messages."
)
@click.option("--grace", type=duration, help="How long running tasks may go on after SIGTERM.")
@click.option(
    "--prefetch", type=positive, metavar="N", help="Messages held ahead by one process, at most."
)
@click.option(
    "--max-deliveries",
    type=positive,
    metavar="N",
    help="Deaths of its worker after which a message is dead.",
)
@click.option("--drain", is_flag=True, help="End when the queues have nothing left that is due.")
@click.option(
    "--starvation",
    type=lasting,
    metavar="DURATION",
    help="Time without a message after which middleware is told.",
)
@click.option(
    "--max-tasks", type=positive, metavar="N", help="Replace a process after so many tasks."
)
@click.option("--max-age", type=seconds, metavar="DURATION", help="Replace a process after that.")
@click.option(
    "--soft-memory-limit",
    type=size,
    metavar="SIZE",
    help="Replace a process that is larger, after its tasks.",
)
@click.option("--memory-limit", type=size, metavar="SIZE", help="Kill a process that is larger.")
@click.option(
    "--nice",
    type=click.IntRange(0, 19),
    metavar="N",
    default=0,
    help="Lower the processes' priority: 1 to 19.",
)
@click.option(
    "--cpus", type=cpus, metavar="0-3,…", help="Bind the processes to these processors, in turn."
)
@click.option(
    "--reload",
    is_flag=True,
    help="Start again when code below the working directory changes: for development.",
)
@click.option(
    "--solo",
    is_flag=True,
    help="Run everything in this process's main thread, without time limits: for debuggers.",
)
@click.option(
    "--schedule/--no-schedule",
    default=True,
    show_default=True,
    help="Whether this worker sends what is scheduled, when no other does.",
)
@click.option("-n", "--name", help="The worker's name.  [default: host and process id]")
@click.option(
    "-l",
    "--loglevel",
    type=click.Choice(["debug", "info", "warning", "error", "critical"], case_sensitive=False),
    default="info",
    show_default=True,
    help="What to log.",
)
@click.option(
    "--status-file",
    type=click.Path(dir_okay=False),
    help="Say here, once a second, how the worker is: `taskline health` reads it.",
)
@click.option(
    "--http",
    metavar="HOST:PORT",
    help="Say here how the worker is: /livez, /readyz and /metrics.",
)
@click.option("--pidfile", type=click.Path(dir_okay=False), help="Write the process id here.")
@click.option(
    "--start-method",
    type=click.Choice(["fork", "forkserver", "spawn"]),
    default="fork",
    show_default=True,
    help="How worker processes are made.",
)
@common_options
def worker(
    queues: tuple[str, ...], pidfile: str | None, cpus: list[int] | None, **given: Any
) -> None:
    """Run the tasks of an app until told to stop.

    SIGTERM or Ctrl-C stops it: running tasks have --grace to end, all others are handed back.
    A second signal hands everything back at once.

    With --json one document on standard output says what was started; the log goes to
    standard error.

    \b
    Examples:
      taskline worker -A proj
      taskline worker -A proj -c 4 --threads 8 -Q mail:5,default
      taskline worker -A proj -Q critical -Q mail:5,default -Q low
    """
    if given.pop("reload") and reload.WATCHED not in os.environ:
        raise click.exceptions.Exit(reload.watch(Path.cwd()))
    from taskline.log import setup

    names, weights, ranks = parse_queues(queues)
    app, path = the_app()
    from taskline.worker import Supervisor, Worker, WorkerOptions
    from taskline.worker.process import scheduler_for, served_queues

    if choice().debug:
        given["loglevel"] = "debug"
    setup(given["loglevel"])
    least, most = given.pop("processes")
    options = WorkerOptions(
        queues=names or served_queues(app),
        weights=weights,
        ranks=ranks,
        app_path=path,
        cpus=cpus or [],
        processes=least,
        max_processes=most,
        **given,
    )
    if options.schedule:
        scheduler_for(app)  # raises what is wrong with it
    runs = (Worker if options.solo else Supervisor)(app, options)
    _reach(app, options.queues)
    with pidfiles.hold(pidfile):
        _announce(app, options)
        code = runs.run()
    if code:
        raise click.exceptions.Exit(code)


def parse_queues(given: tuple[str, ...]) -> tuple[list[str], dict[str, int], dict[str, int]]:
    """The names, weights and ranks in the values of `-Q`; raises when it is not right."""
    names: list[str] = []
    weights: dict[str, int] = {}
    ranks: dict[str, int] = {}
    for rank, value in enumerate(given):
        for part in map(str.strip, value.split(",")):
            name, colon, weight = part.rpartition(":") if ":" in part else (part, "", "")
            if not name or (colon and not (weight.isdecimal() and int(weight))):
                raise click.BadParameter(
                    f"{part!r} is not a queue: write NAME or NAME:WEIGHT, such as mail:5",
                    param_hint="-Q",
                )
            if ">" in part:
                raise click.BadParameter(
                    f"{part!r} is not a queue: for a strict order give -Q again for each that "
                    "follows, such as -Q critical -Q default",
                    param_hint="-Q",
                )
            if name in names:
                raise click.BadParameter(f"queue {name!r} is named twice", param_hint="-Q")
            names.append(queue_name("queue", name))
            if colon:
                weights[name] = int(weight)
            if rank:
                ranks[name] = rank
    return names, weights, ranks


def _reach(app: Taskline, queues: list[str]) -> None:
    """Raise what no waiting will mend; a broker that is only down is waited for."""
    for open_one in (partial(app.open_transport_for, queues), app.open_backend):
        try:
            opened = open_one()
            if opened is not None:
                try:
                    opened.ping()
                finally:
                    opened.close()
        except TransportError as error:
            if not error.retryable:
                raise


def _announce(app: Taskline, options: WorkerOptions) -> None:
    """What was started: on standard error for people, or as JSON on standard output."""
    if as_json():
        output.json(_started(app, options))
    else:
        _show_banner(app, options)
        _warn(app, options)


def _started(app: Taskline, options: WorkerOptions) -> dict[str, Any]:
    return {
        "event": "started",
        "version": taskline.__version__,
        "pid": os.getpid(),
        "app": app.name,
        "path": options.app_path,
        "broker": output.masked(app.settings.broker),
        "backend": output.masked(app.settings.backend),
        "queues": {name: options.weights.get(name, 1) for name in options.queues},
        "ranks": {name: options.ranks.get(name, 0) for name in options.queues},
        "processes": options.processes,
        "max_processes": options.max_processes,
        "solo": options.solo,
        "threads": options.threads,
        "async_slots": options.async_slots,
        "tasks": sorted(app.tasks),
        "schedules": sorted(app.periodics) if options.schedule else [],
    }


def _own_tasks(app: Taskline) -> list[str]:
    return sorted(name for name in app.tasks if not name.startswith("taskline."))


def _show_banner(app: Taskline, options: WorkerOptions) -> None:
    own, backend = _own_tasks(app), app.settings.backend
    more = f", … {len(own) - SHOWN} more" if len(own) > SHOWN else ""
    for name, value in (
        ("taskline", f"{taskline.__version__}, process {os.getpid()}"),
        ("app", f"{app.name} ({options.app_path})"),
        ("broker", output.address(app.settings.broker)),
        ("backend", "none: results are not kept" if backend is None else output.address(backend)),
        ("queues", _queues(app, options)),
        (
            "slots",
            "solo: the main thread, one task at a time; time limits are off"
            if options.solo
            else f"{bounds(options)} x ({output.count(options.threads, 'thread')}, "
            f"{options.async_slots} async)",
        ),
        ("tasks", f"{len(own)}: {', '.join(own[:SHOWN])}{more}" if own else "none"),
        *_schedules(app, options),
    ):
        output.note(f"{name:<8}  {value}")


def _warn(app: Taskline, options: WorkerOptions) -> None:
    """Say what will hardly be as it was meant."""
    from taskline.transports import TRANSPORTS

    found, _ = TRANSPORTS.find(app.settings.broker)
    if not found.capabilities.durable:
        output.note(
            f"warning: {found.scheme}:// keeps messages in the process that sends them; "
            "this worker will not see them: name a broker such as sqlite:///shop.db"
        )
    for name, known in _misspelt(app, options.queues):
        output.note(f"warning: no task of {app.name} is of {name!r}; did you mean {known!r}?")
    if not _own_tasks(app):
        output.note(
            "warning: the app has no tasks; name the modules that define them: "
            "Taskline(..., include=['proj.tasks'])"
        )


def _misspelt(app: Taskline, queues: list[str]) -> Iterator[tuple[str, str]]:
    """The queues that nothing is known of, while one of another name is known and not served."""
    from difflib import get_close_matches

    from taskline.worker.process import served_queues

    known = {*served_queues(app), *app.queues.routes}
    for name in queues:
        if name not in known and (near := get_close_matches(name, known - {*queues}, 1, 0.7)):
            yield name, near[0]


def _queues(app: Taskline, options: WorkerOptions) -> str:
    """The queues, those of one rank beside each other: `critical, then mail:5, default`."""
    ranks: dict[int, list[str]] = {}
    for name in options.queues:
        shown = f"{name}:{options.weights[name]}" if name in options.weights else name
        if app.queues.routed:
            shown += f" ({app.queues.place(name)})"
        ranks.setdefault(options.ranks.get(name, 0), []).append(shown)
    return ", then ".join(", ".join(shown) for _, shown in sorted(ranks.items()))


def bounds(options: WorkerOptions) -> str:
    """How many processes: `4 processes`, or `2 to 8 processes`."""
    most = options.max_processes
    if most is None:
        return output.count(options.processes, "process")
    return f"{options.processes} to {most} processes"


def _schedules(app: Taskline, options: WorkerOptions) -> Iterator[tuple[str, str]]:
    """The banner's line of the schedules that the code declares."""
    if not app.periodics:
        return
    names = sorted(app.periodics)
    more = f", … {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    if options.schedule:
        yield "schedule", f"{len(names)}: {', '.join(names[:SHOWN])}{more}"
    else:
        yield "schedule", f"not sent by this worker: {len(names)} declared"
