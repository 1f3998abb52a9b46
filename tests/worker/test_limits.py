"""Time limits and revocations, in threads and coroutines. `test_processes` has the main slot."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from workbench import Bench, until, working

from taskline import Taskline
from taskline.backends.base import Revocation
from taskline.clock import ManualClock
from taskline.context import current_task
from taskline.errors import Retry, SoftTimeout, TaskRevoked, TaskTimeout
from taskline.message import REVOKED, STARTED, SUCCESS
from taskline.worker import watch
from taskline.worker.execute import Job
from taskline.worker.slots import AsyncSlots


@dataclass
class Slow:
    """An argument that a worker does not convert before a time limit has passed."""

    number: int
    passed: ClassVar[threading.Event] = threading.Event()

    def __post_init__(self) -> None:
        if threading.current_thread().name == "taskline-async":
            assert self.passed.wait(20)


class Switch:
    """Keeps a task busy in Python until it is set."""

    def __init__(self) -> None:
        self.on = False
        self.reached = 0

    def busy(self) -> None:
        self.reached += 1
        while not self.on:
            sum(range(100))


@pytest.fixture
def switch() -> Iterator[Switch]:
    switch = Switch()
    yield switch
    switch.on = True


@pytest.fixture(autouse=True)
def no_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted code has all the time that a busy machine may need to end."""
    monkeypatch.setattr(watch, "TIMED_OUT_HAS", 20.0)
    monkeypatch.setattr(watch, "REVOKED_HAS", 20.0)


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch, no_hurry: None) -> None:
    """Interrupted code that does not end is given up soon."""
    monkeypatch.setattr(watch, "TIMED_OUT_HAS", 0.2)
    monkeypatch.setattr(watch, "REVOKED_HAS", 0.2)


def healthy(app: Taskline) -> bool:
    """Whether the slot runs further tasks, undisturbed by what was meant for the last."""

    @app.task(name="healthy")
    def check(number: int) -> int:
        for _ in range(1000):
            number += 1
        return number

    return check.map(range(20)).get(timeout=30) == [1000 + n for n in range(20)]


def test_a_soft_timeout_can_be_caught(app: Taskline, switch: Switch) -> None:
    @app.task(soft_timeout=0.05)
    def tidy() -> str:
        try:
            switch.busy()
        except SoftTimeout:
            return "tidied up"
        return "never"

    with working(app):
        assert tidy.delay().get(timeout=30) == "tidied up"
        assert healthy(app)
    assert app.transport.dead_letters() == []


def test_a_soft_timeout_that_is_not_caught_is_a_failure(app: Taskline, switch: Switch) -> None:
    @app.task(soft_timeout=0.05)
    def untidy() -> None:
        switch.busy()

    with working(app):
        with pytest.raises(SoftTimeout, match=r"the soft time limit passed after \d+\.\d s"):
            untidy.delay().get(timeout=30)
        assert healthy(app)
        assert "in busy" in app.transport.dead_letters()[0].traceback


def test_a_soft_timeout_is_retried_like_any_failure(app: Taskline, switch: Switch) -> None:
    @app.task(soft_timeout=0.05, retry={"max": 3, "wait": 0})
    def second_time_lucky() -> int:
        if switch.reached < 1:
            switch.busy()
        return current_task.attempt

    with working(app):
        assert second_time_lucky.delay().get(timeout=30) == 2


def test_the_hard_limit_holds_after_a_caught_soft_one(app: Taskline, switch: Switch) -> None:
    caught = []

    @app.task(soft_timeout=0.05, timeout=3600)
    def stubborn() -> None:
        try:
            switch.busy()
        except SoftTimeout:
            caught.append("soft")
            switch.busy()

    with working(app) as worker:
        result = stubborn.delay()
        until(lambda: caught)
        (job,) = worker.io._watch.running()
        job.deadline = app.clock.monotonic()  # the hour is over, however late the soft limit was
        with pytest.raises(TaskTimeout, match="longer than its timeout of 3600 s"):
            result.get(timeout=30)
        assert healthy(app)
        assert not worker.io.recycle, "the interrupt was enough"
    assert caught == ["soft"]


def test_a_timeout_ends_a_busy_loop(app: Taskline, switch: Switch) -> None:
    @app.task(timeout=0.05)
    def loop() -> None:
        switch.busy()

    with working(app):
        result = loop.delay()
        with pytest.raises(TaskTimeout, match=r"longer than its timeout of 0\.05 s"):
            result.get(timeout=30)
        assert healthy(app)
        letter = until(lambda: app.transport.dead_letter(result.id))
    assert letter is not None
    assert "longer than its timeout" in letter.reason


