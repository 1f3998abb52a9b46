"""What references stand for: results, read from the backend when they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from types import UnionType
from typing import TYPE_CHECKING, Any, TypeVar, Union, get_args, get_origin, overload

from taskline.errors import NoResult
from taskline.message import FINAL_STATES, SUCCESS, Outcome, Place
from taskline.result import exception_of

if TYPE_CHECKING:
    from taskline.app import Taskline
    from taskline.task import Task

R = TypeVar("R", covariant=True)

CHUNK = 1000
"""How many results are read at once."""


class Results(Sequence[R]):
    """The results of a group, read a thousand at a time as one goes through them.

    A task that declares `Results[int]` for what it takes gets one, and never has all
    of a great group in memory; one that declares `list[int]` gets a list. A member that
    failed, which only `on_failure="continue"` lets pass, is its exception.
    """

    def __init__(self, app: Taskline, id: str, size: int) -> None:
        self._app = app
        self._id = id
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[R]:
        for first in range(0, self._size, CHUNK):
            last = min(first + CHUNK, self._size)
            ids = [f"{self._id}-{number}" for number in range(first, last)]
            found = self._app.require_backend().fetch(ids)
            for each in ids:
                yield value_of(self._app, each, found)

    @overload
    def __getitem__(self, index: int) -> R: ...
    @overload
    def __getitem__(self, index: slice) -> list[R]: ...
    def __getitem__(self, index: int | slice) -> Any:
        numbers = range(self._size)[index]
        if isinstance(numbers, int):
            return value_of(self._app, f"{self._id}-{numbers}", {})
        return [value_of(self._app, f"{self._id}-{number}", {}) for number in numbers]

    def __repr__(self) -> str:
        return f"<Results {self._id} of {self._size}>"


def load(app: Taskline, reference: Any, known: Mapping[str, Outcome]) -> Any:
    """The value of a reference, or a mapping of names to such; a list of many as `Results`.

    `known` has outcomes that were read already. Raises `NoResult` for one that is gone,
    and the exception of a task that failed.
    """
    if isinstance(reference, str):
        value = value_of(app, reference, known)
        if isinstance(value, Exception):
            raise value
        return value
    if isinstance(reference, dict):
        return {name: whole(load(app, each, known)) for name, each in reference.items()}
    first, size = reference
    return Results(app, first, size)


def whole(value: Any) -> Any:
    """The value, with a list for a `Results`."""
    return list(value) if isinstance(value, Results) else value


def value_of(app: Taskline, id: str, known: Mapping[str, Outcome]) -> Any:
    """The value of a task or workflow that has ended; its exception when it has failed."""
    outcome = known.get(id) or app.require_backend().fetch([id]).get(id)
    if outcome is None or outcome.state not in FINAL_STATES:
        raise NoResult(
            f"the result of {id}, which is needed here, is gone: start the workflow with a "
            "longer keep="
        )
    header, body = app.codec.open_outcome(outcome.frame)
    if header.state != SUCCESS:
        return exception_of(header)
    if header.refers is not None:
        return whole(load(app, header.refers, known))
    value = app.codec.loads(header, body)
    task = app.tasks.get(header.task)
    return value if task is None else task.signature.convert_result(value)


def completed(
    app: Taskline,
    task: Task[..., Any],
    place: Place,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    known: Mapping[str, Outcome],
) -> tuple[Sequence[Any], dict[str, Any]]:
    """The arguments of a step with the results that it takes."""
    first: list[Any] = []
    for name, reference in place.take:
        value = load(app, reference, known)
        if isinstance(value, Results):
            parameter = _positional(task, len(first)) if name is None else name
            if parameter not in _lazy(task.function):
                value = list(value)
        if name is None:
            first.append(value)
        else:
            kwargs[name] = value
    return ([*first, *args] if first else args), kwargs


def _positional(task: Task[..., Any], index: int) -> str:
    names = list(task.signature.signature.parameters)
    return names[index] if index < len(names) else ""


@lru_cache(maxsize=1024)
def _lazy(function: Any) -> frozenset[str]:
    """The parameters that are annotated with `Results`."""
    from taskline.functions import hints_of

    hints, _ = hints_of(function)
    return frozenset(name for name, hint in hints.items() if _is_lazy(hint))


def _is_lazy(hint: Any) -> bool:
    if get_origin(hint) in (Union, UnionType):
        return any(map(_is_lazy, get_args(hint)))
    return hint is Results or get_origin(hint) is Results
