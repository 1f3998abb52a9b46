"""`on_failure="compensate"`: what was done is undone, the last first.

The first failure sets a mark. Whoever finds the mark (the worker of the failed step, or of
one that ends later) gathers the steps that have ended well and writes down, unless it is
written already, in which order they are undone; then it starts that workflow, under an id
that follows from this one's. A step that ends too late to be in that order is undone by
itself. A step's outcome is stored before its worker looks for the mark, and the mark is
set before outcomes are gathered, so no step is missed, and the ids keep it from being undone twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import msgspec

from taskline.message import SUCCESS
from taskline.workflows.elements import bound
from taskline.workflows.inputs import CHUNK, value_of
from taskline.workflows.plan import (
    STOP,
    Call,
    Each,
    Flow,
    Group,
    Node,
    Plan,
    step_id,
    undo_id,
)

if TYPE_CHECKING:
    from taskline.workflows.advance import Engine


def is_failing(engine: Engine, plan: Plan) -> bool:
    """Whether the whole that this workflow is part of is being undone."""
    return engine.backend.keys().get(_mark(_root(engine, plan))) is not None


def compensate(engine: Engine, plan: Plan) -> None:
    """Undo what the whole has done. It may be called any number of times."""
    root = _root(engine, plan)
    keys = engine.backend.keys()
    keys.set(_mark(root), b"1", root.ttl, if_absent=True)
    order = _order(engine, root)
    calls = dict(_undoable(engine, root, root.flow, root.id))
    nodes: list[Node] = []
    for each in order:
        undo = bound(engine.app, calls[each], value_of(engine.app, each, {}))
        nodes.append(Node(undo, f"undo {each}", [len(nodes) - 1] if nodes else []))
    if nodes:
        _launch(engine, root, undo_id(root.id), nodes)


def undo_late(engine: Engine, plan: Plan, id: str, step: Call) -> None:
    """Undo a step that ended after the order was written."""
    root = _root(engine, plan)
    if step.undo is not None and id not in _order(engine, root):
        undo = bound(engine.app, step.undo, value_of(engine.app, id, {}))
        _launch(engine, root, undo_id(id), [Node(undo, f"undo {id}")])


def _launch(engine: Engine, root: Plan, id: str, nodes: list[Node]) -> None:
    engine.launch(
        msgspec.structs.replace(
            root,
            id=id,
            flow=Flow(nodes),
            policy=STOP,
            expires=None,
            name="compensation",
            parent=root.id,
            root=root.root or root.id,
        )
    )


def _order(engine: Engine, root: Plan) -> list[str]:
    """The steps that are undone one after the other, decided once."""
    keys, key = engine.backend.keys(), f"{_mark(root)}:order"
    written = keys.get(key)
    if written is None:
        ended: list[tuple[float, str]] = []
        steps = _undoable(engine, root, root.flow, root.id)
        while chunk := [each for each, _ in islice(steps, CHUNK)]:
            for each, outcome in engine.backend.fetch(chunk).items():
                if outcome.state == SUCCESS:
                    header, _ = engine.app.codec.open_outcome(outcome.frame)
                    ended.append((header.finished or 0.0, each))
        order = [each for _, each in sorted(ended, reverse=True)]
        keys.set(key, msgspec.json.encode(order), root.ttl, if_absent=True)
        written = keys.get(key)
    return [] if written is None else msgspec.json.decode(written, type=list[str])


def _undoable(engine: Engine, plan: Plan, flow: Flow, id: str) -> Iterator[tuple[str, Call]]:
    """The ids of all steps that have an undo, with it, those of workflows within included."""
    for number, node in enumerate(flow.nodes):
        step: Any = node.step
        own = step_id(id, number)
        if isinstance(step, (Call, Flow)):
            yield from _within(engine, plan, step, own)
        elif isinstance(step, Group):
            for index, member in enumerate(step.members):
                yield from _within(engine, plan, member, f"{own}-{index}")
        elif isinstance(step, Each):
            for index in range(engine.size_of(own) or 0):
                yield from _within(engine, plan, step.step, f"{own}-{index}")


def _within(engine: Engine, plan: Plan, step: Call | Flow, id: str) -> Iterator[tuple[str, Call]]:
    if isinstance(step, Flow):
        yield from _undoable(engine, plan, step, id)
    elif step.undo is not None:
        yield id, step.undo


def _root(engine: Engine, plan: Plan) -> Plan:
    while plan.up is not None:
        found = engine.plans.get([plan.up.id]).get(plan.up.id)
        if found is None:
            break
        plan = found
    return plan


def _mark(root: Plan) -> str:
    return f"taskline:undo:{root.id}"
