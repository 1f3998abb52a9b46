"""`taskline doctor`: is everything as it should be, and what to do where it is not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from taskline.cli import checks, output
from taskline.cli.options import (
    as_json,
    broker_options,
    choice,
    common_options,
    silent_app_or_broker,
)
from taskline.cli.version import packages
from taskline.errors import TasklineError

if TYPE_CHECKING:
    from taskline.app import Taskline
    from taskline.cli.checks import Finding

_COLOURS = {checks.OK: "green", checks.WARN: "yellow", checks.FAIL: "red"}


@click.command()
@broker_options
@common_options
def doctor() -> None:
    """Look for what is wrong, and say what to do.

    Checks versions, configuration, connections, clock, permissions, disk and queues. Exits
    with 1 when something is wrong; warnings alone exit with 0. With --json each finding is a
    line of its own.

    \b
    Examples:
      taskline doctor -A proj
      taskline doctor --broker sqlite:///shop.db --json
    """
    counts = dict.fromkeys(_COLOURS, 0)
    for finding in _findings():
        counts[finding.status] += 1
        _print(finding)
    if not as_json():
        output.line(f"{counts['fail']} wrong, {counts['warn']} to look at, {counts['ok']} fine")
    if counts[checks.FAIL]:
        raise click.exceptions.Exit(output.FAILED)


def _print(finding: Finding) -> None:
    if as_json():
        output.json(checks.shown(finding))
        return
    mark = output.style(f"{finding.status:<4}", fg=_COLOURS[finding.status])
    click.echo(f"{mark}  {finding.check:<13}  {output.clean(finding.message)}")
    if finding.remedy:
        click.echo(f"{'':21}→ {output.clean(finding.remedy)}")


def _findings() -> Iterator[Finding]:
    yield from checks.versions(packages())
    yield from checks.sqlite_version()
    yield from checks.environment(os.environ)
    try:
        app = silent_app_or_broker()
    except TasklineError as error:
        yield checks.Finding(check="configuration", status=checks.FAIL, message=str(error))
        return
    own = choice().target() is not None
    yield from _configuration(app, own)
    yield from checks.security(app)
    yield from _servers(app, own)


def _configuration(app: Taskline, own: bool) -> Iterator[Finding]:
    chosen = choice()
    source = f"-A {chosen.target()}" if own else chosen.config or "--broker and TASKLINE_BROKER"
    backend = "none (results are not kept)"
    if app.settings.backend is not None:
        backend = output.address(app.settings.backend)
    yield checks.Finding(
        check="configuration",
        status=checks.OK,
        message=f"from {source}: broker {output.address(app.settings.broker)}, backend {backend}",
    )
    if own:
        count = len(app.tasks)
        yield checks.Finding(
            check="tasks",
            status=checks.OK if count else checks.WARN,
            message=output.count(count, "task") if count else "the app has no tasks",
            remedy="" if count else "name the modules that define them in the setting include",
        )


def _servers(app: Taskline, own: bool) -> Iterator[Finding]:
    for path in checks.new_files(app):
        yield checks.Finding(
            check="file",
            status=checks.WARN,
            message=f"there was no file {path}; it is made now",
            remedy="check its name and the working directory, if there should be one",
        )
    yield from _backend(app)
    yield from _broker(app, own)


def _backend(app: Taskline) -> Iterator[Finding]:
    try:
        backend = app.backend
    except TasklineError as error:
        yield checks.unreachable("backend", error)
        return
    if backend is not None:
        finding, info = checks.server("backend", backend)
        yield finding
        if app.settings.backend != app.settings.broker:
            yield from _file(info)


def _broker(app: Taskline, own: bool) -> Iterator[Finding]:
    try:
        transport = app.transport
    except TasklineError as error:
        yield checks.unreachable("broker", error)
        return
    reached = True
    for name, part in transport.parts().items():
        finding, info = checks.server(name, part)
        yield finding
        if info is None:
            reached = False
            continue
        yield from checks.durability(part)
        yield from checks.clock(info.get("time"), app.now())
        yield from _file(info)
    if reached:
        yield from checks.queues(app, own)


def _file(info: dict[str, Any] | None) -> Iterator[Finding]:
    path = Path(str((info or {}).get("address")))
    if path.is_file():
        yield from checks.file(path)
