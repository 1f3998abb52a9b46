"""Starting a workflow: its plan is stored, then its first steps are sent."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypedDict

from taskline import options as check
from taskline.context import running
from taskline.errors import ConfigurationError
from taskline.message import SUCCESS, VERSION, OutcomeHeader, new_id
from taskline.workflows.advance import Ended, Engine
from taskline.workflows.elements import node
from taskline.workflows.plan import (
    COMPENSATE,
    KEEP,
    POLICIES,
    STOP,
    WORKFLOW,
    Flow,
    Node,
    Plan,
    step_id,
)
from taskline.workflows.result import FlowResult
from taskline.workflows.steps import GroupStep, Step, member

if TYPE_CHECKING:
    from taskline.app import Taskline
    from taskline.backends.base import Backend


class LaunchOptions(TypedDict, total=False):
    """What `apply_async` of a workflow takes."""

    expires: datetime | float | None
    on_failure: str
    keep: float | None
    task_id: str | None
    name: str


def launch(step: Step[Any, Any], options: Mapping[str, Any]) -> FlowResult[Any]:
    """Start a step as a workflow; raises as `Step.delay` does."""
    check_options(options)
    app = step.app
    streamed: dict[int, GroupStep[Any, Any]] = {}
    parts = step.parts()
    first = parts[0]
    if isinstance(first, GroupStep) and options.get("on_failure") != COMPENSATE:
        # Its members are not in the plan: they are made and sent as they come.
        streamed[0] = first
        nodes = [Node(first.streamed())]
        for number, part in enumerate(parts[1:]):
            nodes.append(node(part.element(first=False), [number]))
        flow = Flow(nodes)
    else:
        element = step.element(first=True)
        flow = element if isinstance(element, Flow) else Flow([node(element, [])])
    return begin(app, make_plan(app, flow, options), streamed)


def check_options(options: Mapping[str, Any]) -> None:
    """Raise `ConfigurationError` for an option that there is not."""
    check.refuse_unknown(options, tuple(LaunchOptions.__annotations__))


def make_plan(app: Taskline, flow: Flow, options: Mapping[str, Any]) -> Plan:
    """The plan of a workflow that starts now; raises `ConfigurationError`."""
    if app.settings.backend is None and not app.settings.eager:
        raise ConfigurationError(
            f"the app {app.name} has no result backend, which workflows need to go on: give it "
            'one, such as Taskline(..., backend="sqlite:///results.db")'
        )
    now = app.now()
    expires = options.get("expires")
    if isinstance(expires, datetime):
        expires = check.moment("expires", expires)
    elif expires is not None:
        expires = now + check.duration("expires", expires)
    keep = options.get("keep")
    ttl = KEEP if keep is None else check.duration("keep", keep)
    own = options.get("task_id")
    policy = check.one_of("on_failure", options.get("on_failure") or STOP, POLICIES)
    if policy == COMPENSATE and not app.settings.eager:
        app.require_backend().keys()  # it raises if this backend has none
    request = running()
    return Plan(
        new_id() if own is None else check.identifier("task_id", own),
        flow,
        now,
        max(ttl, app.settings.result_ttl),
        policy,
        expires,
        name=options.get("name") or "",
        parent=None if request is None else request.id,
        root=None if request is None else request.root or request.id,
    )


def begin(
    app: Taskline, plan: Plan, streamed: Mapping[int, GroupStep[Any, Any]]
) -> FlowResult[Any]:
    """Store the plan and send what waits for nothing; `streamed` are groups among that."""
    if app.settings.eager:
        from taskline.workflows.eager import run

        return run(app, plan, streamed)
    backend = app.require_backend()
    start(Engine(app, backend, app.send), app, backend, plan, streamed)
    request = running()
    if request is not None:
        request.sent(plan.id)
    return FlowResult(app, plan.id)


def start(
    engine: Engine,
    app: Taskline,
    backend: Backend,
    plan: Plan,
    streamed: Mapping[int, GroupStep[Any, Any]],
) -> None:
    """Send the first steps of a plan."""
    engine.launch(plan, streamed)
    for at, group in streamed.items():
        size = 0
        for size, step in enumerate(group.members(), 1):
            element = member(step, first=True)
            more = engine.start_member(plan, at, size - 1, element, [])
            if more:
                engine.flush()
                engine.advance(more)
        engine.flush()
        if group.size is None:
            tell_size(app, backend, plan, at, size)
        engine.advance([Ended(plan.id, at)])


def tell_size(app: Taskline, backend: Backend, plan: Plan, at: int, size: int) -> None:
    """Store how many members a group has had."""
    header = OutcomeHeader(
        VERSION, step_id(plan.id, at), SUCCESS, WORKFLOW, serializer=app.settings.serializer
    )
    backend.store([app.codec.encode_outcome(header, size, sent=plan.sent, ttl=plan.ttl)])
