"""Coroutines: many at a time in one process, beside `def` tasks, each with a context of its own."""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar
from typing import Any

import pytest
from workbench import until, working

from taskline import Taskline
from taskline.context import current_task
from taskline.errors import Ignore, Reject, Retry, TaskFailed, TasklineError, TaskRejected
from taskline.message import SUCCESS


class Meeting:
    """Lets coroutines wait for one another."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.here = 0

    async def join(self) -> int:
        self.here += 1
        while self.here < self.size:
            await asyncio.sleep(0.002)
        return self.here


@pytest.mark.parametrize("size", [1, 500])
def test_so_many_run_at_a_time_in_one_process(make_sqlite_app: Any, size: int) -> None:
    app = make_sqlite_app()
    meeting = Meeting(size)

    @app.task
    async def meet(number: int) -> int:
        await meeting.join()
        return number

    with working(app, async_slots=500):
        assert meet.map(range(size)).get(timeout=60) == list(range(size))


def test_never_more_at_a_time_than_they_have_places(app: Taskline) -> None:
    now, most = 0, 0

    @app.task
    async def run() -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.001)
        now -= 1

    with working(app, async_slots=7):
        run.starmap([()] * 60).get(timeout=60)
    assert most <= 7


def test_both_kinds_run_beside_each_other(app: Taskline) -> None:
    seen: list[str] = []

    @app.task
    async def coroutine() -> str:
        seen.append("coroutine")
        while "plain" not in seen:
            await asyncio.sleep(0.002)
        return threading.current_thread().name

    @app.task
    def plain() -> str:
        seen.append("plain")
        until(lambda: "coroutine" in seen)
        return threading.current_thread().name

    with working(app):
        results = [coroutine.delay(), plain.delay()]
        assert [each.get(timeout=30) for each in results] == ["taskline-async", "taskline-slot-0"]


def test_a_mixed_storm_is_worked_off(app: Taskline) -> None:
    @app.task
    async def double(number: int) -> int:
        await asyncio.sleep(0)
        return 2 * number

    @app.task
    def triple(number: int) -> int:
        return 3 * number

    with working(app, async_slots=10):
        with app.batch() as results:
            for number in range(200):
                (double if number % 2 else triple).delay(number)
        expected = [2 * n if n % 2 else 3 * n for n in range(200)]
        assert results.get(timeout=60) == expected


def test_what_waits_behind_one_that_blocks_the_event_loop_goes_to_another_worker(
    app: Taskline,
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    @app.task
    async def blocks() -> str:
        begun.set()
        go_on.wait(60)
        return threading.current_thread().name

    @app.task
    async def quick(number: int) -> int:
        return number

    with app.batch():
        blocking = blocks.delay()
        waiting = quick.map(range(20))
    with working(app, async_slots=50):
        assert begun.wait(30)
        with working(app, async_slots=50):
            assert waiting.get(timeout=30) == list(range(20))
            assert not blocking.ready()
            more = quick.map(range(5))
            assert more.get(timeout=30) == list(range(5))
            go_on.set()
            assert blocking.get(timeout=30)
        assert quick.delay(1).get(timeout=30) == 1, "the first one goes on"


def test_each_has_its_own_current_task_and_context(app: Taskline) -> None:
    mine: ContextVar[int] = ContextVar("mine", default=-1)
    meeting = Meeting(20)

    @app.task
    async def run(number: int) -> list[Any]:
        before = mine.get()
        mine.set(number)
        identity = current_task.id
        await meeting.join()
        return [before, mine.get(), identity, current_task.id, current_task.headers["n"]]

    with working(app):
        results = [run.options(headers={"n": n}).delay(n) for n in range(20)]
        for number, result in enumerate(results):
            key = result.id
            assert result.get(timeout=30) == [-1, number, key, key, number]
    with pytest.raises(TasklineError, match="only known inside"):
        current_task.id  # noqa: B018


def test_threads_have_each_their_own_current_task(app: Taskline) -> None:
    together = threading.Barrier(4)

    @app.task
    def run() -> list[str]:
        before = current_task.id
        together.wait(timeout=30)
        return [before, current_task.id]

    with working(app, threads=4):
        results = [run.delay() for _ in range(4)]
        for result in results:
            assert result.get(timeout=30) == [result.id, result.id]


def test_what_a_task_sends_knows_its_parent(app: Taskline) -> None:
    @app.task
    def child() -> list[Any]:
        return [current_task.parent, current_task.root]

    @app.task
    async def parent() -> str:
        return (await child.adelay()).id

    with working(app):
        result = parent.delay()
        child_id = result.get(timeout=30)
        assert app.AsyncResult(child_id).get(timeout=30) == [result.id, result.id]


def test_every_end_of_a_coroutine(app: Taskline) -> None:
    attempts: list[int] = []

    @app.task(retry={"max": 2, "wait": 0})
    async def flaky() -> int:
        attempts.append(current_task.attempt)
        if len(attempts) < 2:
            raise OSError("down")
        return len(attempts)

    @app.task
    async def end(how: str) -> None:
        await asyncio.sleep(0)
        raise {
            "error": ValueError("bad"),
            "reject": Reject("unwanted"),
            "ignore": Ignore(),
            "exit": SystemExit(3),
            "retry": Retry(after=3600),
        }[how]

    with working(app):
        results = {how: end.delay(how) for how in ("error", "reject", "ignore", "exit", "retry")}
        assert flaky.delay().get(timeout=30) == 2
        with pytest.raises(ValueError, match="bad"):
            results["error"].get(timeout=30)
        with pytest.raises(TaskRejected, match="unwanted"):
            results["reject"].get(timeout=30)
        with pytest.raises(TaskFailed, match="SystemExit"):
            results["exit"].get(timeout=30)
        assert results["ignore"].get(timeout=30) is None
        assert results["ignore"].state == SUCCESS
        until(lambda: results["retry"].state == "RETRY")
        assert flaky.delay().get(timeout=30) == 3, "the loop goes on"


def test_a_cancellation_of_its_own_making_is_a_failure(app: Taskline) -> None:
    @app.task
    async def cancel() -> None:
        raise asyncio.CancelledError

    @app.task
    async def timed_out() -> None:
        await asyncio.wait_for(asyncio.sleep(3600), timeout=0.01)

    with working(app):
        with pytest.raises(TaskFailed, match="CancelledError"):
            cancel.delay().get(timeout=30)
        with pytest.raises((TimeoutError, asyncio.TimeoutError)):
            timed_out.delay().get(timeout=30)


def test_coroutines_that_still_run_at_the_end_are_handed_back_and_may_tidy_up(
    app: Taskline, caplog: pytest.LogCaptureFixture
) -> None:
    started: list[str] = []
    tidied: list[str] = []

    @app.task
    async def long() -> str:
        started.append(current_task.id)
        try:
            if len(started) == 1:
                await asyncio.sleep(3600)
        finally:
            tidied.append(current_task.id)
        return "done"

    with working(app, grace=0.0):
        result = long.delay()
        until(lambda: started)
    assert tidied == [result.id]
    assert "failed for good" not in caplog.text
    [stored] = app.transport.peek("default")
    assert stored.state == "ready"
    with working(app):
        assert result.get(timeout=30) == "done"
    assert result.info["deliveries"] == 2


def test_a_worker_without_coroutines_has_no_event_loop(memory_app: Taskline) -> None:
    @memory_app.task
    def plain() -> list[str]:
        return [thread.name for thread in threading.enumerate()]

    with working(memory_app):
        names = plain.delay().get(timeout=30)
    assert "taskline-async" not in names


def test_no_thread_outlives_its_worker(app: Taskline) -> None:
    @app.task
    async def coroutine() -> int:
        return 1

    @app.task
    def plain() -> int:
        return 1

    with working(app, threads=3):
        assert coroutine.delay().get(timeout=30) + plain.delay().get(timeout=30) == 2
    until(
        lambda: (
            not [
                thread.name
                for thread in threading.enumerate()
                if thread.name.startswith(("taskline-io", "taskline-slot", "taskline-async"))
            ]
        )
    )
