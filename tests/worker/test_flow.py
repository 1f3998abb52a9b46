"""What a process takes in, in which order, and what it leaves for others (P8)."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any

import pytest
from workbench import Bench, spy_on, until, working

from taskline import Taskline
from taskline.clock import ManualClock
from taskline.message import PENDING


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def still_app(make_app: Any, clock: ManualClock) -> Taskline:
    """An app whose clock stands still."""
    app: Taskline = make_app(clock=clock)
    return app


class Work:
    """Tasks that take as long as their argument says, by the clock that stands still."""

    def __init__(self, app: Taskline, clock: ManualClock) -> None:
        self.done: list[float] = []

        @app.task(name="take")
        def take(seconds: float) -> float:
            clock.advance(seconds)
            self.done.append(seconds)
            return seconds

        self.take = take


def test_short_tasks_are_taken_in_by_the_hundred(still_app: Taskline, clock: ManualClock) -> None:
    work = Work(still_app, clock)
    bench = Bench(still_app, prefetch=200)
    work.take.map([0.0001] * 1000)
    most = 0
    while len(work.done) < 1000:
        bench.turn()
        most = max(most, bench.waiting)
        bench.work()
    assert 150 < most <= 201


def test_long_tasks_are_taken_in_one_by_one(still_app: Taskline, clock: ManualClock) -> None:
    work = Work(still_app, clock)
    bench = Bench(still_app)
    work.take.map([1.0] * 20)
    held = []
    for _ in range(60):
        bench.turn()
        held.append(len(bench.held))
        bench.work()
    assert len(work.done) == 20
    assert max(held[6:]) == 1


def test_what_waits_behind_a_long_task_goes_back_to_those_who_are_idle(
    still_app: Taskline, clock: ManualClock
) -> None:
    work = Work(still_app, clock)
    busy, idle = Bench(still_app, name="busy"), Bench(still_app, name="idle")
    work.take.map([0.0001] * 50)
    busy.drain()
    results = work.take.map([3600.0, *[0.001] * 40])
    busy.turn()
    assert busy.waiting > 20, "it had reason to think that they are short"
    busy.begin()
    busy.turn()
    clock.advance(0.25)
    busy.turn()
    assert busy.waiting == 0
    assert busy.held == {results.ids[0]}
    idle.drain()
    assert results[40].state == "SUCCESS"
    for _ in range(20):
        work.take.delay(0.001)
        busy.turn()
        assert not busy.waiting, "it does not take in what it cannot begin"
        clock.advance(0.3)
    infos = [result.info for result in list(results)[1:]]
    assert {info["deliveries"] for info in infos} == {2}, "handed back once"


@pytest.mark.parametrize("slots", [1, 4])
def test_busy_slots_take_nothing_in_and_do_not_hand_it_back_and_forth(
    still_app: Taskline, clock: ManualClock, slots: int
) -> None:
    work = Work(still_app, clock)
    busy = Bench(still_app, slots=slots)
    work.take.map([3600.0] * slots)
    busy.turn()
    for slot in range(slots):
        assert busy.begin(slot) is not None
    waiting = work.take.map([0.001] * 10)
    for _ in range(40):
        busy.turn()
        clock.advance(0.11)
    assert busy.waiting == 0
    stored = [each for each in still_app.transport.peek("default", 50) if each.id in waiting.ids]
    assert max(each.deliveries for each in stored) <= 2


def test_being_handed_back_is_no_loss(still_app: Taskline, clock: ManualClock) -> None:
    work = Work(still_app, clock)
    busy = Bench(still_app)
    work.take.map([3600.0, 1.0])
    busy.turn()
    busy.begin()
    busy.turn()
    clock.advance(0.25)
    busy.turn()
    [delivery] = still_app.transport.receive(["default"], 10, 30.0, 0.0, "other")
    assert delivery.lost == 0


def test_first_in_first_out_on_one_slot(app: Taskline) -> None:
    order: list[int] = []

    @app.task
    def run(number: int) -> None:
        order.append(number)

    with working(app):
        results = run.map(range(500))
        results.get(timeout=30)
    assert order == list(range(500))


def test_higher_priorities_go_first(still_app: Taskline) -> None:
    order: list[int] = []

    @still_app.task
    def run(priority: int) -> None:
        order.append(priority)

    bench = Bench(still_app)
    for priority in (5, 0, 9, 3, 9, 7):
        run.options(priority=priority).delay(priority)
    bench.drain()
    assert order == [9, 9, 7, 5, 3, 0]


def test_heavier_queues_are_asked_first_more_often(make_memory_app: Any) -> None:
    app = make_memory_app()
    transport, _ = spy_on(app)
    bench = Bench(app, queues=["light", "heavy"], weights={"heavy": 9})
    for _ in range(2000):
        bench.io._intake.receive(1, 0.0)
    first = Counter(args[0][0] for name, args in transport.calls if name == "receive")
    assert 1700 < first["heavy"] < 1900


def test_every_queue_is_served_whatever_its_weight(app: Taskline) -> None:
    @app.task
    def run(number: int) -> int:
        return number

    with working(app, queues=["light", "heavy"], weights={"heavy": 50}, prefetch=5):
        results = [
            run.options(queue=queue).delay(n) for n in range(50) for queue in ("heavy", "light")
        ]
        assert [result.get(timeout=30) for result in results]


def test_a_worker_serves_only_its_queues(app: Taskline) -> None:
    @app.task
    def run() -> str:
        return "ran"

    with working(app, queues=["mine"]):
        other = run.options(queue="other").delay()
        assert run.options(queue="mine").delay().get(timeout=30) == "ran"
        assert other.state == "PENDING"


def test_a_worker_that_is_told_nothing_serves_the_queues_of_its_tasks(app: Taskline) -> None:
    @app.task(queue="special")
    def run() -> str:
        return "ran"

    with working(app):
        assert run.delay().get(timeout=30) == "ran"
        assert app.send_task(run.name, queue="default").get(timeout=30) == "ran"


def test_as_many_tasks_run_at_a_time_as_there_are_threads(app: Taskline) -> None:
    together = threading.Barrier(4)

    @app.task
    def meet() -> int:
        return together.wait(timeout=30)

    with working(app, threads=4):
        results = [meet.delay() for _ in range(4)]
        assert sorted(result.get(timeout=30) for result in results) == [0, 1, 2, 3]


def test_never_more_tasks_run_at_a_time_than_there_are_threads(app: Taskline) -> None:
    lock = threading.Lock()
    now, most = 0, 0

    @app.task
    def run() -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        until(lambda: time.monotonic() > start + 0.002)
        with lock:
            now -= 1

    start = time.monotonic()
    with working(app, threads=3):
        run.starmap([()] * 100).get(timeout=30)
    assert most <= 3


def test_a_new_message_wakes_an_idle_worker(app: Taskline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskline.worker.io.TICK", 3600.0)
    monkeypatch.setattr("taskline.transports.sqlite.RECHECK", 3600.0)

    @app.task
    def run(number: int) -> int:
        return number

    with working(app, lease=36000.0):  # it would sleep for an hour
        for number in range(20):
            assert run.delay(number).get(timeout=30) == number


def test_an_idle_worker_asks_about_once_a_second(make_memory_app: Any) -> None:
    app = make_memory_app()
    transport, _ = spy_on(app)

    @app.task
    def run() -> None: ...

    with working(app):
        run.delay().get(timeout=30)
        until(lambda: len(transport.names("receive")) > 3)
        before = len(transport.calls)
        start = time.monotonic()
        until(lambda: time.monotonic() > start + 1.5)
        asked = len(transport.calls) - before
    assert asked <= 8, transport.names()[before:]


def test_coroutines_do_not_make_a_process_hoard_other_tasks(
    still_app: Taskline, clock: ManualClock
) -> None:
    """Places for coroutines are free, and the broker has only `def` tasks."""
    work = Work(still_app, clock)

    @still_app.task
    async def coroutine() -> None: ...

    busy = Bench(still_app, name="busy", async_slots=50)
    idle = Bench(still_app, name="idle", async_slots=50)
    work.take.map([1.0] * 3)
    busy.drain()
    work.take.delay(3600.0)
    busy.turn()
    busy.begin()
    results = work.take.map([1.0] * 30)
    busy.turn(5)
    assert busy.waiting <= 1
    idle.drain(turns=200)
    assert {result.state for result in results} == {"SUCCESS"}
    busy.io.async_slots.stop()  # type: ignore[union-attr]
    idle.io.async_slots.stop()  # type: ignore[union-attr]


def test_more_coroutines_than_places_wait_in_the_broker_without_a_storm(
    make_memory_app: Any,
) -> None:
    import asyncio

    app = make_memory_app()
    transport, _ = spy_on(app)
    release = threading.Event()
    running: list[int] = []

    @app.task
    async def hold(number: int) -> int:
        running.append(number)
        while not release.is_set():
            await asyncio.sleep(0.005)
        return number

    @app.task
    def plain() -> str:
        return "plain"

    with working(app, async_slots=3):
        results = hold.map(range(10))
        until(lambda: len(running) == 3)
        assert plain.options(priority=9).delay().get(timeout=30) == "plain"
        before = len(transport.names("receive"))
        start = time.monotonic()
        until(lambda: time.monotonic() > start + 0.8)
        asked = len(transport.names("receive")) - before
        assert sorted(running) == [0, 1, 2]
        assert asked < 20, "it asks now and then, not all the time"
        release.set()
        assert results.get(timeout=30) == list(range(10))


@pytest.mark.parametrize("threads", [1, 3])
def test_a_storm_of_tasks_is_worked_off_by_several_workers_once_each(
    make_sqlite_app: Any, threads: int
) -> None:
    app = make_sqlite_app()
    lock = threading.Lock()
    counts: Counter[int] = Counter()

    @app.task
    def run(number: int) -> int:
        with lock:
            counts[number] += 1
        return number

    with working(app, threads=threads), working(app, threads=threads):
        results = run.map(range(2000))
        assert results.get(timeout=60) == list(range(2000))
    assert set(counts.values()) == {1}


# ---- workers of different versions


def test_a_task_of_newer_code_is_left_to_workers_that_know_it(make_app: Any) -> None:
    clock = ManualClock()
    old = make_app(clock=clock, unknown_grace=60.0)
    new = make_app(clock=clock, unknown_grace=60.0)
    ran: list[int] = []

    @new.task(name="fresh")
    def fresh(number: int) -> int:
        ran.append(number)
        return number

    result = fresh.delay(1)
    first, second = Bench(old, name="old"), Bench(new, name="new")
    first.turn(2)
    assert first.held == set(), "it is handed back"
    assert (result.state, ran) == (PENDING, [])
    clock.advance(2.0)
    second.drain()
    assert (result.result, ran) == (1, [1])


def test_a_task_that_nobody_knows_is_buried_after_the_grace(make_app: Any) -> None:
    clock = ManualClock()
    app = make_app(clock=clock, unknown_grace=60.0)
    result = app.send_task("nobody.knows", countdown=100.0)
    bench = Bench(app)
    for _ in range(159):
        clock.advance(1.0)
        bench.turn(2)
    assert result.state == PENDING, "the grace counts from when it was due"
    for _ in range(3):
        clock.advance(1.0)
        bench.turn(2)
    assert result.failed()
    letter = app.transport.dead_letter(result.id)
    assert letter is not None
    assert "no task 'nobody.knows' is registered in this worker" in letter.reason
