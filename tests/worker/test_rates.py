"""Rates and concurrency limits in the worker: in virtual time, and with processes that die."""

from __future__ import annotations

import bisect
import os
import signal
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from stage import Stage
from workbench import Bench, Spy, spy_on, until, working

from taskline import Taskline
from taskline.clock import ManualClock
from taskline.control import States
from taskline.errors import BackendError, ConfigurationError
from taskline.worker import Worker
from taskline.worker.lifetime import Lifetime
from taskline.worker.options import WorkerOptions

TICK = 1 / 64
MakeApp = Callable[..., Taskline]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


class Hall:
    """Some workers and their clock; notes when each job ran."""

    def __init__(self, app: Taskline, clock: ManualClock, workers: int = 1, **options: Any) -> None:
        self.app = app
        self.clock = clock
        self.benches = [
            Bench(app, name=f"w{number}", **options, prefetch=100) for number in range(workers)
        ]
        self.starts: list[tuple[float, str]] = []
        self.releases = Counter[str]()

    def pass_by(self, seconds: float) -> None:
        """Let time pass in which jobs are run as they come, each in no time."""
        end = self.clock.monotonic() + seconds
        while self.clock.monotonic() < end:
            for bench in self.benches:
                bench.turn()
                for job in bench.work():
                    assert job.header is not None
                    self.starts.append((self.clock.monotonic(), job.header.task))
            self.clock.advance(TICK)

    def times(self, task: str) -> list[float]:
        return [at for at, name in self.starts if name == task]

    def most_within(self, task: str, seconds: float) -> int:
        times = self.times(task)
        return max(bisect.bisect_left(times, at + seconds) - n for n, at in enumerate(times))


def delays(spy: Spy) -> list[float]:
    """The delays of all messages that were released, of the calls so far."""
    return [
        args[1] if len(args) > 1 else 0.0
        for name, args in spy.calls
        if name == "release"
        for _ in args[0]
    ]


# Rates


@pytest.mark.parametrize("workers", [1, 3])
def test_a_rate_holds_over_all_workers_and_is_used(
    make_memory_app: MakeApp, clock: ManualClock, workers: int
) -> None:
    app = make_memory_app(clock=clock)

    @app.task(name="limited", rate="20/s")
    def limited(number: int) -> None: ...

    limited.map(range(300))
    transport, _ = spy_on(app)
    hall = Hall(app, clock, workers, slots=4)
    hall.pass_by(20)
    times = hall.times("limited")
    assert len(times) == 300
    assert hall.most_within("limited", 1.0) <= 22
    assert times[-1] - times[0] <= 300 / 20 * 1.05
    # What must wait for long does so in the broker, and is not moved about.
    assert 150 < len(delays(transport)) < 2 * 300


@pytest.mark.parametrize("workers", [1, 3])
def test_what_was_missed_while_all_were_held_up_is_made_good(
    make_memory_app: MakeApp, clock: ManualClock, workers: int
) -> None:
    app = make_memory_app(clock=clock)

    @app.task(name="limited", rate="100/s")
    def limited(number: int) -> None: ...

    limited.map(range(3000))
    hall = Hall(app, clock, workers, slots=4)
    for _ in range(20):
        hall.pass_by(0.8)
        clock.advance(0.2)
    assert hall.most_within("limited", 1.0) <= 105
    assert len(hall.times("limited")) >= 20 * 98


@pytest.mark.parametrize("kind", ["alone", "batch", "place"])
def test_a_job_that_begins_too_late_waits_for_another_token(
    make_memory_app: MakeApp, clock: ManualClock, kind: str
) -> None:
    app = make_memory_app(clock=clock)
    batch = 2 if kind == "batch" else None

    @app.task(name="work", rate="100/s", concurrency=1 if kind == "place" else None, batch=batch)
    def work(numbers: Any) -> None: ...

    results = work.map(range(2))
    bench = Bench(app, slots=1)
    until(lambda: bench.turn() and bench.waiting)
    (found,) = app.limits()
    left = found.left[0]
    clock.advance(0.03)
    bench.work()
    assert not any(result.ready() for result in results)
    until(lambda: bench.turn() and bench.waiting)
    (found,) = app.limits()
    assert found.left[0] >= left, "what was not used was given back"
    assert len(found.held) == (kind == "place")
    bench.drain()
    assert all(result.ready() for result in results)


