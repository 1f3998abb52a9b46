"""`taskline health`: is the worker that writes a status file alive, and is it ready?"""

from __future__ import annotations

import time

import click
import msgspec

from taskline.cli import output
from taskline.cli.options import as_json, common_options


@click.command()
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--ready", is_flag=True, help="Ask whether it takes tasks, not only if it lives.")
@common_options
def health(file: str, ready: bool) -> None:
    """See whether a worker lives and is ready.

    FILE is what it was given as --status-file. Exits with 1 when it does not. For probes on
    the worker's own machine: it opens no connection.

    \b
    Examples:
      taskline health /run/taskline/status
      taskline health /run/taskline/status --ready
    """
    from taskline.worker.parent import status

    found = status.read(file)
    trouble = found.trouble(time.time(), ready=ready)
    if as_json():
        output.json({"ok": not trouble, "trouble": trouble, **msgspec.to_builtins(found)})
    elif trouble:
        output.error(trouble)
    else:
        running = sum(len(process.running) for process in found.processes)
        output.line(
            f"worker {found.name}: {output.count(len(found.processes), 'process')}, "
            f"{output.count(running, 'running task')}"
        )
    if trouble:
        raise click.exceptions.Exit(output.FAILED)
