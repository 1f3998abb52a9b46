"""Random graphs against a model, with a worker that dies at a random point."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

import hypothesis.strategies as st
from hypothesis import given, settings

from taskline import Taskline
from taskline.backends import memory as backends
from taskline.context import current_task
from taskline.message import FAILURE, SUCCESS, new_id
from taskline.testing.stepping import Fate, Hand, Killed
from taskline.transports import memory as transports

Node = tuple[list[int], list[int], bool]
"""Whose results a step takes, after whom it comes, and whether it fails."""


@st.composite
def graphs(draw: st.DrawFn) -> list[Node]:
    nodes: list[Node] = []
    for number in range(draw(st.integers(1, 7))):
        earlier = st.lists(st.integers(0, number - 1), max_size=3, unique=True)
        takes = draw(earlier) if number else []
        after = draw(earlier) if number else []
        nodes.append((takes, after, draw(st.integers(0, 5)) == 0))
    return nodes


def model(nodes: list[Node], policy: str) -> tuple[dict[int, int], set[int], str]:
    """The values of the steps that end well, all that run, and the state of the whole."""
    values: dict[int, int] = {}
    ran: set[int] = set()
    for number, (takes, after, fails) in enumerate(nodes):
        needed = takes if policy == "continue" else takes + after
        if not all(other in values for other in needed):
            continue
        ran.add(number)
        if not fails:
            values[number] = number + sum(values[other] for other in takes)
    awaited = {other for takes, after, _ in nodes for other in takes + after}
    sinks = [number for number in range(len(nodes)) if number not in awaited]
    asked = sinks if policy == "continue" else range(len(nodes))
    state = SUCCESS if all(number in values for number in asked) else FAILURE
    return values, ran, state


@settings(max_examples=120, deadline=None)
@given(
    graphs(),
    st.sampled_from(["stop", "continue"]),
    st.integers(0, 40),
    st.sampled_from(["before", "after"]),
)
def test_graphs(nodes: list[Node], policy: str, number: int, moment: str) -> None:
    logging.getLogger("taskline").setLevel(logging.CRITICAL)
    name = new_id()
    url = f"memory://{name}"
    app = Taskline("model", broker=url, backend=url)
    runs: Counter[str] = Counter()

    @app.task(name="work")
    def work(*values: int, number: int, fails: bool) -> int:
        runs[current_task.id] += 1
        if fails:
            raise ValueError(number)
        return number + sum(values)

    flow = app.workflow(on_failure=policy)
    for index, (takes, after, fails) in enumerate(nodes):
        step: Any = work.s(number=index, fails=fails)
        flow.step(str(index), step, takes=map(str, takes), after=map(str, after))
    result = flow.delay()
    victim = Hand(app, "victim", fate=Fate(number, moment))
    lost: set[str] = set()
    try:
        victim.work()
    except Killed:
        lost = victim.held
        victim.bury()
    Hand(app, "heir").work()

    values, ran, state = model(nodes, policy)
    assert result.state == state
    assert set(runs) == {f"{result.id}-{index}" for index in ran}
    assert {key for key, count in runs.items() if count > 1} <= lost
    for index, value in values.items():
        assert result[index].get(timeout=1) == value
    if state == SUCCESS:
        sinks = [i for i in range(len(nodes)) if not any(i in t + a for t, a, _ in nodes)]
        expected = {str(sink): values[sink] for sink in sinks}
        assert result.get(timeout=1) == (expected if len(sinks) > 1 else values[sinks[0]])
    app.close()
    transports.forget(name)
    backends.forget(name)
