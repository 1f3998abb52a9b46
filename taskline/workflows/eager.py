"""The setting `eager`: a workflow runs here, step by step, in the thread that starts it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from taskline import eager
from taskline.message import Message
from taskline.workflows import builtin
from taskline.workflows.advance import Ended, Engine
from taskline.workflows.result import FlowResult

if TYPE_CHECKING:
    from taskline.app import Taskline
    from taskline.workflows.plan import Plan
    from taskline.workflows.steps import GroupStep


def run(app: Taskline, plan: Plan, streamed: Mapping[int, GroupStep[Any, Any]]) -> FlowResult[Any]:
    """Run the whole workflow. Where the app has no result backend, results are in memory."""
    from taskline.workflows.launch import start

    backend = app.require_backend()
    waiting: deque[Message] = deque()

    def send(messages: Sequence[Message]) -> None:
        waiting.extend(messages)

    engine = Engine(app, backend, send)
    start(engine, app, backend, plan, streamed)
    while waiting:
        message = waiting.popleft()
        place, name = message.header.flow, message.header.task
        assert place is not None
        own = builtin.find(app, name, send) if name in builtin.NAMES else None
        outcome = eager.run(app, message, own)
        backend.store([outcome])
        engine.advance([Ended(place.id, place.at, place.member, outcome.state)])
    return FlowResult(app, plan.id)
