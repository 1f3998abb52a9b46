"""`taskline inspect limits`: how rates and concurrency limits stand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import click

from taskline.cli import output
from taskline.cli.options import app_option, as_json, common_options, the_app

if TYPE_CHECKING:
    from taskline.limiting import LimitStatus


@click.command()
@click.option(
    "--key", metavar="KEY", default="", help="Of tasks with a limit_key: the limits of this key."
)
@app_option
@common_options
def limits(key: str) -> None:
    """Show rates and concurrency limits, and what they leave.

    LEFT is how many runs may begin now; RUNNING, of so many, those that hold a place. Where each
    key has limits of its own, name one with --key.

    \b
    Examples:
      taskline inspect limits -A proj
      taskline inspect limits -A proj --key customer-42
    """
    app, _ = the_app()
    found = app.limits(key)
    if as_json():
        output.json({"limits": found})
        return
    output.table(
        ["limit", "key", "rate", "left", "running", "of"],
        [row for each in found for row in _rows(each)],
        empty=f"the app {app.name} has no limits",
    )
    for each in found:
        for place in each.held:
            worker = place.run.partition(" ")[2]
            output.note(f"{each.name}: {place.id} at {worker}, its lease ends in {place.left:.0f}s")


def _rows(limit: LimitStatus) -> Iterator[tuple[Any, ...]]:
    name = f"{limit.scope} {limit.name}"
    key = "(one each)" if limit.keyed and not limit.key else limit.key or None
    left = [math.floor(each + 0.01) for each in limit.left]
    for rate, number in zip_longest(limit.rates, left):
        yield name, key, rate, number, None, None
    if limit.concurrency is not None:
        running = None if limit.keyed and not limit.key else len(limit.held)
        yield name, key, None, None, running, limit.concurrency
