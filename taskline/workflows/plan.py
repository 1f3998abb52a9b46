"""What a workflow is made of, once it has been started: steps, and who waits for whom.

A plan is stored once, under `ID:plan` in the result backend, and never changes. A workflow
F has steps 0, 1, …: step k is the task of id `F-k`, the members of a group are `F-k-0`,
`F-k-1`, …, and a member or step that is itself a workflow has that id and a plan of its own.
The end of the whole is an outcome of its own, of id F. Since all ids follow from the
plan, whoever starts a step twice gives it the same id.

A reference names a result: an id, or `[id, n]` for the list of `id-0` to `id-(n-1)`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from taskline.message import FAILURE, PENDING, SUCCESS, VERSION, Outcome, OutcomeHeader
from taskline.options import CallOptions

if TYPE_CHECKING:
    from taskline.app import Taskline
    from taskline.backends.base import Backend
    from taskline.codec import Codec

STOP, CONTINUE, COMPENSATE = "stop", "continue", "compensate"
POLICIES = (STOP, CONTINUE, COMPENSATE)

KEEP = 7 * 86_400.0
"""Seconds for which what a workflow stores is kept at least."""

INPUT = -1
"""In `Node.take`: what the whole workflow was given."""

WORKFLOW = "taskline.workflow"
"""What stands for the task's name in the outcomes of whole workflows."""

_CACHED = 512


class Call(msgspec.Struct, tag="call", omit_defaults=True, frozen=True):
    """One call of a task, encoded as its message will carry it."""

    task: str
    body: bytes
    options: CallOptions
    compression: str = ""
    takes: bool = True
    """Whether it takes the result of the step before it."""
    into: str | None = None
    """The parameter that takes it; None for the first."""
    undo: Call | None = None


class Group(msgspec.Struct, tag="group", omit_defaults=True, frozen=True):
    """Steps side by side. `members` is empty when the caller sends them by itself."""

    members: list[Call | Flow] = []
    size: int | None = None
    """None when it is known only once all have been sent: then it is the outcome of the step."""
    flows: list[int] | None = []
    """Which members are workflows themselves; None for all."""
    names: list[str] = []
    """Some of the tasks of members that are not in the plan, for `graph()`."""


class Each(msgspec.Struct, tag="each", omit_defaults=True, frozen=True):
    """The same step for each item of a result that is not known before."""

    step: Call | Flow


class Node(msgspec.Struct, omit_defaults=True, frozen=True):
    """One step, and what it waits for."""

    step: Call | Group | Each | Flow
    name: str = ""
    after: list[int] = []
    """The numbers of the steps that must have ended before."""
    take: list[tuple[str | None, int]] = []
    """Whose results it takes: as which parameter (None: the next positional one), and of
    which step, or `INPUT`."""


class Flow(msgspec.Struct, tag="flow", omit_defaults=True, frozen=True):
    """Some steps that make a whole. Steps come after those that they wait for."""

    nodes: list[Node]

    @property
    def sinks(self) -> list[int]:
        """The steps that nobody waits for: when they have ended, the whole has."""
        awaited = {number for node in self.nodes for number in node.after}
        return [number for number in range(len(self.nodes)) if number not in awaited]

    def following(self, number: int) -> list[int]:
        """The steps that wait for this one."""
        return [later for later, node in enumerate(self.nodes) if number in node.after]


class Up(msgspec.Struct, omit_defaults=True, frozen=True):
    """Where in a greater workflow this one is a step."""

    id: str
    at: int
    member: int | None = None


class Plan(msgspec.Struct, omit_defaults=True, frozen=True):
    """A workflow that was started. Times are Unix seconds, `ttl` seconds."""

    id: str
    flow: Flow
    sent: float
    ttl: float = KEEP
    policy: str = STOP
    expires: float | None = None
    up: Up | None = None
    input: Any = None
    """The reference to what it was given, where it is a step that takes something."""
    name: str = ""
    parent: str | None = None
    """The task that started it."""
    root: str | None = None

    def reference(self, number: int, size: int | None = None) -> Any:
        """The reference to a step's result; `size` is that of a group."""
        each = step_id(self.id, number)
        return each if isinstance(self.flow.nodes[number].step, (Call, Flow)) else [each, size]


