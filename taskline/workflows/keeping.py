"""What a workflow has stored, and for how long."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

from taskline.workflows.plan import Call, Each, Flow, Plan, plan_id, step_id

if TYPE_CHECKING:
    from taskline.workflows.advance import Engine

LEAST = 60.0
"""Seconds for which the results of a workflow are kept after its end at least."""

_BATCH = 1000


def let_expire(engine: Engine, plan: Plan) -> None:
    """At the end of the whole: nobody waits for its results but readers, as for those of tasks."""
    ttl = max(engine.app.settings.result_ttl, LEAST)
    if ttl < plan.ttl:
        ids = stored(engine, plan.flow, plan.id)
        while some := list(islice(ids, _BATCH)):
            engine.backend.expire(some, ttl)


def stored(engine: Engine, flow: Flow, id: str) -> Iterator[str]:
    """The ids of all that a workflow has stored.

    But for what is in workflows that are members of a group which its caller sent by itself.
    """
    yield from (id, plan_id(id))
    for number, node in enumerate(flow.nodes):
        own, step = step_id(id, number), node.step
        if isinstance(step, Flow):
            yield from stored(engine, step, own)
            continue
        yield own
        if isinstance(step, Call):
            continue
        size = engine.size_of(own) if isinstance(step, Each) or step.size is None else step.size
        for member in range(size or 0):
            if isinstance(step, Each):
                kind: Call | Flow | None = step.step
            else:
                kind = step.members[member] if step.members else None
            key = f"{own}-{member}"
            yield from stored(engine, kind, key) if isinstance(kind, Flow) else (key,)
