"""Code of your own around sending, running and ending: `Middleware`, and who calls it.

A method that a middleware does not override costs nothing. `before_*` methods
and starts are called in the order in which the middleware was added, all others in the
reverse. `before_send` and `before_run` may raise: the first to the caller, the second
as if the task had (`Ignore`, `Reject` and `Retry` included). What any other raises
is logged, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from taskline.errors import ConfigurationError

if TYPE_CHECKING:
    from taskline.app import Taskline
    from taskline.context import Request
    from taskline.message import DeadLetter, Header


class Middleware:
    """Override what you need; each method may be an `async def` as well.

    Those of a run are called in the task's own thread, or awaited in its event loop,
    with `current_task` set. `before_receive`, `after_receive` and `starvation` are called by the
    thread that talks to the broker: they must be quick.
    """

    # Sending

    def before_send(self, header: Header, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """A message is about to be made. `header.headers` and `header.trace` may be changed."""

    def after_send(self, headers: Sequence[Header]) -> Any:
        """These messages are stored."""

    # Receiving

    def before_receive(self, queues: Sequence[str], limit: int) -> Any:
        """The worker asks for up to `limit` messages."""

    def after_receive(self, headers: Sequence[Header]) -> Any:
        """These messages were received, and may run."""

    def starvation(self, seconds: float) -> Any:
        """Nothing has come for `seconds`; again each time that the worker's `starvation` passes."""

    # Running

    def before_run(self, request: Request) -> Any:
        """A run is about to begin: its arguments are converted."""

    def after_run(self, request: Request, error: BaseException | None) -> Any:
        """The task's code has returned, or has raised `error`."""

    def success(self, request: Request, value: Any) -> Any:
        """The task returned a value, which is about to be stored."""

    def failure(self, request: Request, error: BaseException) -> Any:
        """The last attempt failed."""

    def retry(self, request: Request, error: BaseException, delay: float) -> Any:
        """This attempt failed; the next is due in `delay` seconds."""

    def timeout(self, request: Request, error: BaseException) -> Any:
        """The run was over its soft or hard time limit; `failure` or `retry` follows."""

    def dead_letter(self, letter: DeadLetter) -> Any:
        """A message is about to be buried, whether it ran or could not."""

    # Living

    def worker_start(self, app: Taskline) -> Any:
        """A worker starts, in its supervisor. Open no connection here: processes are forked."""

    def worker_stop(self, app: Taskline) -> Any:
        """A worker has ended, with all its processes."""

    def process_start(self, app: Taskline) -> Any:
        """A worker process starts: before its first task. What raises here ends it."""

    def process_stop(self, app: Taskline) -> Any:
        """A worker process ends: after its last task. Not when it is killed."""


EVENTS = tuple(name for name in vars(Middleware) if not name.startswith("_"))
_MAY_RAISE = frozenset({"before_send", "before_run", "worker_start", "process_start"})
_OF_RUNS = ("before_run", "after_run", "success", "failure", "retry", "timeout", "dead_letter")

Hook = Callable[..., Any]


class Hooks:
    """The methods of some middleware by their event; empty where nobody overrides one."""

    __slots__ = ("_hooks", "middleware", "of_receives", "of_runs", "of_sends")

    def __init__(self, middleware: Iterable[Middleware] = ()) -> None:
        self.middleware = tuple(middleware)
        self._hooks: dict[str, tuple[Hook, ...]] = {}
        for event in EVENTS:
            found = [getattr(each, event) for each in self.middleware if _overrides(each, event)]
            if not (event.startswith("before_") or event.endswith("_start")):
                found.reverse()
            self._hooks[event] = tuple(found)
        self.of_runs = any(self._hooks[event] for event in _OF_RUNS)
        self.of_receives = any(self._hooks[event] for event in ("before_receive", "after_receive"))
        self.of_sends = any(self._hooks[event] for event in ("before_send", "after_send"))

    def __getitem__(self, event: str) -> tuple[Hook, ...]:
        return self._hooks[event]

    def call(self, event: str, *args: Any) -> None:
        """Call all for this event; coroutines are run to their end."""
        for hook in self._hooks[event]:
            try:
                value = hook(*args)
                if isinstance(value, Coroutine):
                    complete(value)
            except Exception:
                if event in _MAY_RAISE:
                    raise
                _log(hook)

    async def await_all(self, event: str, *args: Any) -> None:
        """As `call`, in an event loop."""
        for hook in self._hooks[event]:
            try:
                value = hook(*args)
                if isinstance(value, Coroutine):
                    await value
            except Exception:
                if event in _MAY_RAISE:
                    raise
                _log(hook)


def checked(middleware: Any) -> Middleware:
    """The middleware; raises `ConfigurationError` for what is none, or could not be called.

    A method that has almost the name of an event is told of in the log.
    """
    if isinstance(middleware, type) and issubclass(middleware, Middleware):
        raise ConfigurationError(
            f"{middleware.__qualname__} is a class: give an object of it, {middleware.__name__}()"
        )
    if not isinstance(middleware, Middleware):
        raise ConfigurationError(
            f"{middleware!r} is no middleware: inherit from taskline.Middleware"
        )
    for event in EVENTS:
        if _overrides(middleware, event):
            _check_arguments(middleware, event)
    _tell_of_misspelt(middleware)
    return middleware


def _check_arguments(middleware: Middleware, event: str) -> None:
    import inspect

    given = [*inspect.signature(getattr(Middleware, event)).parameters][1:]
    try:
        inspect.signature(getattr(middleware, event)).bind(*given)
    except TypeError:
        raise ConfigurationError(
            f"{type(middleware).__qualname__}.{event} is called with ({', '.join(given)}): "
            "let it take these"
        ) from None
    except ValueError:
        pass  # it does not say what it takes


def _tell_of_misspelt(middleware: Middleware) -> None:
    from difflib import get_close_matches

    kind = type(middleware)
    methods = [name for name in dir(kind) if name[0] != "_" and callable(getattr(kind, name))]
    missing = [event for event in EVENTS if not _overrides(middleware, event)]
    for name in methods:
        if name not in EVENTS and (near := get_close_matches(name, missing, 1, 0.8)):
            import logging

            logging.getLogger("taskline.hooks").warning(
                "%s.%s is never called: there is no such event; did you mean %s?",
                kind.__qualname__,
                name,
                near[0],
            )


def _log(hook: Hook) -> None:
    """Say that a hook failed, with the exception of this moment."""
    import logging

    name = getattr(hook, "__qualname__", hook)
    logging.getLogger("taskline.hooks").exception("%s failed", name)


def _overrides(middleware: Middleware, event: str) -> bool:
    return getattr(type(middleware), event) is not getattr(Middleware, event)


def complete(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine to its end, in a thread of its own where this one runs a loop."""
    import asyncio
    import threading
    from contextvars import copy_context

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    ended: list[Any] = []
    context = copy_context()

    def run() -> None:
        try:
            ended[:] = [context.run(asyncio.run, coroutine), None]
        except BaseException as error:
            ended[:] = [None, error]

    thread = threading.Thread(target=run, name="taskline-coroutine")
    thread.start()
    thread.join()
    value, error = ended
    if error is not None:
        raise error
    return value
