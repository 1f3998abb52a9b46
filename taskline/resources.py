"""What dependencies open: once in each process, or once for each run, and closed in order.

Nothing is opened before its first use, so nothing is shared by a fork. The values of
a process belong to `Resources`; any thread may ask for them, and they are closed, the
last first, by the worker when its last task has ended, or by `app.close()`.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from taskline.depends import Dependency, check, is_async, needs_of
from taskline.errors import ConfigurationError
from taskline.functions import POSITIONAL, is_generator, name_of

if TYPE_CHECKING:
    import asyncio

    from taskline.app import Taskline

Opener = Callable[..., Any]

CLOSE_WITHIN = 10.0
"""Seconds for which the closing of one asynchronous resource is waited for."""
_NONE: Any = object()


class Run:
    """What one run has opened for itself."""

    def __init__(self, stack: Any) -> None:
        self.stack = stack
        self.values: dict[Opener, Any] = {}


class Resources:
    """What is open in this process. `overrides` has openers to be used instead of others."""

    def __init__(self, overrides: Mapping[Opener, Opener] | None = None) -> None:
        self._overrides = dict(overrides or {})
        self.loop: asyncio.AbstractEventLoop | None = None
        """The event loop of the worker. Only there do asynchronous resources outlive a run."""
        self.forget()
        _all.add(self)

    def forget(self) -> None:
        """Have nothing open, without closing: for a process that was forked."""
        self._values: dict[Opener, Any] = {}
        self._closers: list[tuple[str, Callable[[], Any]]] = []
        self._lock = threading.Lock()
        self._locks: dict[Opener, threading.RLock] = {}
        self._async_locks: dict[Opener, asyncio.Lock] = {}

    def over(self, opener: Opener, instead: Opener) -> Resources:
        """Others, with nothing open, where `instead` opens what `opener` would have."""
        above = Resources({**self._overrides, opener: instead})
        above.loop = self.loop
        return above

    def get(self, need: Dependency, run: Run) -> Any:
        """The value of a dependency, opened now if need be; raises what its opener raises."""
        opener = self._opener(need)
        if need.scope == "task":
            if opener not in run.values:
                run.values[opener] = self._open(opener, run, run.stack.enter_context)
            return run.values[opener]
        value = self._values.get(opener, _NONE)
        if value is not _NONE:
            return value
        # Held while it is opened, and by those only who need the same: it is opened once.
        with self._lock_of(opener):
            value = self._values.get(opener, _NONE)
            if value is _NONE:
                value = self._values[opener] = self._open(opener, run, self._enter)
        return value

    async def aget(self, need: Dependency, run: Run) -> Any:
        """As `get`, in an event loop. An opener that is no coroutine is called in a thread."""
        import asyncio

        opener = self._opener(need)
        loop = asyncio.get_running_loop()
        own = need.scope == "task" or (is_async(opener) and loop is not self.loop)
        if own:
            if opener not in run.values:
                run.values[opener] = await self._aopen(opener, run, run.stack)
            return run.values[opener]
        value = self._values.get(opener, _NONE)
        if value is not _NONE:
            return value
        if not is_async(opener):
            return await asyncio.to_thread(self.get, need, run)
        with self._lock:
            lock = self._async_locks.setdefault(opener, asyncio.Lock())
        async with lock:
            value = self._values.get(opener, _NONE)
            if value is _NONE:
                value = self._values[opener] = await self._keep(opener, run, loop)
        return value

    def close(self) -> None:
        """Close all that is open, the last first. What raises there is logged."""
        with self._lock:
            closers, self._closers = self._closers, []
            self._values.clear()
            self._async_locks.clear()
        if not closers:
            return
        import logging

        log = logging.getLogger("taskline.resources")
        for name, leave in reversed(closers):
            try:
                leave()
            except Exception:
                log.exception("closing %s failed", name)
            else:
                log.debug("closed %s", name)

    def _opener(self, need: Dependency) -> Opener:
        assert need.opener is not None
        return self._overrides.get(need.opener, need.opener)

    def _lock_of(self, opener: Opener) -> threading.RLock:
        with self._lock:
            return self._locks.setdefault(opener, threading.RLock())

    # ---- in a thread

    def _open(self, opener: Opener, run: Run, enter: Callable[[Any], Any]) -> Any:
        given = {name: self.get(need, run) for name, need in needs_of(opener).items()}
        with _noting(opener):
            made = _made(opener, given)
            if inspect.isawaitable(made) or _is_async_manager(made):
                if inspect.iscoroutine(made):
                    made.close()
                raise ConfigurationError(
                    f"{name_of(opener)} is async, and what depends on it is a def: "
                    "make both of them async def, or neither"
                )
            return enter(_Closing(made, opener)) if _is_manager(made) else made

    def _enter(self, manager: Any) -> Any:
        value = manager.__enter__()
        self._closers.append((str(manager), lambda: manager.__exit__(None, None, None)))
        return value

    # ---- in an event loop

    async def _aopen(self, opener: Opener, run: Run, stack: Any) -> Any:
        given = {name: await self.aget(need, run) for name, need in needs_of(opener).items()}
        return await self._aenter(opener, given, stack)

    async def _aenter(self, opener: Opener, given: dict[str, Any], stack: Any) -> Any:
        import asyncio

        with _noting(opener):
            if is_async(opener):
                made = _made(opener, given)
            else:
                made = await asyncio.to_thread(_made, opener, given)
            if inspect.isawaitable(made):
                made = await made
            if _is_async_manager(made):
                return await stack.enter_async_context(_AsyncClosing(made, opener))
            if _is_manager(made):
                return await stack.enter_async_context(_InThread(made, opener))
            return made

    async def _keep(self, opener: Opener, run: Run, loop: asyncio.AbstractEventLoop) -> Any:
        """Open it in a coroutine of its own, which also closes it: some resources insist on that.

        Who waits for it may be cancelled; then it is not opened either.
        """
        import asyncio
        from contextvars import Context

        given = {name: await self.aget(need, run) for name, need in needs_of(opener).items()}
        opened: asyncio.Future[Any] = loop.create_future()
        leave = asyncio.Event()

        async def keep() -> None:
            try:
                async with contextlib.AsyncExitStack() as stack:
                    value = await self._aenter(opener, given, stack)
                    if not opened.done():
                        opened.set_result(value)
                        await leave.wait()
            except BaseException as error:
                if opened.done():
                    raise
                opened.set_exception(error)

        # It outlives the task that asks for it first, so it is not in that task's context.
        keeper = Context().run(loop.create_task, keep(), name=f"taskline-{name_of(opener)}")
        try:
            value = await opened
        except asyncio.CancelledError:
            keeper.cancel()
            raise

        async def end() -> None:
            leave.set()
            await keeper

        def close() -> None:
            if loop.is_closed():
                raise ConfigurationError(f"{name_of(opener)} was left open: its event loop ended")
            if not loop.is_running():  # the main thread's, between two tasks
                loop.run_until_complete(end())
                return
            asyncio.run_coroutine_threadsafe(end(), loop).result(timeout=CLOSE_WITHIN)

        self._closers.append((name_of(opener), close))
        return value


def injecting(
    app: Taskline, function: Callable[..., Any], needs: dict[str, Dependency]
) -> Callable[..., Any]:
    """The function, which gets what it depends on beside the arguments that are given.

    It stays a coroutine function or a generator function. An argument that is given by
    keyword is not opened. Raises `ConfigurationError` for what can never be opened.
    """
    in_loop = is_async(function)
    check(function, needs, in_loop)
    places = _Places(function, needs)

    async def run_async(*args: Any, **kwargs: Any) -> Any:
        async with contextlib.AsyncExitStack() as stack:
            values = await places.aopen(app.resources, Run(stack), kwargs)
            return await function(*places.filled(args, values), **kwargs, **values)

    async def iterate_async(*args: Any, **kwargs: Any) -> Any:
        async with contextlib.AsyncExitStack() as stack:
            values = await places.aopen(app.resources, Run(stack), kwargs)
            items = function(*places.filled(args, values), **kwargs, **values)
            async with contextlib.aclosing(items):
                async for item in items:
                    yield item

    def iterate(*args: Any, **kwargs: Any) -> Any:
        with contextlib.ExitStack() as stack:
            values = places.open(app.resources, Run(stack), kwargs)
            return (yield from function(*places.filled(args, values), **kwargs, **values))

    def run(*args: Any, **kwargs: Any) -> Any:
        with contextlib.ExitStack() as stack:
            values = places.open(app.resources, Run(stack), kwargs)
            return function(*places.filled(args, values), **kwargs, **values)

    if in_loop:
        return iterate_async if is_generator(function) else run_async
    return iterate if is_generator(function) else run


class _Places:
    """Where the values of a function's dependencies go among its arguments."""

    def __init__(self, function: Callable[..., Any], needs: dict[str, Dependency]) -> None:
        self._needs = needs
        parameters = inspect.signature(function).parameters.values()
        positional = [p.name for p in parameters if p.kind in POSITIONAL]
        self._positions = [(positional.index(name), name) for name in needs if name in positional]

    def open(self, resources: Resources, run: Run, given: dict[str, Any]) -> dict[str, Any]:
        return {
            name: resources.get(need, run)
            for name, need in self._needs.items()
            if name not in given
        }

    async def aopen(self, resources: Resources, run: Run, given: dict[str, Any]) -> dict[str, Any]:
        return {
            name: await resources.aget(need, run)
            for name, need in self._needs.items()
            if name not in given
        }

    def filled(self, args: Sequence[Any], values: dict[str, Any]) -> Sequence[Any]:
        """The positional arguments, with those values that stand before or among them.

        The others stay in `values`, to be given by keyword.
        """
        if not self._positions or not args:
            return args
        every = list(args)
        for position, name in self._positions:
            if position < len(every) and name in values:
                every.insert(position, values.pop(name))
        return every