def test_what_is_acknowledged_before_it_runs_begins_however_late(
    make_memory_app: MakeApp, clock: ManualClock
) -> None:
    app = make_memory_app(clock=clock)

    @app.task(name="work", rate="100/s", ack="early")
    def work() -> None: ...

    result = work.delay()
    bench = Bench(app, slots=1)
    until(lambda: bench.turn() and bench.waiting)
    clock.advance(5)
    assert bench.work()
    bench.turn()
    assert result.ready()


def test_what_waits_for_a_limit_holds_nobody_up(
    make_memory_app: MakeApp, clock: ManualClock
) -> None:
    app = make_memory_app(clock=clock)

    @app.task(name="limited", rate="1/m")
    def limited(number: int) -> None: ...

    @app.task(name="free")
    def free(number: int) -> None: ...

    @app.task(name="other", queue="other")
    def other(number: int) -> None: ...

    limited.map(range(2000))
    free.map(range(30))
    other.map(range(30))
    hall = Hall(app, clock, slots=2)
    hall.pass_by(2)
    assert len(hall.times("free")) == 30
    assert len(hall.times("other")) == 30
    assert len(hall.times("limited")) == 1
    assert len(hall.benches[0].held) <= 1, "they wait in the broker"
    hall.pass_by(180)
    assert len(hall.times("limited")) == 4


def test_a_queue_that_is_held_up_as_a_whole_is_not_asked(
    make_memory_app: MakeApp, clock: ManualClock
) -> None:
    app = make_memory_app(clock=clock, queues={"slow": {"rate": "10/s"}})

    @app.task(name="limited", queue="slow")
    def limited(number: int) -> None: ...

    @app.task(name="free")
    def free(number: int) -> None: ...

    limited.map(range(200))
    free.map(range(10))
    transport, _ = spy_on(app)
    hall = Hall(app, clock, 2, slots=4)
    hall.pass_by(21)
    assert len(hall.times("limited")) == 200
    assert hall.most_within("limited", 1.0) <= 11
    assert len(hall.times("free")) == 10
    assert hall.times("free")[-1] <= hall.times("limited")[20]
    assert len(delays(transport)) < 50


def test_each_key_has_a_rate_of_its_own(make_memory_app: MakeApp, clock: ManualClock) -> None:
    app = make_memory_app(clock=clock)
    ran: list[tuple[float, int]] = []

    @app.task(name="call", rate="1/s", limit_key="customer")
    def call(customer: int) -> None:
        ran.append((clock.monotonic(), customer))

    call.map([number % 3 for number in range(30)])
    hall = Hall(app, clock, 2, slots=4)
    hall.pass_by(11)
    assert Counter(customer for _, customer in ran) == {0: 10, 1: 10, 2: 10}
    for customer in range(3):
        times = [at for at, whose in ran if whose == customer]
        assert all(b - a >= 0.979 for a, b in pairwise(times))


def test_several_rates_of_one_task_hold_together(
    make_memory_app: MakeApp, clock: ManualClock
) -> None:
    app = make_memory_app(clock=clock)

    @app.task(name="call", rate=["10/s", "60/m burst 20"])
    def call(number: int) -> None: ...

    call.map(range(100))
    hall = Hall(app, clock, 2, slots=4)
    hall.pass_by(60)
    assert hall.most_within("call", 1.0) <= 11
    assert 75 <= len(hall.times("call")) <= 81, "the burst, and one in each second"


