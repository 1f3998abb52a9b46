"""`app.submit`: a function that is no task travels with its message, by cloudpickle."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from taskline.errors import ConfigurationError

if TYPE_CHECKING:
    from taskline.app import Taskline
    from taskline.task import Task

CALL = "taskline.call"
"""The task that runs a function which came with its message."""


def register(app: Taskline) -> None:
    """Give the app that task, where its settings accept such messages."""
    if "cloudpickle" in app.settings.accept:
        app.task(name=CALL, serializer="cloudpickle")(_call)


def task_of(app: Taskline) -> Task[..., Any]:
    """The app's task; raises `ConfigurationError` where it has none."""
    task = app.tasks.get(CALL)
    if task is None:
        raise ConfigurationError(
            f"submit() sends code: set accept={[*app.settings.accept, 'cloudpickle']!r} and "
            f"signing_key=..., or accept_unsigned=True if all who reach the broker are trusted"
        )
    return task


def _call(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    value = function(*args, **kwargs)
    if isinstance(value, Coroutine):
        import asyncio

        return asyncio.run(value)
    return value
