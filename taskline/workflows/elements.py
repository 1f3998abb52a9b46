"""The parts that plans are made of: how they take a value, and how a value is put into them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from taskline.errors import InvalidArguments
from taskline.message import VERSION, Header
from taskline.workflows.plan import Call, Each, Flow, Group, Node

if TYPE_CHECKING:
    from taskline.app import Taskline


def node(element: Call | Group | Each | Flow, after: list[int]) -> Node:
    """The node of a step in a chain, after at most one other."""
    take: list[tuple[str | None, int]] = []
    source = after[0] if after else -1
    if isinstance(element, Call):
        take = [(element.into, source)] if element.takes else []
    elif takes(element):
        take = [(None, source)]
    return Node(element, after=after, take=take)


def group_of(members: list[Call | Flow]) -> Group:
    """A group whose members are in the plan."""
    flows = [number for number, each in enumerate(members) if isinstance(each, Flow)]
    return Group(members, len(members), flows)


def takes(element: Call | Group | Each | Flow) -> bool:
    """Whether an element of a plan takes a result."""
    if isinstance(element, Call):
        return element.takes
    if isinstance(element, Group):
        return any(map(takes, element.members))
    if isinstance(element, Each):
        return True
    return any(source == -1 for each in element.nodes for _, source in each.take)


def bound(app: Taskline, element: Any, value: Any) -> Any:
    """An element of a plan with `value` for what it takes."""
    change = msgspec.structs.replace
    if isinstance(element, Call):
        if not element.takes:
            return element
        header = Header(VERSION, "", element.task, "", 0.0, element.options.serializer)
        header.compression = element.compression
        args, kwargs = app.codec.arguments(header, element.body)
        if element.into is None:
            args = (value, *args)
        else:
            kwargs[element.into] = value
        body = app.codec.dump(header, (args, kwargs))
        return change(element, body=body, compression=header.compression, takes=False)
    if isinstance(element, Group):
        return change(element, members=[bound(app, each, value) for each in element.members])
    if isinstance(element, Each):
        if not isinstance(value, Iterable) or isinstance(value, (str, bytes, Mapping)):
            raise InvalidArguments(f"each() needs a list to go through, not {value!r:.80}")
        return group_of([bound(app, element.step, item) for item in value])
    nodes = []
    for each in element.nodes:
        if any(source == -1 for _, source in each.take):
            take = [pair for pair in each.take if pair[1] != -1]
            each = change(each, step=bound(app, each.step, value), take=take)
        nodes.append(each)
    return Flow(nodes)


def without(element: Any) -> Any:
    """An element of a plan that takes nothing, for the first place of a workflow."""
    change = msgspec.structs.replace
    if isinstance(element, Call):
        return change(element, takes=False)
    if isinstance(element, Group):
        return change(element, members=[without(each) for each in element.members])
    if isinstance(element, Each):
        raise InvalidArguments("each() needs a list to go through: start it with one")
    first = [
        change(each, step=without(each.step), take=[pair for pair in each.take if pair[1] != -1])
        if any(source == -1 for _, source in each.take)
        else each
        for each in element.nodes
    ]
    return Flow(first)