def test_no_token_is_lost_to_a_job_that_lacks_another(
    make_memory_app: MakeApp, clock: ManualClock
) -> None:
    app = make_memory_app(clock=clock, queues={"default": {"rate": "1/m"}})

    @app.task(name="call", rate="1000/h burst 10", concurrency=3)
    def call(number: int) -> None: ...

    call.map(range(10))
    hall = Hall(app, clock, slots=4)
    hall.pass_by(1)
    assert len(hall.times("call")) == 1
    found = {each.name: each for each in app.limits()}
    assert found["call"].left[0] >= 9
    assert found["call"].held == ()


def test_each_attempt_takes_a_token(make_memory_app: MakeApp, clock: ManualClock) -> None:
    app = make_memory_app(clock=clock)
    attempts: list[float] = []

    @app.task(name="fails", rate="1/s", retry={"max": 3, "wait": 0})
    def fails() -> None:
        attempts.append(clock.monotonic())
        raise OSError

    fails.delay()
    Hall(app, clock).pass_by(6)
    assert len(attempts) == 4
    assert all(b - a >= 0.979 for a, b in pairwise(attempts))


def test_rates_change_while_workers_run(make_memory_app: MakeApp, clock: ManualClock) -> None:
    app = make_memory_app(clock=clock)

    @app.task(name="call", rate="1/s")
    def call(number: int) -> None: ...

    @app.task(name="free")
    def free(number: int) -> None: ...

    call.map(range(400))
    hall = Hall(app, clock)
    io = hall.benches[0].io
    hall.pass_by(4)
    assert 4 <= len(hall.times("call")) <= 5
    io._heed_rates({"call": "50/s", "free": "1/m", "broken": "x"})
    free.map(range(3))
    before = len(hall.times("call"))
    hall.pass_by(4)
    assert len(hall.times("call")) - before > 4
    assert len(hall.times("free")) == 1
    io._heed_rates({"free": "none"})
    hall.pass_by(125)
    assert len(hall.times("free")) == 3


def test_a_task_that_had_no_limits_gets_one(make_memory_app: MakeApp, clock: ManualClock) -> None:
    app = make_memory_app(clock=clock)

    @app.task(name="free")
    def free(number: int) -> None: ...

    hall = Hall(app, clock)
    io = hall.benches[0].io
    assert io._dispatch.limiter is None, "nobody pays for what is not used"
    io._heed_rates({"free": "1/s"})
    free.map(range(10))
    hall.pass_by(3.5)
    assert len(hall.times("free")) == 4


def test_what_is_told_is_heeded_by_a_worker(make_sqlite_app: MakeApp) -> None:
    app = make_sqlite_app()
    ran: list[int] = []

    @app.task(name="call", rate="1/h")
    def call(number: int) -> None:
        ran.append(number)

    @app.task(name="later")
    def later() -> None: ...

    with working(app, queues=["default"]):
        call.delay(0)
        until(lambda: ran)
        States(app).change(lambda state: type(state)(rates={"call": "none"}))
        call.delay(1)
        # It may have gone back to the broker before the news came; this one has not.
        until(lambda: call.delay(2) and len(ran) > 1)


# Concurrency


def test_no_more_than_the_limit_run(make_memory_app: MakeApp, clock: ManualClock) -> None:
    app = make_memory_app(clock=clock)

    @app.task(name="work", concurrency=3)
    def work(number: int) -> None: ...

    work.map(range(12))
    benches = [Bench(app, name=f"w{number}", slots=4) for number in range(2)]
    done, most = 0, 0
    for _ in range(3000):
        for bench in benches:
            bench.turn()
            for slot in range(4):
                if bench.io.slots[slot].current is None:
                    bench.begin(slot)
        running = [s for bench in benches for s in bench.io.slots if s.current is not None]
        most = max(most, len(running))
        clock.advance(TICK)
        for bench in benches:
            for slot in range(4):
                job = bench.io.slots[slot].current
                if job is not None and clock.time() - job.started > 0.5:
                    bench.finish(slot)
                    done += 1
        if done == 12:
            break
    assert (done, most) == (12, 3)
    for bench in benches:
        bench.turn()
    (found,) = app.limits()
    assert found.held == (), "all places are free"