def test_the_calls_own_limit_goes_before_the_tasks(app: Taskline, switch: Switch) -> None:
    @app.task(timeout=3600)
    def loop() -> None:
        switch.busy()

    with working(app), pytest.raises(TaskTimeout, match=r"timeout of 0\.05 s"):
        loop.options(timeout=0.05).delay().get(timeout=30)


def test_a_limit_on_a_task_that_keeps_to_it_changes_nothing(app: Taskline) -> None:
    @app.task(timeout=60, soft_timeout=50)
    def quick(number: int) -> int:
        return number

    with working(app):
        assert quick.map(range(200)).get(timeout=30) == list(range(200))


@pytest.mark.usefixtures("hurry")
def test_code_that_swallows_the_interrupt_is_given_up(memory_app: Taskline, switch: Switch) -> None:
    app = memory_app

    @app.task(timeout=0.05)
    def deaf() -> None:
        while not switch.on:
            try:
                switch.busy()
            except Exception:
                continue

    @app.task
    def other() -> str:
        return "elsewhere"

    with working(app) as worker:
        result = deaf.delay()
        with pytest.raises(TaskTimeout):
            result.get(timeout=30)
        until(lambda: worker.io.recycle)
        assert f"task {result.id} did not end" in worker.io.recycle
        switch.on = True
    with working(app):  # the process is replaced
        assert other.delay().get(timeout=30) == "elsewhere"
    assert result.state == "FAILURE"


@pytest.mark.usefixtures("hurry")
def test_a_neighbour_of_given_up_code_ends_in_peace(memory_app: Taskline, switch: Switch) -> None:
    app = memory_app
    go: list[int] = []

    @app.task(timeout=0.05)
    def deaf() -> None:
        while not switch.on:
            try:
                switch.busy()
            except Exception:
                continue

    @app.task
    def neighbour() -> int:
        until(lambda: go)
        return current_task.deliveries

    with working(app, threads=2) as worker:
        kept = neighbour.delay()
        until(lambda: kept.state == STARTED)
        with pytest.raises(TaskTimeout):
            deaf.delay().get(timeout=30)
        until(lambda: worker.io.recycle)
        go.append(1)
        assert kept.get(timeout=30) == 1
        switch.on = True


def test_limits_hold_while_the_broker_is_away(make_memory_app: Any, switch: Switch) -> None:
    from workbench import spy_on

    app = make_memory_app()
    transport, backend = spy_on(app)
    ended = []

    @app.task(timeout=0.3)
    def loop() -> None:
        transport.down = backend.down = True
        try:
            switch.busy()
        finally:
            ended.append(app.clock.monotonic() - started)

    started = app.clock.monotonic()
    with working(app):
        result = loop.delay()
        until(lambda: ended)
        transport.down = backend.down = False
        with pytest.raises(TaskTimeout):
            result.get(timeout=30)


def test_a_coroutine_is_cancelled_at_its_limit(app: Taskline) -> None:
    tidied = []

    @app.task(timeout=0.05)
    async def sleepy() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            tidied.append(1)

    @app.task
    async def quick() -> str:
        await asyncio.sleep(0)
        return "quick"

    with working(app):
        with pytest.raises(TaskTimeout, match=r"timeout of 0\.05 s"):
            sleepy.delay().get(timeout=30)
        assert quick.delay().get(timeout=30) == "quick"
    assert tidied == [1]


def test_a_soft_timeout_cancels_a_coroutine_which_may_tidy_up(app: Taskline) -> None:
    @app.task(soft_timeout=0.05)
    async def tidy() -> str:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            return "tidied up"
        return "never"

    @app.task(soft_timeout=0.05)
    async def untidy() -> None:
        await asyncio.sleep(3600)

    with working(app):
        assert tidy.delay().get(timeout=30) == "tidied up"
        with pytest.raises(SoftTimeout):
            untidy.delay().get(timeout=30)


