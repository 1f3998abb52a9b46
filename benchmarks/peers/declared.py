"""What peers share whose tasks are declared by `@app.task(name=…)` and called by `.delay()`."""

from __future__ import annotations

from typing import Any

from common import Peer, marks


def noop() -> int:
    return marks.tick()


def late(sent: float) -> None:
    marks.late(sent)


def echo(number: int) -> int:
    return number


def one() -> int:
    return 1


def more(number: int) -> int:
    return number + 1


def total(numbers: list[int]) -> int:
    return sum(numbers)


class Declared(Peer):
    """`module` is the one that has the app, in which the worker looks for it."""

    def __init__(self, module: str, app: Any) -> None:
        self.module = module
        self.app = app
        self.noop, self.late, self.echo = map(self.declare, (noop, late, echo))
        self.one, self.more, self.total = map(self.declare, (one, more, total))

    def declare(self, function: Any) -> Any:
        """The task of a function."""
        return self.app.task(name=f"{self.module}.{function.__name__}")(function)

    def send_noop(self) -> object:
        return self.noop.delay()

    def send_late(self, sent: float) -> object:
        return self.late.delay(sent)

    def round_trip(self, number: int) -> int:
        result: int = self.echo.delay(number).get(timeout=60)
        return result