def step_id(flow: str, number: int, member: int | None = None) -> str:
    """The id of a step, or of a member of one."""
    return f"{flow}-{number}" if member is None else f"{flow}-{number}-{member}"


def undo_id(id: str) -> str:
    """The id of the workflow that undoes a workflow or a step."""
    return f"{id}:undo"


def plan_id(flow: str) -> str:
    """Under which id the plan of a workflow is stored."""
    return f"{flow}:plan"


def encode(plan: Plan, codec: Codec, serializer: str) -> Outcome:
    """The plan as a backend keeps it."""
    header = OutcomeHeader(VERSION, plan_id(plan.id), SUCCESS, WORKFLOW, serializer=serializer)
    value = msgspec.to_builtins(plan)
    return codec.encode_outcome(header, value, sent=plan.sent, ttl=plan.ttl)


def end_of(
    codec: Codec, serializer: str, plan: Plan, state: str, generation: int, **known: Any
) -> Outcome:
    """The outcome of a whole workflow. `known` are fields of `OutcomeHeader`."""
    header = OutcomeHeader(
        VERSION,
        plan.id,
        state,
        plan.name or WORKFLOW,
        serializer=serializer,
        deliveries=generation,
        started=plan.sent,
        parent=plan.parent,
        root=plan.root,
        **known,
    )
    return codec.encode_outcome(header, None, sent=plan.sent, ttl=plan.ttl)


def failures_key(flow: str, generation: int) -> str:
    """The counted set of the tasks that have failed; a new one once some were resumed."""
    return f"{flow}!{generation}"


class Plans:
    """Reads plans, and remembers the last ones: they never change. For one thread."""

    def __init__(self, backend: Backend, codec: Codec) -> None:
        self._backend = backend
        self._codec = codec
        self._known: OrderedDict[str, Plan] = OrderedDict()

    def add(self, plan: Plan) -> None:
        """Remember a plan that was just made."""
        self._known[plan.id] = plan
        while len(self._known) > _CACHED:
            self._known.popitem(last=False)

    def get(self, ids: Collection[str]) -> dict[str, Plan]:
        """The plans of these workflows, without those that are gone."""
        missing = [each for each in ids if each not in self._known]
        found = {each: self._known[each] for each in ids if each in self._known}
        for each in found:
            self._known.move_to_end(each)
        for plan in read(self._backend, self._codec, missing) if missing else ():
            found[plan.id] = plan
            self.add(plan)
        return found


def read(backend: Backend, codec: Codec, ids: Sequence[str]) -> list[Plan]:
    """The stored plans of these workflows; raises `SerializationError`."""
    plans = []
    for outcome in backend.fetch([plan_id(each) for each in ids]).values():
        header, body = codec.open_outcome(outcome.frame)
        plans.append(msgspec.convert(codec.loads(header, body), Plan, strict=False))
    return plans


def reopen(app: Taskline, backend: Backend, flows: Collection[str]) -> None:
    """Let these workflows, and those that they are part of, be unfinished again.

    For a failed step that was sent again. What has succeeded, or is being undone, stays.
    """
    while flows:
        plans = read(backend, app.codec, list(flows))
        found = backend.fetch([plan.id for plan in plans])
        ends = []
        for plan in plans:
            end = found.get(plan.id)
            if end is not None and end.state == FAILURE and plan.policy != COMPENSATE:
                generation = end.deliveries + 1
                serializer = app.settings.serializer
                ends.append(end_of(app.codec, serializer, plan, PENDING, generation))
        backend.store(ends)
        flows = {plan.up.id for plan in plans if plan.up is not None}