class _Closing:
    """A context manager that lets every exception through: a failed task is not to be hidden."""

    def __init__(self, manager: Any, opener: Opener) -> None:
        self._manager = manager
        self._opener = opener

    def __str__(self) -> str:
        return name_of(self._opener)

    def __enter__(self) -> Any:
        return self._manager.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._manager.__exit__(*error)


class _AsyncClosing(_Closing):
    async def __aenter__(self) -> Any:
        return await self._manager.__aenter__()

    async def __aexit__(self, *error: Any) -> None:
        await self._manager.__aexit__(*error)


class _InThread(_Closing):
    """For a coroutine, which does not wait in its event loop for what may block."""

    async def __aenter__(self) -> Any:
        import asyncio

        return await asyncio.to_thread(self._manager.__enter__)

    async def __aexit__(self, *error: Any) -> None:
        import asyncio

        await asyncio.to_thread(self._manager.__exit__, *error)


def _made(opener: Opener, given: dict[str, Any]) -> Any:
    """What an opener returns; for one that yields, the context manager of it."""
    if not is_generator(opener):
        return opener(**given)
    if is_async(opener):
        return contextlib.asynccontextmanager(opener)(**given)
    return contextlib.contextmanager(opener)(**given)


def _is_manager(made: object) -> bool:
    # Those that inherit it. Many connections have the two methods, where they are a transaction.
    return contextlib.AbstractContextManager in type(made).__mro__


def _is_async_manager(made: object) -> bool:
    return contextlib.AbstractAsyncContextManager in type(made).__mro__


@contextlib.contextmanager
def _noting(opener: Opener) -> Iterator[None]:
    """Let what is raised within say what was opened then, in its traceback."""
    try:
        yield
    except Exception as error:
        if hasattr(error, "add_note"):  # Python 3.11
            error.add_note(f"(while {name_of(opener)} opened what a task depends on)")
        raise


_all: weakref.WeakSet[Resources] = weakref.WeakSet()


def _forget_all() -> None:
    for each in _all:
        each.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
