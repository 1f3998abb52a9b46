"""The workflows that the conformance suite runs, and the tasks that they are made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from taskline.app import Taskline
from taskline.context import current_task
from taskline.workflows import (
    Results,
    Step,
    chain,
    chord,
    chunks,
    each,
    group,
    starmap,
)
from taskline.workflows.compose import CHUNK


class Desk:
    """An app with some tasks that note what ran."""

    def __init__(self, app: Taskline) -> None:
        self.app = app
        self.ran: Counter[str] = Counter()
        """How often each step ran, by its id."""
        self.log: list[str] = []
        self.broken: set[str] = set()
        """The names of those that fail for now."""

        @app.task(name="add")
        def add(x: int, y: int) -> int:
            self.note("add")
            return x + y

        @app.task(name="total")
        def total(numbers: list[int]) -> int:
            self.note("total")
            return sum(numbers)

        @app.task(name="upto")
        def upto(number: int) -> list[int]:
            self.note("upto")
            return list(range(number))

        @app.task(name="step")
        def step(name: str) -> str:
            self.note(name)
            return name

        @app.task(name="after")
        def after(before: Any, name: str) -> str:
            self.note(name)
            return name

        @app.task(name="undo")
        def undo(name: str) -> None:
            self.note(f"undo {name}")

        @app.task(name="count")
        def count(values: list[Any]) -> str:
            self.note("count")
            failed = sum(isinstance(value, Exception) for value in values)
            return f"{len(values)} of which {failed} failed"

        @app.task(name="lazy")
        def lazy(values: Results[int]) -> str:
            self.note("lazy")
            return f"{type(values).__name__} {len(values)} {sum(values)} {values[0]} {values[-1:]}"

        self.add, self.total, self.upto = add, total, upto
        self.step, self.after, self.undo, self.count, self.lazy = step, after, undo, count, lazy

    def note(self, name: str) -> None:
        chunk = current_task.name == CHUNK  # which makes several calls in one run
        self.ran[f"{current_task.id} {len(self.log)}" if chunk else current_task.id] += 1
        self.log.append(name)
        if name in self.broken:
            raise ValueError(name)


def _canvas() -> dict[str, tuple[Callable[[Desk], Step[Any, Any]], Any]]:
    """What is started, and its value."""
    return {
        "one": (lambda d: d.add.s(1, 2) | d.add.s(3), 6),
        "hundred": (lambda d: chain([d.add.s(0, 0), *(d.add.s(1) for _ in range(99))]), 99),
        "named": (lambda d: d.add.s(1, 2) | d.add.s(10).into("y"), 13),
        "immutable": (lambda d: d.add.s(1, 2) | d.add.si(4, 5), 9),
        "group": (lambda d: group(d.add.s(1, n) for n in range(4)), [1, 2, 3, 4]),
        "chord": (lambda d: chord([d.add.s(n, n) for n in range(5)], d.total.s()), 20),
        "chord of one": (lambda d: chord([d.add.s(1, 1)], d.total.s()), 2),
        "empty": (lambda d: group([], app=d.app) | d.total.s(), 0),
        "iterator": (lambda d: chord((d.add.s(n, 0) for n in range(1100)), d.total.s()), 604450),
        "within": (
            lambda d: chain(
                d.add.s(1, 1), group(d.add.s(1), d.add.s(2), d.add.si(0, 0)), d.total.s()
            ),
            7,
        ),
        "nested": (
            lambda d: chord(
                [
                    d.add.s(1, 1) | d.add.s(1),
                    chord([d.add.s(1, 2), d.add.s(3, 4) | d.add.s(5)], d.total.s()),
                    d.add.s(0, 1) | group(d.add.s(1), d.add.s(2)) | d.total.s(),
                ],
                d.total.s(),
            ),
            23,
        ),
        "groups of groups": (
            lambda d: group(group(d.add.s(1, 1), d.add.s(2, 2)), group([d.add.s(3, 3)])),
            [[2, 4], [6]],
        ),
        "each": (lambda d: d.upto.s(4) | each(d.add.s(10)) | d.total.s(), 46),
        "each chain": (lambda d: d.upto.s(3) | each(d.add.s(1) | d.add.s(1)), [2, 3, 4]),
        "each of none": (lambda d: d.upto.s(0) | each(d.add.s(1)) | d.total.s(), 0),
        "each of each": (
            lambda d: d.upto.s(3) | each(d.upto.s() | each(d.add.s(1)) | d.total.s()),
            [0, 1, 3],
        ),
        "chunks": (
            lambda d: chunks(d.add, [(n, 1) for n in range(5)], 2),
            [[1, 2], [3, 4], [5]],
        ),
        "starmap": (lambda d: starmap(d.add, [(1, 2), (3, 4)]) | d.total.s(), 10),
        "lazy": (lambda d: d.upto.s(4) | each(d.add.s(1)) | d.lazy.s(), "Results 4 10 1 [4]"),
        "graph": (graph, {"side": 7, "last": 13}),
    }


def graph(desk: Desk) -> Step[Any, Any]:
    """A workflow of named steps."""
    flow = desk.app.workflow(name="graph")
    a = flow.step("a", desk.add.s(1, 2))
    b = flow.step("b", desk.add.s(4), takes=a)
    flow.step("side", desk.add.si(3, 4), after=a)
    c = flow.step("c", desk.upto.s(), takes=a)
    d = flow.step("d", desk.add.s(1), each=c)
    e = flow.step("e", desk.total.s(), takes=d, after=[b])
    flow.step("last", desk.add, named={"x": e, "y": b})
    return flow


CANVAS = _canvas()
