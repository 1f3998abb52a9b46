"""A workflow as text, as Mermaid and as Graphviz."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from taskline.errors import ConfigurationError
from taskline.message import FAILURE, PENDING, RETRY, REVOKED, STARTED, SUCCESS
from taskline.workflows.plan import Call, Each, Flow, Group, Node, step_id

if TYPE_CHECKING:
    from taskline.workflows.result import FlowResult

FORMS = ("text", "mermaid", "dot")

MARKS = {SUCCESS: "✓", FAILURE: "✗", REVOKED: "⊘", STARTED: "▶", RETRY: "↻", PENDING: "·"}
_COLOURS = {SUCCESS: "#b7e1b0", FAILURE: "#f2b8b5", STARTED: "#fff0b3", RETRY: "#ffd8a8"}
_WIDEST = 20
"""So many members of a group are drawn; of the others, how many there are."""


def draw(result: FlowResult[object], form: str) -> str:
    """The graph of a workflow in one of the `FORMS`; raises `ConfigurationError` for others."""
    if form not in FORMS:
        raise ConfigurationError(f"graph({form!r}): must be one of {', '.join(FORMS)}")
    plan = result.plan
    nodes = plan.flow.nodes
    ids = [step_id(plan.id, number) for number in range(len(nodes))]
    found = result.app.require_backend().fetch(ids)
    states = []
    for number, (key, node) in enumerate(zip(ids, nodes, strict=True)):
        if isinstance(node.step, Group):
            states.append(_of_group(result, number))
        else:
            states.append(found[key].state if key in found else PENDING)
    labels = [f"{node.name}: {_label(node)}" if node.name else _label(node) for node in nodes]
    if form == "text":
        return _text(result, nodes, labels, states)
    return _mermaid(nodes, labels, states) if form == "mermaid" else _dot(nodes, labels, states)


def _of_group(result: FlowResult[object], number: int) -> str:
    child = result[number]
    from taskline.workflows.result import GroupResult

    assert isinstance(child, GroupResult)
    if child.size is None:
        return STARTED
    some = [each.state for each in islice(child, _WIDEST)]
    if FAILURE in some:
        return FAILURE
    if all(state == SUCCESS for state in some) and child.completed() == child.size:
        return SUCCESS
    return PENDING if set(some) <= {PENDING} else STARTED


def _label(node: Node) -> str:
    step = node.step
    if isinstance(step, Call):
        return step.task
    if isinstance(step, Group):
        names = sorted({_of(member) for member in step.members}) or step.names
        return f"{'?' if step.size is None else step.size} x {', '.join(names)}"
    if isinstance(step, Each):
        return f"each x {_of(step.step)}"
    return _of(step)


def _of(step: Call | Flow) -> str:
    if isinstance(step, Call):
        return step.task
    return "(" + " → ".join(_label(node) for node in step.nodes) + ")"


def _text(
    result: FlowResult[object], nodes: list[Node], labels: list[str], states: list[str]
) -> str:
    lines = [f"{MARKS.get(result.state, '·')} workflow {result.id} {result.state}"]
    for number, node in enumerate(nodes):
        after = ""
        if node.after and node.after != [number - 1]:
            after = "  after " + ", ".join(nodes[each].name or str(each) for each in node.after)
        lines.append(f"  {MARKS.get(states[number], '·')} {number} {labels[number]}{after}")
    return "\n".join(lines)


def _mermaid(nodes: list[Node], labels: list[str], states: list[str]) -> str:
    lines = ["flowchart TD"]
    for number, label in enumerate(labels):
        text = label.replace('"', "'")
        lines.append(f'    s{number}["{text}<br>{states[number]}"]')
    for number, node in enumerate(nodes):
        lines += [f"    s{before} --> s{number}" for before in node.after]
    for number, state in enumerate(states):
        if state in _COLOURS:
            lines.append(f"    style s{number} fill:{_COLOURS[state]}")
    return "\n".join(lines)


def _dot(nodes: list[Node], labels: list[str], states: list[str]) -> str:
    lines = ["digraph workflow {", "    node [shape=box, style=filled, fillcolor=white];"]
    for number, label in enumerate(labels):
        text = label.replace("\\", "\\\\").replace('"', '\\"')
        colour = _COLOURS.get(states[number], "white")
        lines.append(f'    s{number} [label="{text}\\n{states[number]}", fillcolor="{colour}"];')
    for number, node in enumerate(nodes):
        lines += [f"    s{before} -> s{number};" for before in node.after]
    return "\n".join([*lines, "}"])
