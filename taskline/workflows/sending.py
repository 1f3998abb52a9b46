"""The messages of a workflow's steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from taskline.calls import header_of
from taskline.message import VERSION, Header, Message, Place
from taskline.workflows.plan import Call, Each, Flow, Group, Plan, step_id

if TYPE_CHECKING:
    from taskline.app import Taskline

FAN = "taskline.fan"
"""The built-in task that starts a step for each item of a result."""


def message_of(
    app: Taskline,
    plan: Plan,
    at: int,
    member: int | None,
    call: Call,
    take: list[tuple[str | None, Any]],
) -> Message:
    """The message of a step, under the id that follows from its place."""
    options = call.options
    key = step_id(plan.id, at, member)
    header = header_of(options, key, call.task, app.now(), call.compression)
    if plan.expires is not None:
        own = header.expires
        header.expires = plan.expires if own is None else min(own, plan.expires)
    header.result_ttl = plan.ttl
    header.parent = plan.id
    header.root = plan.root or plan.id
    header.flow = Place(plan.id, at, member, take)
    return app.codec.reframe(header, call.body)


def fan_of(app: Taskline, step: Each) -> Call:
    """The call of the built-in task, sent as the step's own first task would be."""
    options = msgspec.structs.replace(
        _first_call(step.step).options, serializer=app.settings.serializer
    )
    header = Header(VERSION, "", FAN, "", 0.0, app.settings.serializer)
    return Call(FAN, app.codec.dump(header, ((), {})), options, header.compression)


def _first_call(step: Call | Flow) -> Call:
    """The call whose queue a built-in task is sent to: a worker serves that one."""
    while isinstance(step, Flow):
        inner = step.nodes[0].step
        step = (
            inner.members[0]
            if isinstance(inner, Group)
            else inner.step
            if isinstance(inner, Each)
            else inner
        )
    return step