def test_a_freed_place_goes_on_at_once(make_memory_app: MakeApp, clock: ManualClock) -> None:
    app = make_memory_app(clock=clock)

    @app.task(name="work", concurrency=1)
    def work(number: int) -> None: ...

    work.map(range(2))
    bench = Bench(app, slots=2)
    for _ in range(5):
        bench.turn()
    assert bench.begin(0) is not None
    assert bench.waiting == 0
    bench.finish(0)
    bench.turn()
    assert bench.waiting == 1, "without any time passing"


def test_places_are_renewed_with_the_leases(make_memory_app: MakeApp, clock: ManualClock) -> None:
    app = make_memory_app(clock=clock)

    @app.task(name="work", concurrency=1)
    def work(number: int) -> None: ...

    work.delay(0)
    first, other = Bench(app, name="first", lease=30.0), Bench(app, name="other", lease=30.0)
    first.turn(2)
    assert first.begin() is not None
    work.delay(1)
    for _ in range(40):
        clock.advance(5)
        first.turn()
        other.turn(2)
        assert other.waiting == 0, "the place is held as long as the task runs"
    first.finish()
    for _ in range(200):
        first.turn()
        other.turn()
        clock.advance(0.5)
        if first.waiting or other.waiting:
            return
    raise AssertionError("the place was never given on")


def test_a_dead_machine_keeps_no_place(make_memory_app: MakeApp, clock: ManualClock) -> None:
    """The message comes back when its lease ends, and has its place; another's ends by itself."""
    app = make_memory_app(clock=clock)

    @app.task(name="work", concurrency=1)
    def work(number: int) -> None: ...

    first = work.delay(0)
    dead = Bench(app, name="dead", lease=30.0)
    dead.turn(2)
    assert dead.begin() is not None
    clock.advance(31)
    other = Bench(app, name="other", lease=30.0)
    for _ in range(20):
        other.turn()
        other.work()
        clock.advance(0.25)
    assert first.ready()


def test_a_killed_process_leaves_its_place_to_the_next_run(
    make_memory_app: MakeApp, clock: ManualClock
) -> None:
    app = make_memory_app(clock=clock)

    @app.task(name="work", concurrency=1)
    def work(number: int) -> None: ...

    result = work.delay(0)
    dead = Bench(app, name="dead", lease=600.0)
    dead.turn(2)
    assert dead.begin() is not None
    assert dead.die() == [result.id]
    other = Bench(app, name="other", lease=600.0)
    began = clock.monotonic()
    while not result.ready():
        other.turn()
        other.work()
        clock.advance(0.05)
        assert clock.monotonic() - began < 1.0
    other.turn()
    (found,) = app.limits()
    assert found.held == ()


def test_who_was_paused_takes_no_place_from_who_runs(
    make_memory_app: MakeApp, clock: ManualClock
) -> None:
    app = make_memory_app(clock=clock)

    @app.task(name="work", concurrency=1)
    def work(number: int) -> None: ...

    work.delay(0)
    paused, other = Bench(app, name="paused"), Bench(app, name="other")
    paused.turn(2)
    assert paused.begin() is not None
    clock.advance(31)  # beyond the lease
    for _ in range(20):
        other.turn()
        if other.begin():
            break
        clock.advance(0.1)
    assert other.io.slots[0].current is not None
    paused.turn()
    paused.finish()
    paused.turn(2)
    (found,) = app.limits()
    assert [place.run.split()[-1] for place in found.held] == ["other"]


def test_what_waits_is_handed_back_at_a_stop(make_app: MakeApp) -> None:
    app = make_app()
    ran: list[int] = []

    @app.task(name="limited", rate="1/h")
    def limited(number: int) -> None:
        ran.append(number)

    limited.map(range(20))
    with working(app):
        until(lambda: ran)
    (stats,) = app.transport.stats(["default"])
    assert (stats.ready or 0) + (stats.delayed or 0) == 19
    assert stats.leased == 0


