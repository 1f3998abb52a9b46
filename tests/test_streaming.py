"""Generator tasks and progress: what a caller sees while they run."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import contextmanager
from datetime import date
from typing import Any

import pytest

from taskline import (
    ConfigurationError,
    ResultTimeout,
    SerializationError,
    Taskline,
    TasklineError,
    TaskTimeout,
    current_task,
)
from taskline.context import Progress
from taskline.message import new_id
from taskline.streaming import CHUNK, _key
from taskline.worker import Worker, WorkerOptions

MakeApp = Callable[..., Taskline]


@pytest.fixture
def app(make_app: MakeApp) -> Taskline:
    return make_app()


@contextmanager
def working(app: Taskline) -> Iterator[None]:
    worker = Worker(app, WorkerOptions(schedule=False, threads=2))
    worker.start()
    try:
        yield
    finally:
        worker.stop(0)


# Streams


def test_items_come_while_the_task_runs(app: Taskline) -> None:
    seen: list[threading.Event] = [threading.Event() for _ in range(40)]

    @app.task
    def count(number: int) -> Iterator[int]:
        for each in range(number):
            yield each
            assert seen[each].wait(20)

    with working(app):
        result = count.delay(40)
        for item in result.stream(timeout=20):
            seen[item].set()
        assert result.get(timeout=20) is None


def test_items_are_typed_and_the_return_value_is_the_result(app: Taskline) -> None:
    @app.task
    def days(number: int) -> Generator[date, None, str]:
        for each in range(number):
            yield date(2026, 1, 1 + each)
        return "done"

    with working(app):
        result = days.delay(3)
        assert list(result.stream(timeout=20)) == [date(2026, 1, day) for day in (1, 2, 3)]
        assert result.get(timeout=20) == "done"
        assert list(days.delay(0).stream(timeout=20)) == []
    assert list(days(2)) == [date(2026, 1, 1), date(2026, 1, 2)], "a plain call gives a generator"


def test_a_stream_is_resumed_from_any_index(app: Taskline) -> None:
    @app.task(name="count")
    def count(number: int) -> Iterator[int]:
        yield from range(number)

    number = 3 * CHUNK
    with working(app):
        result = count.delay(number)
        result.get(timeout=20)
    for start in (0, 1, CHUNK - 1, CHUNK, CHUNK + 1, number - 1, number, number + 5):
        elsewhere = app.AsyncResult(result.id).stream(start, timeout=5)
        assert list(elsewhere) == list(range(start, number))
        assert elsewhere.index == max(start, number)


def test_coroutines_stream_and_are_streamed_to(app: Taskline) -> None:
    @app.task
    async def count(number: int) -> AsyncIterator[int]:
        for each in range(number):
            await asyncio.sleep(0)
            yield each

    async def read() -> list[int]:
        result = await count.adelay(20)
        return [item async for item in result.stream(timeout=20)]

    with working(app):
        assert asyncio.run(read()) == list(range(20))


def test_a_failure_comes_after_the_items(app: Taskline) -> None:
    @app.task
    def count(number: int) -> Iterator[int]:
        yield from range(number)
        raise ValueError("no more")

    got: list[int] = []
    with working(app), pytest.raises(ValueError, match="no more"):
        got.extend(count.delay(3).stream(timeout=20))
    assert got == [0, 1, 2]


def test_a_further_attempt_takes_the_place_of_the_first(make_app: MakeApp) -> None:
    app = make_app(retry={"max": 1, "wait": 0.01})
    go_on = threading.Event()

    @app.task
    def count() -> Iterator[int]:
        attempt = current_task.attempt
        for each in range(CHUNK + 3 if attempt == 1 else CHUNK + 6):
            yield each
            if attempt == 2 and each == 1:
                assert go_on.wait(20)
        if attempt == 1:
            raise OSError("again")

    with working(app):
        result = count.delay()
        first = iter(result.stream(timeout=20))
        early = [next(first) for _ in range(2)]
        go_on.set()
        assert early + list(first) == list(range(CHUNK + 6))
        assert list(result.stream(timeout=20)) == list(range(CHUNK + 6))


def test_what_an_earlier_run_left_is_not_mixed_in(app: Taskline) -> None:
    from taskline.context import Request
    from taskline.message import Header
    from taskline.streaming import _Writer

    header = Header(1, new_id(), "count", "default", 0.0)
    for deliveries, number in ((1, 2 * CHUNK), (2, CHUNK + 1)):
        writer = _Writer(app, Request(header, deliveries=deliveries))
        for each in range(number):
            writer.write(each + 1000 * deliveries)
    stream = iter(app.AsyncResult(header.id).stream(timeout=0.05))
    read = [next(stream) for _ in range(CHUNK + 1)]
    assert all(2000 <= each < 3000 for each in read)
    with pytest.raises(ResultTimeout, match=f"no item {CHUNK + 1} after 0.05 seconds"):
        next(stream)


def test_a_task_that_is_stopped_ends_its_stream(app: Taskline) -> None:
    @app.task(timeout=0.2)
    def stuck() -> Iterator[int]:
        yield 1
        while True:
            threading.Event().wait(0.01)

    got: list[int] = []
    with working(app), pytest.raises(TaskTimeout):
        got.extend(stuck.delay().stream(timeout=20))
    assert got == [1]


def test_chunks_end_with_the_outcome(make_app: MakeApp) -> None:
    app = make_app()

    @app.task(result_ttl=500)
    def count() -> Iterator[int]:
        yield from range(CHUNK + 1)

    with working(app):
        result = count.delay()
        result.get(timeout=20)
    keys = app.require_backend().keys()
    for number in range(2):
        left = keys.ttl(_key(result.id, number))
        assert left is not None
        assert 400 < left <= 500


def test_what_is_refused(make_app: MakeApp) -> None:
    def count() -> Iterator[Any]:
        yield object()

    with pytest.raises(ConfigurationError, match="a generator task: the app shop has no result"):
        make_app(backend=None).task(count)
    app = make_app()
    task = app.task(name="count")(count)
    with working(app), pytest.raises(SerializationError, match="count yields what cannot be"):
        list(task.delay().stream(timeout=20))


# Progress


def test_progress_is_seen_while_the_task_runs_and_after(app: Taskline) -> None:
    told, go_on = threading.Event(), threading.Event()

    @app.task
    def work() -> None:
        for done in range(50):
            current_task.progress(done, 100, f"page {done}")
        told.set()
        assert go_on.wait(20)
        current_task.progress(100, 100, "done")

    with working(app):
        result = work.delay()
        assert result.progress() is None
        assert told.wait(20)
        by = app.clock.monotonic() + 20
        while (seen := result.progress()) is None or seen.done != 49:
            assert app.clock.monotonic() < by
            app.clock.sleep(0.01)
        assert seen == Progress(49, 100, "page 49")
        assert seen.fraction == 0.49
        assert result.state == "STARTED"
        go_on.set()
        result.get(timeout=20)
    assert app.AsyncResult(result.id).progress() == (100, 100, "done")


def test_progress_of_a_coroutine_and_of_a_failure(app: Taskline) -> None:
    @app.task
    async def work() -> None:
        current_task.progress(3)
        raise ValueError("here")

    with working(app):
        result = work.delay()
        with pytest.raises(ValueError, match="here"):
            result.get(timeout=20)
    assert result.progress() == Progress(3, None, "")
    assert result.progress() is not None
    assert result.progress().fraction is None


def test_progress_costs_few_stores(app: Taskline) -> None:
    stores = 0
    backend = app.open_backend()
    assert backend is not None
    store = backend.store

    def counted(outcomes: Any) -> Any:
        nonlocal stores
        stores += len(outcomes)
        return store(outcomes)

    backend.store = counted  # type: ignore[method-assign]
    app.open_backend = lambda: backend  # type: ignore[method-assign]

    @app.task
    def work() -> None:
        by = app.clock.monotonic() + 0.3
        done = 0
        while app.clock.monotonic() < by:
            done += 1
            current_task.progress(done)

    with working(app):
        work.delay().get(timeout=20)
    assert stores <= 3


def test_eager_tasks_tell_too(make_app: MakeApp) -> None:
    app = make_app(eager=True)

    @app.task
    def work() -> None:
        current_task.progress(1, 2)

    assert work.delay().progress() == (1, 2, "")


@pytest.mark.parametrize("wrong", [("1", None), (1, "2"), (float("nan"), None)])
def test_progress_is_numbers(make_app: MakeApp, wrong: tuple[Any, Any]) -> None:
    app = make_app(eager=True)

    @app.task
    def work() -> None:
        current_task.progress(*wrong)

    with pytest.raises(TasklineError, match="give numbers"):
        work.delay().get()
