"""Durable tasks: the results of finished steps are kept, and a further run goes on after them.

Each step of a task has a key of its own in the backend's key store, a frame that is
signed where the app signs. The first result that is stored is the step's, so that two
runs at a time (one of which has lost its lease) agree.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from taskline.context import Request, require, running
from taskline.conversion import conversion
from taskline.errors import ConfigurationError, MessageRefused, SerializationError, TasklineError
from taskline.failures import error_line
from taskline.functions import gives_coroutine
from taskline.message import VERSION, Header
from taskline.options import identifier

if TYPE_CHECKING:
    from taskline.app import Taskline

P = ParamSpec("P")
R = TypeVar("R")

KEPT = 30 * 86_400.0
"""Seconds for which steps are kept while the task has not succeeded: time enough to mend
what failed, and requeue it."""
KEPT_AFTER_SUCCESS = 3600.0
"""Seconds for which they are kept after that: the outcome is stored later than this is set."""

STEP = "taskline.step"
"""The task's name in a stored step's frame."""


class Steps:
    """The steps of one run of a durable task."""

    def __init__(self, app: Taskline, request: Request) -> None:
        self._app = app
        self._request = request
        self._names: set[str] = set()

    def enter(self, name: str) -> None:
        """Note that a step begins; raises `TasklineError` when this run has had it."""
        identifier("step", name)
        if name in self._names:
            raise TasklineError(
                f"step {name!r} comes twice in this run of {self._request.name}: "
                "give each its own name, in a loop with its number"
            )
        self._names.add(name)

    def recall(self, name: str, function: Any) -> tuple[bool, Any]:
        """Whether the step has ended before, and its result then."""
        app = self._app
        if app.settings.backend is None:  # eager: nothing outlives the run
            return False, None
        frame = self._keys().get(self._key(name))
        return (False, None) if frame is None else (True, self._read(name, frame, function))

    def keep(self, name: str, function: Any, value: Any) -> Any:
        """Store a step's result; returns the one that holds, another run's if that was first."""
        app, request = self._app, self._request
        if app.settings.backend is None:
            return value
        header = Header(VERSION, request.id, STEP, name, app.now(), request.header.serializer)
        try:
            frame = app.codec.encode(header, value).frame
        except SerializationError as error:
            raise SerializationError(
                f"the result of step {name!r}, a {type(value).__qualname__}, "
                f"cannot be kept: {error}"
            ) from None
        key = self._key(name)
        if self._keys().set(key, frame, KEPT, if_absent=True):
            return value
        return self.recall(name, function)[1]

    def finish(self) -> None:
        """The task has returned: let the steps end soon."""
        if self._app.settings.backend is not None:
            keys = self._keys()
            for name in self._names:
                keys.expire(self._key(name), KEPT_AFTER_SUCCESS)

    def _keys(self) -> Any:
        return self._app.require_backend().keys()

    def _key(self, name: str) -> str:
        return f"taskline.step:{self._request.id}:{name}"

    def _read(self, name: str, frame: bytes, function: Any) -> Any:
        codec = self._app.codec
        header, body = codec.open(frame)
        if (header.id, header.task, header.queue) != (self._request.id, STEP, name):
            raise MessageRefused(f"what is kept of step {name!r} is another step's")
        value = codec.loads(header, body)
        wanted = _returns(function)
        try:
            return value if wanted is None else wanted.convert(value)
        except Exception as error:
            raise SerializationError(
                f"step {name!r} was kept as {value!r:.100}, which is not what it returns now: "
                f"{error_line(error)}"
            ) from error


_steps: ContextVar[Steps | None] = ContextVar("taskline_steps", default=None)


@overload
def step(
    name: str, function: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs
) -> Coroutine[Any, Any, R]: ...
@overload
def step(name: str, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
def step(name: str, function: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Run `function` once for this task, however often the task is run: a step.

        @app.task(durable=True, retry=5)
        def order(id: int) -> str:
            payment = step("pay", charge, id)
            return step("ship", ship, id, payment)

    When the step has ended in an earlier run, its result is returned and `function` is not
    called. It may run more than once if the worker dies while it runs. A result must be
    what the task's serializer can write; it comes back as `function` is annotated. In a
    coroutine, `await step(name, coroutine_function, ...)`. Where no task runs, it only
    calls the function.

    Raises `TasklineError` for a name that this run has used or that has blanks, and in a
    task that is not declared with `durable=True`.
    """
    steps = _steps.get()
    if gives_coroutine(function):
        return _run_async(steps, name, function, args, kwargs)
    if steps is None:
        _refuse_in_task(name)
        return function(*args, **kwargs)
    steps.enter(name)
    known, value = steps.recall(name, function)
    return value if known else steps.keep(name, function, function(*args, **kwargs))


async def _run_async(steps: Steps | None, name: str, function: Any, args: Any, kwargs: Any) -> Any:
    if steps is None:
        _refuse_in_task(name)
        return await function(*args, **kwargs)
    import asyncio

    steps.enter(name)
    known, value = await asyncio.to_thread(steps.recall, name, function)
    if known:
        return value
    value = await function(*args, **kwargs)
    return await asyncio.to_thread(steps.keep, name, function, value)


def _refuse_in_task(name: str) -> None:
    request = running()
    if request is not None:
        raise TasklineError(
            f"step {name!r}: the task {request.name} keeps no steps: declare it with durable=True"
        )


def keeping_steps(app: Taskline, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with a place for its steps while it runs. A coroutine function stays one."""
    if app.settings.backend is None and not app.settings.eager:
        raise ConfigurationError(
            f"durable=True: the app {app.name} has no result backend, which keeps the steps: give "
            'it one, such as Taskline(..., backend="sqlite:///shop.db")'
        )
    if gives_coroutine(function):

        async def run_async(*args: Any, **kwargs: Any) -> Any:
            import asyncio

            steps = Steps(app, require())
            token = _steps.set(steps)
            try:
                value = await function(*args, **kwargs)
            finally:
                _steps.reset(token)
            await asyncio.to_thread(steps.finish)
            return value

        return run_async
    return partial(_run, app, function)


def _run(app: Taskline, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    steps = Steps(app, require())
    token = _steps.set(steps)
    try:
        value = function(*args, **kwargs)
    finally:
        _steps.reset(token)
    steps.finish()
    return value


def _returns(function: Any) -> Any:
    """The conversion to what a function is annotated to return; None where nothing is said."""
    import typing

    try:
        hint = typing.get_type_hints(getattr(function, "__wrapped__", function)).get("return")
        return None if hint is None else conversion(hint)
    except (TypeError, NameError):  # an object without annotations, or a name not known here
        return None