def test_limits_do_not_spend_a_process_of_few_tasks(
    make_memory_app: MakeApp, clock: ManualClock
) -> None:
    app = make_memory_app(clock=clock)

    @app.task(name="limited", rate="20/s")
    def limited(number: int) -> None: ...

    @app.task(name="free")
    def free(number: int) -> None: ...

    limited.map(range(15))
    free.map(range(5))
    options = WorkerOptions(max_tasks=10)
    hall = Hall(app, clock, slots=1, lifetime=Lifetime(options, clock.monotonic()))
    hall.pass_by(0.25)
    assert len(hall.times("free")) == 5


def test_early_acknowledgement_waits_for_the_limit(
    make_memory_app: MakeApp, clock: ManualClock
) -> None:
    app = make_memory_app(clock=clock)

    @app.task(name="limited", rate="1/s", ack="early")
    def limited(number: int) -> None: ...

    limited.map(range(5))
    hall = Hall(app, clock)
    hall.pass_by(0.5)
    assert len(hall.times("limited")) == 1
    (stats,) = app.transport.stats(["default"])
    assert (stats.ready or 0) + (stats.delayed or 0) + (stats.leased or 0) == 4
    hall.pass_by(5)
    assert len(hall.times("limited")) == 5


def test_a_batch_is_one_run(make_memory_app: MakeApp, clock: ManualClock) -> None:
    app = make_memory_app(clock=clock)
    runs: list[tuple[float, int]] = []

    @app.task(name="write", batch=10, batch_wait=0.1, rate="1/s", concurrency=1)
    def write(numbers: list[int]) -> None:
        runs.append((clock.monotonic(), len(numbers)))

    write.map(range(40))
    hall = Hall(app, clock)
    hall.pass_by(8)
    assert sum(size for _, size in runs) == 40
    assert len(runs) <= 8
    assert all(b - a >= 0.979 for (a, _), (b, _) in pairwise(runs))


def test_coroutines_have_limits_too(make_app: MakeApp) -> None:
    app = make_app()
    inside: list[int] = []
    most: list[int] = []

    @app.task(name="work", concurrency=2)
    async def work(number: int) -> int:
        import asyncio

        inside.append(number)
        most.append(len(inside))
        await asyncio.sleep(0.02)
        inside.remove(number)
        return number

    results = work.map(range(12))
    with working(app, async_slots=10):
        assert sorted(results.get(timeout=30)) == list(range(12))
    assert max(most) == 2


