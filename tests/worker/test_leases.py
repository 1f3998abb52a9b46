"""Leases: renewed while a message is held, fenced when lost, not needed to wait (P4 to P6)."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from workbench import Bench, spy_on, until, working

from taskline import Taskline
from taskline.clock import ManualClock
from taskline.context import current_task
from taskline.errors import Retry
from taskline.message import FAILURE, SUCCESS


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def app(make_app: Any, clock: ManualClock) -> Taskline:
    app: Taskline = make_app(clock=clock)
    return app


def test_running_and_waiting_messages_stay_with_their_worker(
    app: Taskline, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskline.worker.dispatch.PATIENCE", 1e9)  # what waits is not handed back
    runs: list[int] = []

    @app.task
    def run(number: int) -> int:
        runs.append(number)
        return current_task.deliveries

    results = run.map([1, 2])
    bench, other = Bench(app, name="first"), Bench(app, name="other")
    bench.turn()
    bench.begin()
    assert bench.waiting == 1
    for _ in range(20):  # ten minutes under a lease of half a minute, and always turned in time
        clock.advance(29.0)
        bench.turn()
        other.turn()
        assert not other.waiting
    bench.finish()
    bench.drain()
    assert runs == [1, 2]
    assert results.get(timeout=0) == [1, 1]


@pytest.mark.parametrize("full", [False, True], ids=["the backend is gone", "no space for more"])
def test_what_runs_stays_with_its_worker_while_something_else_is_out_of_order(
    app: Taskline, clock: ManualClock, full: bool
) -> None:
    """Renewals need neither the backend nor space: tasks must not run twice for want of them."""
    transport, backend = spy_on(app)

    @app.task(retry={"max": 1, "wait": 3600})
    def fail() -> None:
        raise ValueError("not yet")

    @app.task
    def run() -> int:
        return current_task.deliveries

    failing, result = fail.delay(), run.delay()
    bench, other = Bench(app, slots=2), Bench(app, name="other", transport=transport.inner)
    bench.turn()
    bench.begin(0)
    bench.begin(1)
    backend.down = not full
    if full:
        for call in ("store", "ping"):
            backend.faults[call] = transport.faults[call] = ["before"] * 10_000
    bench.finish(0)
    for _ in range(30):
        clock.advance(4.0)
        bench.turn()
        other.turn()
        assert bench.io._outage.lasts
        assert not other.held
    backend.down = False
    backend.faults.clear()
    transport.faults.clear()
    bench.finish(1)
    clock.advance(6.0)
    bench.turn(3)
    assert result.get(timeout=0) == 1
    assert failing.state == "RETRY"


def test_leases_are_renewed_three_times_in_their_length(
    make_memory_app: Any, clock: ManualClock
) -> None:
    app = make_memory_app(clock=clock)
    transport, _ = spy_on(app)

    @app.task
    def run() -> None: ...

    run.delay()
    bench = Bench(app, lease=30.0)
    bench.turn()
    bench.begin()
    transport.calls.clear()
    for _ in range(300):
        clock.advance(0.1)
        bench.turn()
    assert 2 <= transport.names().count("extend") <= 3
    bench.finish()
    bench.drain()
    transport.calls.clear()
    for _ in range(300):
        clock.advance(0.1)
        bench.turn()
    assert not transport.names("extend"), "nothing is held"


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_task_much_longer_than_its_lease_runs_once(
    make_sqlite_app: Any, asynchronous: bool
) -> None:
    app = make_sqlite_app()
    runs: list[float] = []

    def long() -> int:
        runs.append(time.monotonic())
        until(lambda: time.monotonic() > runs[0] + 3.0)
        return current_task.deliveries

    if asynchronous:
        import asyncio

        @app.task
        async def task() -> int:
            runs.append(time.monotonic())
            while time.monotonic() < runs[0] + 3.0:
                await asyncio.sleep(0.01)
            return current_task.deliveries

    else:
        task = app.task(long)

    with working(app, lease=1.0), working(app, lease=1.0):
        assert task.delay().get(timeout=30) == 1
    assert len(runs) == 1


class Paused:
    """A worker that was paused in the middle of a task, until another had run it instead."""

    def __init__(self, app: Taskline, clock: ManualClock) -> None:
        self.answers = ["first", "second"]
        self.cancelled: list[bool] = []

        @app.task(bind=True, retry={"max": 5, "wait": 0, "for": "builtins.OSError"})
        def run(task: Any) -> str:
            self.cancelled.append(task.request.cancelled)
            answer = self.answers[task.request.deliveries - 1]
            if answer == "retry":
                raise OSError(answer)
            if answer == "fail":
                raise ValueError(answer)
            return answer

        self.app = app
        self.result = run.delay()
        self.first = Bench(app, name="first")
        self.second = Bench(app, name="second")
        self.first.turn()
        self.first.begin()
        clock.advance(40.0)  # beyond the lease, without a turn

    def replace(self) -> None:
        self.second.drain()
        assert self.result.state == SUCCESS

    def check(self) -> None:
        assert self.app.AsyncResult(self.result.id).get(timeout=0) == "second"
        assert self.app.AsyncResult(self.result.id).info["worker"] == "second"
        assert self.app.transport.peek("default") == []
        assert self.app.transport.dead_letters() == []
        assert not self.first.held
        assert not self.second.held


@pytest.mark.parametrize("answer", ["first", "retry", "fail"])
def test_what_a_paused_worker_brings_late_is_dropped(
    app: Taskline, clock: ManualClock, answer: str, caplog: pytest.LogCaptureFixture
) -> None:
    paused = Paused(app, clock)
    paused.answers[0] = answer
    paused.replace()
    paused.first.finish()
    paused.first.turn(2)
    paused.check()
    assert "lost its lease" in caplog.text


@pytest.mark.parametrize("answer", ["first", "retry", "fail"])
def test_a_late_settlement_is_refused_though_nobody_saw_the_lease_end(
    app: Taskline, clock: ManualClock, answer: str, caplog: pytest.LogCaptureFixture
) -> None:
    paused = Paused(app, clock)
    paused.answers[0] = answer
    paused.replace()
    # The lease ends in the very moment between being looked at and being used.
    paused.first.io._settlements.renew = lambda lease: None  # type: ignore[method-assign]
    paused.first.finish()
    paused.first.turn(2)
    paused.check()
    assert "receipts were refused" in caplog.text


def test_a_run_that_lost_its_lease_is_told_and_may_go_on(app: Taskline, clock: ManualClock) -> None:
    paused = Paused(app, clock)
    paused.second.turn()  # this is where the lease ends
    paused.first.turn()
    job = paused.first.io.slots[0].current
    assert job is not None
    assert job.lost
    paused.first.finish()
    paused.first.turn()
    assert paused.result.state == "PENDING", "what it brings is not even stored"
    paused.replace()
    paused.check()
    assert paused.cancelled == [False, False]


def test_a_request_is_cancelled_when_its_lease_is_lost(app: Taskline, clock: ManualClock) -> None:
    request: list[Any] = []

    @app.task(bind=True)
    def look(task: Any) -> bool:
        request.append(task.request)
        clock.advance(40.0)
        second = Bench(app, name="second")
        second.turn()
        first.turn()
        return bool(task.request.cancelled)

    look.delay()
    first = Bench(app, name="first")
    first.turn()
    first.begin()
    first.finish()
    assert request[0].cancelled
    first.turn()
    assert not first.held


def test_a_lease_lost_while_waiting_is_not_run(app: Taskline, clock: ManualClock) -> None:
    runs: list[str] = []

    @app.task
    def run() -> str:
        runs.append("run")
        return "done"

    result = run.delay()
    first, second = Bench(app, name="first"), Bench(app, name="second")
    first.turn()
    assert first.waiting == 1
    clock.advance(40.0)
    second.drain()
    first.turn()
    first.work()
    first.turn()
    assert runs == ["run"]
    assert result.info["worker"] == "second"


def test_lost_for_a_while_but_unclaimed_is_still_ours_or_run_again(
    app: Taskline, clock: ManualClock
) -> None:
    @app.task
    def run() -> str:
        return "done"

    result = run.delay()
    first = Bench(app, name="first")
    first.turn()
    first.begin()
    clock.advance(40.0)
    first.finish()
    first.drain()
    assert result.get(timeout=0) == "done"
    assert app.transport.peek("default") == []


def test_what_is_due_later_costs_no_lease_and_no_prefetch(
    app: Taskline, clock: ManualClock
) -> None:
    runs: list[float] = []

    @app.task
    def run() -> None:
        runs.append(clock.time())

    start = clock.time()
    run.options(countdown=100.0).delay()
    run.options(eta=start + 200.0).delay()
    bench = Bench(app)
    for _ in range(99):
        clock.advance(1.0)
        bench.turn()
        [stats] = app.transport.stats(["default"])
        assert (stats.delayed, stats.leased, bench.waiting) == (2, 0, 0)
    clock.advance(1.0)
    bench.drain()
    clock.advance(99.0)
    bench.turn()
    assert not bench.waiting
    clock.advance(1.0)
    bench.drain()
    assert runs == [start + 100.0, start + 200.0]


def test_a_retry_waits_in_the_broker(app: Taskline, clock: ManualClock) -> None:
    runs: list[float] = []

    @app.task(retry={"max": 2, "wait": [60, 600]})
    def fail() -> None:
        runs.append(clock.time())
        raise Retry("later")

    start = clock.time()
    result = fail.delay()
    bench = Bench(app)
    bench.drain()
    assert not bench.held
    for _ in range(700):
        clock.advance(1.0)
        bench.drain()
    assert runs == [start, start + 60, start + 660]
    assert result.state == FAILURE


def test_idle_workers_share_what_comes(app: Taskline) -> None:
    """Not a lease's matter, but its counterpart: no message goes to two workers."""
    counts: dict[str, int] = {}
    lock = threading.Lock()

    @app.task
    def run(key: str) -> None:
        with lock:
            counts[key] = counts.get(key, 0) + 1

    benches = [Bench(app, name=f"bench-{n}") for n in range(4)]
    run.map([str(n) for n in range(100)])
    while any([bench.turn() and bench.work() for bench in benches]):  # noqa: C419
        continue
    for bench in benches:
        bench.drain()
    assert counts == {str(n): 1 for n in range(100)}
