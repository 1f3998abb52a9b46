"""The types of what `@app.task(...)` and `@app.periodic(...)` are, for type checkers alone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator, Sequence
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

from taskline.task import AsyncTask, Task

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
AnyTask = TypeVar("AnyTask", bound=Task[..., Any])


class Decorator(Protocol):
    """What `@app.task(...)` with options is."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, AsyncIterator[Any]], /) -> AsyncTask[P, None]: ...
    @overload
    def __call__(self, function: Callable[P, Generator[Any, Any, R]], /) -> Task[P, R]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, function: Callable[P, Iterator[Any]], /) -> Task[P, None]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Task[P, R]: ...


class BoundDecorator(Protocol):
    """What `@app.task(bind=True)` is: the function's first argument is the task."""

    @overload
    def __call__(
        self, function: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /
    ) -> AsyncTask[P, R]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[Any, P], AsyncIterator[Any]], /
    ) -> AsyncTask[P, None]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[Concatenate[Any, P], Generator[Any, Any, R]], /
    ) -> Task[P, R]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[Any, P], Iterator[Any]], /
    ) -> Task[P, None]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[Any, P], R], /) -> Task[P, R]: ...


class BatchDecorator(Protocol):
    """What `@app.task(batch=...)` is: for a function of a list, whose items are the calls'."""

    @overload
    def __call__(
        self, function: Callable[[list[T]], Coroutine[Any, Any, None]], /
    ) -> AsyncTask[[T], None]: ...
    @overload
    def __call__(
        self, function: Callable[[list[T]], Coroutine[Any, Any, Sequence[R]]], /
    ) -> AsyncTask[[T], R]: ...
    @overload
    def __call__(self, function: Callable[[list[T]], None], /) -> Task[[T], None]: ...
    @overload
    def __call__(self, function: Callable[[list[T]], Sequence[R]], /) -> Task[[T], R]: ...


class Periodic(Protocol):
    """What `@app.periodic(...)` is: for a task, or for a function that becomes one."""

    @overload
    def __call__(self, task: AnyTask, /) -> AnyTask: ...
    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, AsyncIterator[Any]], /) -> AsyncTask[P, None]: ...
    @overload
    def __call__(self, function: Callable[P, Generator[Any, Any, R]], /) -> Task[P, R]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, function: Callable[P, Iterator[Any]], /) -> Task[P, None]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Task[P, R]: ...
