"""The tasks of Taskline's own that workflows send: every worker has them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from taskline.context import require
from taskline.errors import InvalidArguments, NoResult, TasklineError, UnknownTask
from taskline.task import Task
from taskline.workflows.advance import Ended, Engine
from taskline.workflows.compose import CHUNK
from taskline.workflows.elements import bound
from taskline.workflows.inputs import Results
from taskline.workflows.plan import Each
from taskline.workflows.sending import FAN

if TYPE_CHECKING:
    from taskline.app import Taskline
    from taskline.message import Message


NAMES = frozenset({FAN, CHUNK})


def find(
    app: Taskline, name: str, send: Callable[[Sequence[Message]], None] | None = None
) -> Task[..., Any]:
    """The built-in task of one of the `NAMES`, which sends by `app.send` or the given `send`."""
    if name == FAN:

        def fan(items: Results[Any] | Any) -> int:
            return spread(app, items, send or app.send)

        return Task(app, fan, name=FAN, retry=0)

    def chunk(name: str, calls: list[list[Any]]) -> list[Any]:
        return call_all(app, name, calls)

    return Task(app, chunk, name=CHUNK, retry=0)


def spread(app: Taskline, items: Any, send: Callable[[Sequence[Message]], None]) -> int:
    """Start a step for each item; returns how many. Done again, it sends the same ids again."""
    place = require().header.flow
    if place is None:
        raise TasklineError(f"{FAN} is a step of workflows and is not to be called by itself")
    if isinstance(items, (str, bytes, Mapping)) or not isinstance(items, Iterable):
        raise InvalidArguments(f"each() needs a list to go through, not {items!r:.80}")
    engine = Engine(app, app.require_backend(), send)
    plan = engine.plans.get([place.id]).get(place.id)
    if plan is None:
        raise NoResult(f"workflow {place.id} is gone: start it with a longer keep=")
    each = plan.flow.nodes[place.at].step
    assert isinstance(each, Each)
    number = 0
    for number, item in enumerate(items, 1):
        step = bound(app, each.step, item)
        more: Sequence[Ended] = engine.start_member(plan, place.at, number - 1, step, [])
        if more:
            engine.flush()
            engine.advance(more)
    engine.flush()
    return number


def call_all(app: Taskline, name: str, calls: list[list[Any]]) -> list[Any]:
    """Make these calls of one task, one after the other."""
    task = app.tasks.get(name)
    if task is None:
        raise UnknownTask(f"no task {name!r} is registered in this worker: import its module")
    values = []
    for given in calls:
        args, kwargs = task.signature.convert(given, {})
        value = task.run(args, kwargs)
        if task.is_async:
            import asyncio

            value = asyncio.run(value)
        values.append(value)
    return values
