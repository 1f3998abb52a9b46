"""What can be told of a user's function: of which kind it is, its name, its annotations."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE, CO_GENERATOR, Parameter
from types import SimpleNamespace
from typing import Any, get_type_hints

POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
"""The kinds of parameters whose arguments may be given by their position, one each."""


def is_generator(function: Any) -> bool:
    """Whether it is a generator function, of either kind."""
    return bool(_flags(function) & (CO_GENERATOR | CO_ASYNC_GENERATOR))


def is_async(function: Any) -> bool:
    """Whether it is an `async def`, a generator or not."""
    return bool(_flags(function) & (CO_COROUTINE | CO_ASYNC_GENERATOR))


def gives_coroutine(function: Any) -> bool:
    """Whether a call gives a coroutine: an `async def`, or an object or task around one."""
    return getattr(function, "is_async", False) or bool(_flags(function) & CO_COROUTINE)


def name_of(function: Callable[..., Any]) -> str:
    """Its qualified name; of an object that can be called, its class's."""
    function = within_partial(function)
    return getattr(function, "__qualname__", None) or type(function).__qualname__


def within_partial(function: Any) -> Any:
    """The function in `functools.partial`."""
    while isinstance(function, partial):
        function = function.func
    return function


def hints_of(function: Callable[..., Any]) -> tuple[dict[str, Any], dict[str, Exception]]:
    """The function's type hints, and why the others could not be resolved, by name."""
    function = inspect.unwrap(within_partial(function))
    if not hasattr(function, "__annotations__"):
        function = type(function).__call__
    try:
        return get_type_hints(function, include_extras=True), {}
    except Exception:
        hints, problems = {}, {}
        for name, annotation in getattr(function, "__annotations__", {}).items():
            alone = SimpleNamespace(__annotations__={name: annotation})
            scope = getattr(function, "__globals__", {})
            try:
                hints.update(get_type_hints(alone, scope, include_extras=True))
            except Exception as error:
                problems[name] = error
        return hints, problems


def _flags(function: Any) -> int:
    function = within_partial(function)
    code = getattr(function, "__code__", None)
    if code is None and not isinstance(function, type):  # an object with __call__
        code = getattr(type(function).__call__, "__code__", None)
    return 0 if code is None else int(code.co_flags)