def test_a_soft_timeout_is_one_in_a_coroutine_too(app: Taskline) -> None:
    cancelled = []

    @app.task(soft_timeout=0.05)
    async def tidy() -> str:
        try:
            await asyncio.gather(child(), child())
        except SoftTimeout as error:
            await asyncio.wait_for(asyncio.sleep(0), 30)
            return str(error)
        return "never"

    async def child() -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancelled.append(1)
            raise

    @app.task(soft_timeout=0.05)
    async def untidy() -> None:
        await asyncio.sleep(3600)

    with working(app):
        assert tidy.delay().get(timeout=30).startswith("the soft time limit passed after ")
        with pytest.raises(SoftTimeout):
            untidy.delay().get(timeout=30)
    assert cancelled == [1, 1]
    (letter,) = app.transport.dead_letters()
    assert letter.reason.startswith("SoftTimeout: ")
    assert "in untidy" in letter.traceback


def test_a_coroutine_that_begins_when_its_soft_limit_has_passed_is_told_so(
    app: Taskline, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt = AsyncSlots.interrupt

    def told(slots: AsyncSlots, job: Job) -> None:
        interrupt(slots, job)
        Slow.passed.set()

    monkeypatch.setattr(AsyncSlots, "interrupt", told)
    monkeypatch.setattr(Slow, "passed", threading.Event())

    @app.task(soft_timeout=0.05)
    async def ship(order: Slow) -> str:
        try:
            await asyncio.sleep(3600)
        except SoftTimeout:
            return "told"
        return "never"

    with working(app):
        assert ship.delay(Slow(1)).get(timeout=30) == "told"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.TaskGroup came with Python 3.11")
def test_a_soft_timeout_ends_what_a_task_group_has_begun(app: Taskline) -> None:
    ended = []

    @app.task(soft_timeout=0.05)
    async def many() -> int:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(3):
                    group.create_task(child())
        except SoftTimeout:
            async with asyncio.timeout(30):
                await asyncio.sleep(0)
            return len(ended)
        return -1

    async def child() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(1)

    with working(app):
        assert many.delay().get(timeout=30) == 3


def test_a_soft_timeout_that_is_caught_leaves_the_hard_one(app: Taskline) -> None:
    caught = asyncio.Event()

    @app.task(soft_timeout=0.05, timeout=3600)
    async def stubborn() -> None:
        try:
            await asyncio.sleep(3600)
        except SoftTimeout:
            caught.set()
            await asyncio.sleep(3600)

    with working(app) as worker:
        result = stubborn.delay()
        until(caught.is_set)
        (job,) = worker.io._watch.running()
        job.deadline = app.clock.monotonic()
        with pytest.raises(TaskTimeout, match="longer than its timeout of 3600 s"):
            result.get(timeout=30)


@pytest.mark.usefixtures("hurry")
def test_a_coroutine_that_swallows_its_cancellation_is_given_up(memory_app: Taskline) -> None:
    app = memory_app
    over: list[int] = []

    @app.task(timeout=0.05)
    async def deaf() -> None:
        while not over:
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                continue

    with working(app) as worker:
        with pytest.raises(TaskTimeout):
            deaf.delay().get(timeout=30)
        until(lambda: worker.io.recycle)
        over.append(1)


def test_revoked_before_a_worker_had_it(app: Taskline) -> None:
    @app.task
    def never() -> None:
        raise AssertionError("must not run")

    @app.task
    def after() -> str:
        return "after"

    result = never.delay()
    assert result.revoke()
    assert result.state == REVOKED
    with working(app):
        assert after.delay().get(timeout=30) == "after"
    with pytest.raises(TaskRevoked):
        result.get(timeout=1)
    assert app.transport.dead_letters() == []


def test_revoked_where_the_broker_could_not_delete_it(app: Taskline) -> None:
    @app.task
    def never() -> None:
        raise AssertionError("must not run")

    @app.task
    async def nor_this() -> None:
        raise AssertionError("must not run")

    results = [never.delay(), nor_this.delay()]
    app.require_backend().revoke([Revocation(result.id) for result in results], 60.0)
    with working(app):
        for result in results:
            with pytest.raises(TaskRevoked):
                result.get(timeout=30)
        until(lambda: not app.transport.peek("default"))


@pytest.mark.parametrize("terminate", [False, True])
def test_revoked_while_it_waits_in_the_worker(app: Taskline, terminate: bool) -> None:
    ran: list[int] = []

    @app.task
    def run(number: int) -> int:
        ran.append(number)
        return number

    bench = Bench(app)
    first, second = run.map([1, 2])
    bench.turn()
    assert bench.waiting == 2
    bench.begin()
    assert not second.revoke(terminate), "the worker has it: it is told"
    bench.io._watch._next_look = 0.0
    bench.turn()
    bench.finish()
    bench.drain()
    assert ran == [1]
    assert first.get(timeout=30) == 1
    assert second.state == REVOKED


def test_a_running_task_is_left_alone_by_a_gentle_revocation(memory_app: Taskline) -> None:
    app = memory_app
    go: list[int] = []

    @app.task
    def slow() -> str:
        until(lambda: go)
        return "done"

    with working(app) as worker:
        result = slow.delay()
        until(lambda: result.state == STARTED)
        assert not result.revoke()
        until(lambda: result.id in worker.io._watch.revoked)
        go.append(1)
        assert result.get(timeout=30) == "done"
    assert result.state == SUCCESS


def test_a_running_task_is_stopped_by_revocation_with_terminate(
    app: Taskline, switch: Switch
) -> None:
    @app.task(retry=3)
    def loop() -> None:
        switch.busy()

    with working(app):
        result = loop.delay()
        until(lambda: switch.reached)
        assert not result.revoke(terminate=True)
        with pytest.raises(TaskRevoked):
            result.get(timeout=30)
        assert result.state == REVOKED
        assert healthy(app)
        until(lambda: not app.transport.peek("default"))
    assert app.transport.dead_letters() == []


def test_a_running_coroutine_is_stopped_by_revocation_with_terminate(memory_app: Taskline) -> None:
    app = memory_app
    cancelled = []

    @app.task
    async def sleepy() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            cancelled.append(current_task.cancelled)

    with working(app):
        result = sleepy.delay()
        until(lambda: result.state == STARTED)
        result.revoke(terminate=True)
        with pytest.raises(TaskRevoked):
            result.get(timeout=30)
    assert cancelled == [True]


@pytest.mark.usefixtures("hurry")
def test_revoked_code_that_is_deaf_is_given_up(memory_app: Taskline, switch: Switch) -> None:
    app = memory_app

    @app.task
    def deaf() -> None:
        while not switch.on:
            try:
                switch.busy()
            except Exception:
                continue

    with working(app) as worker:
        result = deaf.delay()
        until(lambda: switch.reached)
        result.revoke(terminate=True)
        with pytest.raises(TaskRevoked):
            result.get(timeout=30)
        until(lambda: worker.io.recycle)
        switch.on = True
    assert app.transport.dead_letters() == []


def test_a_task_that_waits_for_its_next_attempt_can_be_revoked(app: Taskline) -> None:
    @app.task
    def again() -> None:
        raise Retry(after=3600)

    with working(app):
        result = again.delay()
        # The state is stored first, then the successor, which is what can be removed.
        until(lambda: [each.state for each in app.transport.peek("default")] == ["delayed"])
        assert result.state == "RETRY"
        assert result.revoke()
        assert result.state == REVOKED
        assert app.transport.peek("default") == []


def test_a_message_that_expires_in_the_workers_hands_is_not_started(make_memory_app: Any) -> None:
    clock = ManualClock()
    app = make_memory_app(clock=clock)
    ran: list[int] = []

    @app.task
    def run(number: int) -> int:
        ran.append(number)
        return number

    bench = Bench(app)
    run.delay(1)
    late = run.options(expires=10).delay(2)
    bench.turn()
    assert bench.waiting == 2
    bench.begin()
    clock.advance(11)
    bench.finish()
    bench.drain()
    assert ran == [1]
    assert late.state == "EXPIRED"


def test_a_revocation_by_a_machine_whose_clock_is_behind_is_an_end(make_memory_app: Any) -> None:
    clock, behind = ManualClock(1_000_000.0), ManualClock(999_000.0)
    app, other = make_memory_app(clock=clock), make_memory_app(clock=behind)

    @app.task
    def again() -> None:
        raise Retry(after=3600)

    result = again.delay()
    Bench(app).drain()
    assert result.state == "RETRY"
    assert other.AsyncResult(result.id).revoke()
    assert result.state == REVOKED


def test_an_expired_message_needs_no_free_slot_to_end(make_memory_app: Any) -> None:
    clock = ManualClock()
    app = make_memory_app(clock=clock)

    @app.task
    def run(number: int) -> int:
        return number

    late = run.options(expires=10, priority=0).delay(2)
    clock.advance(11)
    run.delay(1)
    bench = Bench(app)
    bench.turn()
    bench.begin()
    bench.turn(2)
    assert late.state == "EXPIRED"
