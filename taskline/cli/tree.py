"""`taskline result --tree`: tasks with what they have sent, workflows with their steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from taskline.cli import output
from taskline.cli.options import as_json
from taskline.message import PENDING, SUCCESS
from taskline.workflows import FlowResult, GroupResult
from taskline.workflows.graph import MARKS

if TYPE_CHECKING:
    from taskline.result import AsyncResult

WIDEST = 100
"""So many members of a group, or children of a task, are shown."""


def show(results: Sequence[AsyncResult[Any]]) -> None:
    """Print these results with all below them."""
    for result in results:
        if as_json():
            output.json(_data(result))
            continue
        for line in _lines(result, ""):
            output.line(line)


def _lines(result: AsyncResult[Any], indent: str) -> Iterator[str]:
    if isinstance(result, FlowResult):
        for line in result.graph().splitlines():
            yield indent + line
        for child in result.children:
            if isinstance(child, GroupResult):
                members = islice(child, WIDEST) if child.size else ()
                for member in members:
                    if (
                        isinstance(member, FlowResult)
                        or member.state not in (SUCCESS, PENDING)
                        or member.children
                    ):
                        yield from _lines(member, indent + "    ")
            elif isinstance(child, FlowResult) or child.children:
                yield from _lines(child, indent + "    ")
        return
    state = result.state
    yield f"{indent}{MARKS.get(state, '·')} {result.info['task'] or 'task'} {result.id} {state}"
    for child in _children(result)[:WIDEST]:
        yield from _lines(child, indent + "  ")


def _children(result: AsyncResult[Any]) -> list[AsyncResult[Any]]:
    from taskline.cli.result import results_of

    return results_of(result.app, [each.id for each in result.children])


def _data(result: AsyncResult[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"id": result.id, "state": result.state}
    if isinstance(result, FlowResult):
        found["steps"] = [
            {
                "id": child.id,
                "name": node.name,
                "state": _state(child),
            }
            for node, child in zip(result.plan.flow.nodes, result.children, strict=True)
        ]
        return found
    found["task"] = result.info["task"]
    found["children"] = [_data(child) for child in _children(result)]
    return found


def _state(child: AsyncResult[Any] | GroupResult[Any]) -> str:
    if isinstance(child, GroupResult):
        size = child.size
        return PENDING if size is None else f"{child.completed()} of {size}"
    return child.state
