"""`taskline result`: what has become of tasks."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from taskline.cli import output
from taskline.cli.options import app_or_broker, as_json, broker_options, common_options
from taskline.cli.params import duration
from taskline.errors import ConfigurationError, SerializationError
from taskline.message import FINAL_STATES, SUCCESS

if TYPE_CHECKING:
    from taskline.app import Taskline
    from taskline.result import AsyncResult

LOOK_EVERY = 0.5
"""Seconds between two looks at the progress that is shown."""


@click.command()
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@click.option("--wait", type=duration, help="Wait so long for the tasks to end: 10, 5m, 2h.")
@click.option("--forget", is_flag=True, help="Delete the stored outcomes.")
@click.option("--revoke", is_flag=True, help="Keep the tasks from running.")
@click.option("--tree", is_flag=True, help="Show what they sent, and the steps of workflows.")
@click.option("--terminate", is_flag=True, help="With --revoke: stop those that run.")
@broker_options
@common_options
def result(
    ids: tuple[str, ...],
    wait: float | None,
    forget: bool,
    revoke: bool,
    tree: bool,
    terminate: bool,
) -> None:
    """Show what has become of tasks.

    With --wait, when they have ended or the time is over.

    Exits with 0 when all have succeeded, with 1 when one has failed or was revoked or has
    expired, and with 4 when one has not ended (yet). With --json each task is a line of its
    own, in the order in which they end. PENDING also stands for ids that nobody has sent.

    \b
    Examples:
      taskline result 0192f0c1a7b87d3e9c0a1b2c3d4e5f60 -A proj --wait 10
      taskline result 0192f0c1a7b87d3e9c0a1b2c3d4e5f60 --revoke --terminate
      taskline result 0192f0c1a7b87d3e9c0a1b2c3d4e5f60 --tree
    """
    if forget + revoke + tree + (wait is not None) > 1:
        raise click.UsageError("--wait, --forget, --revoke and --tree exclude each other")
    if terminate and not revoke:
        raise click.UsageError("--terminate goes with --revoke")
    app = app_or_broker()
    check_backend(app)
    results = results_of(app, list(dict.fromkeys(ids)))
    if tree:
        from taskline.cli.tree import show

        show(results)
        return
    if forget:
        for each in results:
            each.forget()
            _done(each.id, "forgotten")
    elif revoke:
        _revoke(results, terminate)
    else:
        report(results, wait)


def revoke_these(app: Taskline, ids: Sequence[str], terminate: bool) -> None:
    """Keep the tasks and workflows of these ids from running."""
    _revoke(results_of(app, list(dict.fromkeys(ids))), terminate)


def _revoke(results: Sequence[AsyncResult[Any]], terminate: bool) -> None:
    for each in results:
        removed = each.revoke(terminate)
        _done(each.id, "revoked" if removed else "workers are told to revoke it")


def _done(id: str, what: str) -> None:
    if as_json():
        output.json({"id": id, "done": what})
    else:
        output.line(f"{id}: {what}")


def check_backend(app: Taskline) -> None:
    """Raise `ConfigurationError` when the app keeps no results."""
    if app.backend is None:
        raise ConfigurationError(
            "results are not kept: name a result backend with --backend, "
            "TASKLINE_BACKEND or in the app"
        )


def results_of(app: Taskline, ids: list[str]) -> list[AsyncResult[Any]]:
    """The results of these tasks and workflows."""
    from taskline.workflows import FlowResult
    from taskline.workflows.plan import read

    plans = {plan.id: plan for plan in read(app.require_backend(), app.codec, ids)}
    return [
        FlowResult(app, each, known=plans[each]) if each in plans else app.AsyncResult(each)
        for each in ids
    ]


def report(results: Sequence[AsyncResult[Any]], wait: float | None, *, brief: bool = False) -> None:
    """Print these results, after `wait` seconds at most, and exit with what they say.

    `brief` leaves out all but the value or the traceback.
    """
    contents: dict[str, dict[str, Any]] = {}
    with _bar(results if wait else ()) as bar:
        for each in _as_they_end(results, wait, bar):
            contents[each.id] = read(each)
            if bar is not None and contents[each.id]["state"] in FINAL_STATES:
                bar.ended()
            if as_json():
                output.json(contents[each.id])
    if not as_json():
        shown = [contents[each.id] for each in results]
        if len(shown) > 1:
            _table(shown)
        elif brief:
            _brief(shown[0])
        else:
            output.fields(_fields(shown[0]))
    states = {content["state"] for content in contents.values()}
    unreadable = any("unreadable" in content for content in contents.values())
    if unreadable or states & FINAL_STATES - {SUCCESS}:
        raise click.exceptions.Exit(output.FAILED)
    if states != {SUCCESS}:
        if wait is not None:
            ended = sum(content["state"] in FINAL_STATES for content in contents.values())
            output.error(
                f"{len(contents) - ended} of {len(contents)} not ended after {output.span(wait)}: "
                "do workers serve their queues?"
            )
        raise click.exceptions.Exit(output.UNFINISHED)


def _as_they_end(
    results: Sequence[AsyncResult[Any]], wait: float | None, bar: Bar | None = None
) -> Iterator[AsyncResult[Any]]:
    """These results as they become final within `wait` seconds, then all others."""
    left = {each.id: each for each in results}
    if wait is not None:
        app = results[0].app
        until = app.clock.monotonic() + wait
        backend = app.require_backend()
        while left and (rest := until - app.clock.monotonic()) > 0:
            for found in backend.wait(list(left), rest if bar is None else min(rest, LOOK_EVERY)):
                yield left.pop(found)
            if bar is not None:
                bar.look(list(left.values()))
    yield from left.values()


def read(result: AsyncResult[Any]) -> dict[str, Any]:
    """All that is known of a task; `result` is there after success, `error` after failure."""
    content: dict[str, Any] = {"id": result.id, "state": result.state}
    try:
        content |= result.info
        if content["state"] == SUCCESS:
            content["result"] = result.result
    except SerializationError as error:
        content["unreadable"] = str(error)
    return content


class Bar:
    """A progress bar on standard error: for one task what it tells, for several how many ended."""

    def __init__(self, count: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeElapsedColumn as Elapsed

        self._count = count
        self.shown = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            Elapsed(),
            TextColumn("{task.description}", markup=False),
            console=Console(stderr=True),
            transient=True,
        )
        self._job = self.shown.add_task("", total=count if count > 1 else None)

    def ended(self) -> None:
        """A task has ended."""
        if self._count > 1:
            self.shown.advance(self._job)

    def look(self, left: Sequence[AsyncResult[Any]]) -> None:
        """Show what these tell of their progress."""
        told = left[0].progress() if len(left) == 1 else None
        if told is None:
            return
        said = output.clean(getattr(told, "message", ""))
        if self._count == 1:
            self.shown.update(self._job, completed=told.done, total=told.total, description=said)
        else:
            done = f"{told.done:g}" if told.total is None else f"{told.done:g}/{told.total:g}"
            self.shown.update(self._job, description=f"the last: {done} {said}")


@contextlib.contextmanager
def _bar(results: Sequence[AsyncResult[Any]]) -> Iterator[Bar | None]:
    """The bar, where tasks are waited for on a terminal."""
    if not results or not sys.stderr.isatty():
        yield None
        return
    bar = Bar(len(results))
    with bar.shown:
        yield bar


def _fields(content: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    state = content["state"]
    yield "id", content["id"]
    yield "state", state
    yield "task", content.get("task") or None
    if "result" in content:
        yield "result", repr(content["result"])
    yield "unreadable", content.get("unreadable")
    yield "error", _error(content)
    yield "attempt", content.get("attempt")
    yield "worker", content.get("worker") or None
    yield "started", output.when(content.get("started"))
    yield "took", _took(content)
    yield "progress", _told(content)
    yield "retried at", output.when(content.get("retry_at"))
    yield "traceback", (content.get("error") or {}).get("traceback")


def _brief(content: dict[str, Any]) -> None:
    if "result" in content:
        output.line(repr(content["result"]))
        return
    if content["state"] not in FINAL_STATES:
        return
    failure = content.get("error") or {}
    if failure.get("traceback"):
        click.echo(output.clean(failure["traceback"].rstrip("\n"), keep="\n\t"), err=True)
    reason = content.get("unreadable") or _error(content)
    output.error(f"task {content['id']} is {content['state']}{f': {reason}' if reason else ''}")


def _table(contents: list[dict[str, Any]]) -> None:
    output.table(
        ["id", "state", "task", "took", "result"],
        [
            (
                content["id"],
                content["state"],
                content.get("task") or None,
                _took(content),
                output.shorten(_summary(content), 60),
            )
            for content in contents
        ],
    )


def _summary(content: dict[str, Any]) -> str:
    if "result" in content:
        return repr(content["result"])
    return content.get("unreadable") or _error(content) or ""


def _error(content: dict[str, Any]) -> str | None:
    failure = content.get("error")
    if not failure:
        return None
    kind = str(failure.get("type", "error")).removeprefix("builtins.")
    return f"{kind}: {failure.get('message', '')}"


def _told(content: dict[str, Any]) -> str | None:
    told = content.get("progress")
    if not told:
        return None
    total = "" if told["total"] is None else f" of {told['total']:g}"
    return f"{told['done']:g}{total}{' ' if told['message'] else ''}{told['message']}"


def _took(content: dict[str, Any]) -> str | None:
    started, finished = content.get("started"), content.get("finished")
    return output.span(finished - started) if started and finished else None
