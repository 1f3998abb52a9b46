"""Generator tasks: what they yield, stored as it comes, and read while they run.

The items of a run stand in chunks of `CHUNK`, each under a key of its own in the
backend's key store: `taskline.stream:ID:NUMBER`, so that a reader finds any item at once.
A chunk is a frame of the app with the number of the run (`deliveries`) and the items so
far; it is written again with each item until it is full. A reader keeps to the newest run
it has seen: what an earlier one left counts for nothing as soon as the next has written.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from taskline.context import Request, require
from taskline.errors import ConfigurationError, MessageRefused, ResultTimeout, SerializationError
from taskline.message import FINAL_STATES, SUCCESS, VERSION, Header

if TYPE_CHECKING:
    from taskline.app import Taskline
    from taskline.backends.keys import KeyStore
    from taskline.result import AsyncResult

CHUNK = 16
"""Items of one key."""
KEPT_WHILE_RUNNING = 7 * 86_400.0
"""Seconds for which chunks are kept before the end, when they get the outcome's ttl."""
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 0.25
"""Seconds between two looks of a reader."""

STREAM = "taskline.stream"
"""The task's name in a chunk's frame."""


def _key(id: str, number: int) -> str:
    return f"{STREAM}:{id}:{number}"


class _Writer:
    """The items of one run; for the thread or the coroutine that runs it."""

    def __init__(self, app: Taskline, request: Request) -> None:
        self._app = app
        self._request = request
        self._items: list[Any] = []
        self._number = 0

    def write(self, item: Any) -> None:
        """Store an item, beside those of its chunk that are stored already."""
        self._items.append(item)
        self._store()
        if len(self._items) == CHUNK:
            self._number, self._items = self._number + 1, []

    def _store(self) -> None:
        app, request = self._app, self._request
        if app.settings.backend is None:  # eager: the values are in the result
            return
        header = Header(
            VERSION, request.id, STREAM, request.name, app.now(), request.header.serializer
        )
        try:
            frame = app.codec.encode(header, [request.deliveries, self._items]).frame
        except SerializationError as error:
            raise SerializationError(
                f"{request.name} yields what cannot be stored: {error}"
            ) from None
        app.require_backend().keys().set(_key(request.id, self._number), frame, KEPT_WHILE_RUNNING)

    def finish(self) -> None:
        """What is stored ends with the outcome."""
        app, header = self._app, self._request.header
        if app.settings.backend is None:
            return
        task = app.tasks.get(header.task)
        ttl = header.result_ttl
        if ttl is None:
            ttl = app.settings.result_ttl if task is None else task.result_ttl
        keys = app.require_backend().keys()
        for number in range(self._number + 1):
            keys.expire(_key(self._request.id, number), max(ttl, 1.0))


def storing_items(
    app: Taskline, function: Callable[..., Any], is_async: bool
) -> Callable[..., Any]:
    """What a run of a generator function calls: it runs the generator to its end.

    Its value is what the generator returns.
    """
    if app.settings.backend is None and not app.settings.eager:
        raise ConfigurationError(
            f"a generator task: the app {app.name} has no result backend, which keeps its items: "
            'give it one, such as Taskline(..., backend="sqlite:///shop.db")'
        )

    def run(*args: Any, **kwargs: Any) -> Any:
        writer, generator = _Writer(app, require()), function(*args, **kwargs)
        try:
            while True:
                try:
                    item = next(generator)
                except StopIteration as stop:
                    return stop.value
                writer.write(item)
        finally:
            generator.close()
            writer.finish()

    async def run_async(*args: Any, **kwargs: Any) -> None:
        import asyncio

        writer = _Writer(app, require())
        generator = function(*args, **kwargs)
        try:
            async for item in generator:
                await asyncio.to_thread(writer.write, item)
        finally:
            await generator.aclose()
            await asyncio.to_thread(writer.finish)

    return run_async if is_async else run


class _Look(NamedTuple):
    items: list[Any]
    ended: bool


class Stream:
    """The items of a generator task, from one index on. Made by `AsyncResult.stream`.

    Iterate over it, or use `async for`. It ends when the task has ended: with its exception if
    it failed. `index` is that of the next item; another stream, in another process too, can
    go on from there.
    """

    def __init__(self, result: AsyncResult[Any], start: int, timeout: float | None) -> None:
        self.index = start
        self._result = result
        self._app = result.app
        self._timeout = timeout
        self._run = 0
        self._pause = 0.0

    def __iter__(self) -> Iterator[Any]:
        clock = self._app.clock
        while True:
            by = self._deadline()
            while not (look := self._look()).items:
                if look.ended:
                    return
                clock.sleep(self._next_pause(by))
            self._pause = 0.0
            for item in look.items:
                self.index += 1
                yield item

    async def __aiter__(self) -> AsyncIterator[Any]:
        import asyncio

        while True:
            by = self._deadline()
            while not (look := await asyncio.to_thread(self._look)).items:
                if look.ended:
                    return
                await asyncio.sleep(self._next_pause(by))
            self._pause = 0.0
            for item in look.items:
                self.index += 1
                yield item

    def _deadline(self) -> float | None:
        return None if self._timeout is None else self._app.clock.monotonic() + self._timeout

    def _next_pause(self, by: float | None) -> float:
        self._pause = min(2 * self._pause or FIRST_PAUSE, LONGEST_PAUSE)
        if by is None:
            return self._pause
        left = by - self._app.clock.monotonic()
        if left <= 0:
            raise ResultTimeout(
                f"task {self._result.id}: no item {self.index} after "
                f"{self._timeout or 0:g} seconds: does a worker serve its queue?"
            )
        return min(self._pause, left)

    def _look(self) -> _Look:
        """The items from `index` on in its chunk; and whether there can be no more.

        Raises the task's exception when it has failed and all its items are read.
        """
        keys = self._app.require_backend().keys()
        items = self._read(keys)
        if items:
            return _Look(items, False)
        state, run = self._result._last_run()
        if state not in FINAL_STATES:
            return _Look([], False)
        self._run = max(self._run, run)
        items = self._read(keys)  # what was written between the two looks
        if not items and state != SUCCESS:
            self._result.get(timeout=0)
        return _Look(items, not items)

    def _read(self, keys: KeyStore) -> list[Any]:
        number, first = divmod(self.index, CHUNK)
        frame = keys.get(_key(self._result.id, number))
        if frame is None:
            return []
        codec = self._app.codec
        header, body = codec.open(frame)
        if (header.id, header.task) != (self._result.id, STREAM):
            raise MessageRefused(f"the items of task {self._result.id} are another message")
        run, items = codec.loads(header, body)
        if run < self._run:
            return []
        self._run = run
        task, fresh = self._app.tasks.get(header.queue), items[first:]
        return fresh if task is None else [task.signature.convert_item(item) for item in fresh]
