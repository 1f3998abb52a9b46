"""Batch tasks: one call of the function for the arguments of many messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter
from typing import TYPE_CHECKING, Any, get_args

from taskline.errors import ConfigurationError, TasklineError
from taskline.functions import POSITIONAL, hints_of
from taskline.signature import TaskSignature

if TYPE_CHECKING:
    from taskline.task import Task

LARGEST = 10_000
"""Messages of one run, at most."""


def check(batch: object, ack: str) -> None:
    """Raise `ConfigurationError` for wrong options of a batch task."""
    if type(batch) is not int or not 1 <= batch <= LARGEST:
        raise ConfigurationError(f"batch={batch!r}: must be a whole number from 1 to {LARGEST}")
    if ack == "early":
        raise ConfigurationError('batch= and ack="early" exclude each other: leave one out')


class ItemSignature(TaskSignature):
    """The signature of one call of a batch task: one argument, an item of the function's list."""

    def __init__(self, function: Callable[..., Any], bind: bool) -> None:
        whole = TaskSignature(function, bind)
        parameters = list(whole.signature.parameters.values())
        if len(parameters) != 1 or parameters[0].kind not in POSITIONAL:
            raise ConfigurationError(
                f"{whole.name}{whole}: a batch task takes one argument, the list of its calls' "
                "items, such as `def index(documents: list[Document])`"
            )
        self._whole = function
        self._name = parameters[0].name

        def item(*args: Any) -> None: ...

        item.__name__ = whole.name
        item.__doc__ = function.__doc__
        own = parameters[0].replace(annotation=Parameter.empty)
        item.__signature__ = whole.signature.replace(  # type: ignore[attr-defined]
            parameters=[own], return_annotation=Parameter.empty
        )
        super().__init__(item, False)
        self.depends = whole.depends

    def _hints(self) -> tuple[dict[str, Any], dict[str, Exception]]:
        hints, problems = hints_of(self._whole)
        return {name: _element(hint) for name, hint in hints.items()}, problems

    def item(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The item of one call's arguments."""
        return args[0] if args else kwargs[self._name]


def item_of(task: Task[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The item of one call's arguments."""
    assert isinstance(task.signature, ItemSignature)
    return task.signature.item(args, kwargs)


def one_by_one(task: Task[..., Any]) -> Callable[..., Any]:
    """What runs a single call: the function with a list of one."""

    def run(*args: Any, **kwargs: Any) -> Any:
        if task.bind:
            args = args[1:]
        return _single(task.name, task.call_batch([item_of(task, args, kwargs)]))

    async def run_async(*args: Any, **kwargs: Any) -> Any:
        if task.bind:
            args = args[1:]
        return _single(task.name, await task.call_batch([item_of(task, args, kwargs)]))

    return run_async if task.is_async else run


def results_of(name: str, values: Any, count: int) -> Sequence[Any]:
    """The results of so many calls in what a batch task returned; None stands for a None each.

    Raises `TasklineError` when it is something else.
    """
    if values is None:
        return [None] * count
    if isinstance(values, (list, tuple)) and len(values) == count:
        return values
    what = f"{len(values)} results" if isinstance(values, (list, tuple)) else repr(values)[:100]
    raise TasklineError(
        f"the batch task {name} returned {what} for {count} calls: return a list with a result "
        "or an exception for each, or None"
    )


def _single(name: str, values: Any) -> Any:
    (value,) = results_of(name, values, 1)
    if isinstance(value, Exception):
        raise value
    return value


def _element(hint: Any) -> Any:
    """The annotation of a list's elements; anything where it is none."""
    if hint is None or hint is type(None):
        return None
    parts = [part for part in get_args(hint) if part is not Ellipsis]
    return parts[0] if len(parts) == 1 else Any