def test_a_key_that_cannot_be_had_is_the_tasks_failure(make_memory_app: MakeApp) -> None:
    app = make_memory_app()

    @app.task(name="work", rate="1/s", limit_key=lambda number: 1 // number, retry=0)
    def work(number: int) -> None: ...

    result = work.delay(0)
    with working(app):
        until(result.ready)
    assert "ZeroDivisionError" in (app.transport.dead_letters()[0].reason)


def test_an_outage_of_the_store_loses_nothing(make_memory_app: MakeApp, clock: ManualClock) -> None:
    app = make_memory_app(clock=clock)

    @app.task(name="work", rate="100/s", concurrency=2)
    def work(number: int) -> None: ...

    results = work.map(range(20))
    bench = Bench(app, slots=2)
    limiter = bench.io._dispatch.limiter
    assert limiter is not None
    keys = limiter._grants._keys
    take = keys.take
    failures = [True, False, True, False]

    def fails(asks: Any) -> Any:
        if failures and failures.pop():
            raise BackendError("the cable is cut")
        return take(asks)

    keys.take = fails  # type: ignore[method-assign]
    for _ in range(400):
        bench.turn()
        bench.work()
        clock.advance(0.1)
    assert all(result.ready() for result in results)
    (found,) = app.limits()
    assert found.held == ()


def test_what_was_permitted_begins_though_the_store_fails_then(
    make_memory_app: MakeApp, clock: ManualClock
) -> None:
    """The limits of two tasks are asked for one after the other when the first leaves slots."""
    app = make_memory_app(clock=clock)

    @app.task(name="first", rate="1/s", concurrency=3)
    def first(number: int) -> None: ...

    @app.task(name="second", rate="100/s", concurrency=3)
    def second(number: int) -> None: ...

    results = [*first.map(range(3)), *second.map(range(3))]
    bench = Bench(app, slots=3)
    limiter = bench.io._dispatch.limiter
    assert limiter is not None
    keys, calls = limiter._grants._keys, [0]
    take = keys.take

    def fails(asks: Any) -> Any:
        calls[0] += 1
        if calls[0] % 2 == 0:
            raise BackendError("the cable is cut")
        return take(asks)

    keys.take = fails  # type: ignore[method-assign]
    for _ in range(1000):
        bench.turn()
        bench.work()
        clock.advance(0.1)
    assert all(result.ready() for result in results)
    assert not bench.held
    assert not any(each.held for each in app.limits())


def test_a_suspect_waits_for_its_limit_too(make_memory_app: MakeApp, clock: ManualClock) -> None:
    app = make_memory_app(clock=clock)

    @app.task(name="limited", rate="1/m")
    def limited(number: int) -> None: ...

    limited.delay(0)
    hall = Hall(app, clock)
    hall.pass_by(1)
    result = limited.delay(1)
    app.transport.receive(["default"], 100, 30.0, 0.0, "dead")
    app.transport.recover("dead", [result.id])
    hall.pass_by(50)
    assert not result.ready()
    hall.pass_by(25)
    assert result.ready()


def test_a_drain_waits_for_what_waits_for_its_limit(make_app: MakeApp) -> None:
    app = make_app()

    @app.task(name="limited", rate="1/2s")
    def limited(number: int) -> None: ...

    results = limited.map(range(3))
    # What waits for its turn waits in the broker: there are moments in which nobody holds any.
    with working(app, drain=True) as worker:
        until(lambda: worker.io.drained, 60)
    assert all(result.ready() for result in results)


def test_limits_need_a_backend() -> None:
    app = Taskline("shop", broker="memory://", backend=None)

    @app.task(name="work", rate="1/s")
    def work() -> None: ...

    work.delay()  # a sender needs none
    with pytest.raises(
        ConfigurationError, match=r"the task work has a rate or concurrency=.*no result backend"
    ):
        Worker(app)


# Processes that die


def inside(stage: Stage, killed: list[str]) -> list[set[str]]:
    """Who was running after each note, without those in processes that were killed."""
    found: set[str] = set()
    steps = []
    for what, name, pid in stage.notes():
        if what == "begin" and pid not in killed:
            found.add(name)
        if what == "end":
            found.discard(name)
        steps.append(set(found))
    return steps


def test_a_killed_process_blocks_nobody_and_lets_nobody_in(stage: Stage) -> None:
    """Under a lease that no test outlives: nothing of this waits for its end."""
    stage.start(processes=2, threads=2, env={"PROGRAM_LIMITS": "1"})
    names = [f"r{number}" for number in range(5)]
    results = [stage.app.send_task("room", [name]) for name in names]
    until(lambda: len(stage.notes()) == 2, 60)
    (_, first, pid), (_, second, other) = stage.notes()
    os.kill(int(pid), signal.SIGKILL)
    lost = [first] if other != pid else [first, second]
    for name in lost:
        stage.begun(name, 2)  # it has its place again
    for name in names:
        stage.release(name)
    for result in results:
        result.get(timeout=60)
    assert max(map(len, inside(stage, [pid]))) <= 2


def test_a_process_that_is_killed_for_its_task_leaves_no_place_behind(stage: Stage) -> None:
    stage.start(processes=1, threads=1, env={"PROGRAM_LIMITS": "1"})
    first = stage.app.send_task("alone", ["same"])
    stage.begun("same", 1)
    second = stage.app.send_task("alone", ["same"])
    for result in (first, second):
        until(result.ready, 60)
        assert result.failed()
