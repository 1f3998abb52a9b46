"""`chain`, `group`, `chord`, `each`, `chunks` and `starmap`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar, overload

from taskline.errors import ConfigurationError
from taskline.workflows.steps import Chain, EachStep, GroupStep, Start, Step, TaskStep

if TYPE_CHECKING:
    from taskline.app import Taskline
    from taskline.calls import Calls

CHUNK = "taskline.chunk"
"""The built-in task that makes many calls of one task."""

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
E = TypeVar("E")
F = TypeVar("F")
S = TypeVar("S")


@overload
def chain(a: Step[S, A], /) -> Step[S, A]: ...
@overload
def chain(a: Step[S, A], b: Step[A, B], /) -> Step[S, B]: ...
@overload
def chain(a: Step[S, A], b: Step[A, B], c: Step[B, C], /) -> Step[S, C]: ...
@overload
def chain(a: Step[S, A], b: Step[A, B], c: Step[B, C], d: Step[C, D], /) -> Step[S, D]: ...
@overload
def chain(
    a: Step[S, A], b: Step[A, B], c: Step[B, C], d: Step[C, D], e: Step[D, E], /
) -> Step[S, E]: ...
@overload
def chain(
    a: Step[S, A], b: Step[A, B], c: Step[B, C], d: Step[C, D], e: Step[D, E], f: Step[E, F], /
) -> Step[S, F]: ...
@overload
def chain(
    a: Step[S, A],
    b: Step[A, B],
    c: Step[B, C],
    d: Step[C, D],
    e: Step[D, E],
    f: Step[E, F],
    g: Step[F, Any],
    /,
    *more: Step[Any, Any],
) -> Step[S, Any]: ...
@overload
def chain(steps: Iterable[Step[Any, Any]], /) -> Step[Any, Any]: ...
def chain(*steps: Any) -> Step[Any, Any]:
    """One step after the other, each with the result of the one before it. Also `a | b`."""
    return Chain(_given(steps))


@overload
def group(steps: Iterable[Step[S, A]], /, *, app: Taskline | None = None) -> Step[S, list[A]]: ...
@overload
def group(*steps: Step[S, A], app: Taskline | None = None) -> Step[S, list[A]]: ...
def group(*steps: Any, app: Taskline | None = None) -> Step[Any, list[Any]]:
    """Steps side by side; its result is the list of theirs, in order.

    An iterator's members are made and sent a thousand at a time when the group is
    the first step of what is started. An empty group needs its `app`.
    """
    if len(steps) == 1 and not isinstance(steps[0], Step):
        return GroupStep(steps[0], app)
    return GroupStep(steps, app)


def chord(
    header: Step[S, list[A]] | Iterable[Step[S, A]], callback: Step[list[A], B]
) -> Step[S, B]:
    """Steps side by side, then one with the list of their results: `group(...) | callback`."""
    return Chain([header if isinstance(header, Step) else GroupStep(header), callback])


def each(step: Step[A, B], /) -> Step[Iterable[A], list[B]]:
    """A step for each item of the result before it, which is not known yet."""
    return EachStep(step)


def starmap(task: Calls[..., A], iterable: Iterable[Sequence[Any]], /) -> Step[Start, list[A]]:
    """A group of one task's calls, each with a sequence of positional arguments."""
    if isinstance(iterable, Sequence):
        return GroupStep([task.si(*args) for args in iterable], task.app)
    return GroupStep((task.si(*args) for args in iterable), task.app)


def chunks(
    task: Calls[..., A], iterable: Iterable[Sequence[Any]], size: int, /
) -> Step[Start, list[list[A]]]:
    """As `starmap`, but with `size` calls in each message, which one slot makes in turn.

    Its result is a list of lists. Should one of the calls fail, so does its whole chunk.
    """
    if size < 1:
        raise ConfigurationError(f"size={size!r}: a chunk has at least one call")
    return GroupStep(_chunks(task, iterable, size), task.app)


def _chunks(
    task: Calls[..., Any], iterable: Iterable[Sequence[Any]], size: int
) -> Iterator[Step[Start, Any]]:
    items = iter(iterable)
    while some := [list(args) for args in islice(items, size)]:
        for args in some:
            if task._signature is not None:
                task._signature.check(args, {})
        call = (task.name, some)
        yield TaskStep(task.app, CHUNK, None, task._options, call, {}, immutable=True)


def _given(steps: tuple[Any, ...]) -> Sequence[Step[Any, Any]]:
    if len(steps) == 1 and not isinstance(steps[0], Step):
        steps = tuple(steps[0])
    for step in steps:
        if not isinstance(step, Step):
            raise ConfigurationError(
                f"{step!r} is no step of a workflow: give task.s(...), not a task or its result"
            )
    return steps
