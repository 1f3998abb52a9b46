"""What tasks depend on, in workers: opened once in a process, closed when it ends."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from stage import Stage
from workbench import until, working

from taskline import Depends, Taskline, TaskTimeout


def opened_and_closed(stage: Stage, pid: int) -> list[str]:
    return [
        f"{what} {which}"
        for what, which, by in stage.notes()
        if what in ("open", "close") and int(by) == pid
    ]


IN_ORDER = ["open base", "open resource", "open client", "close client", "close resource"]


@pytest.mark.parametrize("kind", ["supervisor", "worker"])
def test_they_are_closed_in_order_at_sigterm(stage: Stage, kind: str) -> None:
    group = stage.start(kind, schedule=False)
    stage.release("x")
    first = stage.get(stage.call("borrow", "x"))
    pid = int(first.removeprefix("resource of "))
    assert stage.get(stage.call("borrow_async", "x")) == f"client of {pid}"
    stage.call("borrow", "long")
    stage.begun("long")
    group.signal(signal.SIGTERM)
    assert "close client" not in opened_and_closed(stage, pid), "a task still runs"
    stage.release("long")
    assert group.exit_code() == 0
    assert opened_and_closed(stage, pid) == [*IN_ORDER, "close base"]


def test_each_process_has_its_own_and_a_replaced_one_closes_them(stage: Stage) -> None:
    stage.start(max_tasks=1)
    stage.release("x")
    one = stage.get(stage.call("borrow", "x"))
    two = stage.get(stage.call("borrow", "x"))
    pids = [int(each.removeprefix("resource of ")) for each in (one, two)]
    assert pids[0] != pids[1]
    expected = ["open base", "open resource", "close resource", "close base"]
    until(lambda: opened_and_closed(stage, pids[0]) == expected)
    until(lambda: opened_and_closed(stage, pids[1]) == expected)


def test_they_are_closed_when_queues_are_drained(stage: Stage) -> None:
    stage.release("x")
    results = [stage.call("borrow", "x"), stage.call("borrow_async", "x")]
    group = stage.start(drain=True, start_method="spawn", app_path="program:app")
    assert group.exit_code() == 0
    pid = int(stage.get(results[0]).removeprefix("resource of "))
    assert opened_and_closed(stage, pid)[-1] == "close base"


def test_they_are_closed_though_a_task_does_not_end(stage: Stage) -> None:
    group = stage.start(grace=0.1)
    stage.release("x")
    pid = int(stage.get(stage.call("borrow", "x")).removeprefix("resource of "))
    stage.call("nap", "ever")
    stage.begun("ever")
    group.signal(signal.SIGTERM)
    assert group.exit_code() == 0
    assert opened_and_closed(stage, pid)[-1] == "close base"


def test_a_coroutines_resource_lives_in_the_workers_loop(make_sqlite_app: Any) -> None:
    app: Taskline = make_sqlite_app()
    events: list[object] = []

    async def connect() -> AsyncIterator[asyncio.AbstractEventLoop]:
        task = asyncio.current_task()
        events.append("open")
        yield asyncio.get_running_loop()
        assert asyncio.current_task() is task, "as anyio's scopes insist"
        events.append("close")

    @app.task
    async def use(loop: Any = Depends(connect)) -> bool:
        return loop is asyncio.get_running_loop()

    with working(app):
        assert use.starmap([()] * 50).get(timeout=60) == [True] * 50
        assert events == ["open"]
    assert events == ["open", "close"]


def test_one_that_hangs_costs_a_task_its_time_and_wedges_nothing(make_sqlite_app: Any) -> None:
    app: Taskline = make_sqlite_app()
    hangs = [True]

    def connect() -> str:
        while hangs[0]:
            time.sleep(0.005)
        return "connected"

    async def aconnect() -> str:
        while hangs[0]:
            await asyncio.sleep(0.005)
        return "connected"

    @app.task(timeout=0.2)
    def use(value: str = Depends(connect)) -> str:
        return value

    @app.task(timeout=0.2)
    async def ause(value: str = Depends(aconnect)) -> str:
        return value

    with working(app, threads=2):
        for task in (use, ause):
            results = [task.delay(), task.delay()]
            for result in results:
                with pytest.raises(TaskTimeout):
                    result.get(timeout=60)
        hangs[0] = False
        assert use.options(timeout=60).delay().get(timeout=60) == "connected"
        assert ause.options(timeout=60).delay().get(timeout=60) == "connected"


def test_what_fails_as_it_is_closed_is_logged_and_the_others_are_closed(
    make_sqlite_app: Any, caplog: pytest.LogCaptureFixture
) -> None:
    app: Taskline = make_sqlite_app()
    closed = threading.Event()

    def good() -> Iterator[int]:
        yield 1
        closed.set()

    def bad(one: int = Depends(good)) -> Iterator[int]:
        yield one
        raise OSError("the disk is gone")

    @app.task
    def use(one: int = Depends(bad)) -> int:
        return one

    with working(app):
        assert use.delay().get(timeout=60) == 1
    assert closed.is_set()
    assert "bad failed" in caplog.text
    assert "the disk is gone" in caplog.text


def test_an_override_holds_in_a_worker_of_the_test(make_sqlite_app: Any) -> None:
    app: Taskline = make_sqlite_app()

    def real() -> str:
        return "real"

    @app.task
    def use(value: str = Depends(real)) -> str:
        return value

    with app.override(real, lambda: "fake"), working(app):
        assert use.delay().get(timeout=60) == "fake"
    with working(app):
        assert use.delay().get(timeout=60) == "real"
