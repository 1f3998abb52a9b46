"""What was interrupted runs again soon (P4), whatever else there is to do."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from workbench import Bench

from taskline import Taskline
from taskline.clock import ManualClock
from taskline.errors import TransportError
from taskline.message import new_id
from taskline.transports.base import Transport
from taskline.worker.options import WorkerOptions
from taskline.worker.parent.child import BACKOFF_MAX, QUICK_DEATHS_FREE, READY_BACKOFF_MAX, Child
from taskline.worker.parent.recovery import RETRY_AFTER, Recovery


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def app(make_app: Any, clock: ManualClock) -> Taskline:
    app: Taskline = make_app(clock=clock)

    @app.task(name="work")
    def work(number: int) -> int:
        return number

    return app


def lose(app: Taskline, times: int = 1) -> None:
    """Let everything in the queue have been lost by a worker that ran it."""
    for _ in range(times):
        taken = app.transport.receive(["default"], 100, 30.0, 0.0, "dead")
        app.transport.recover("dead", [delivery.id for delivery in taken])


def test_a_slot_that_is_never_idle_does_not_starve_suspects(
    app: Taskline, clock: ManualClock
) -> None:
    work = app.tasks["work"]
    bench = Bench(app, slots=1)
    work.map(range(20))
    bench.turn()
    bench.begin()
    suspect = work.delay(0)
    app.transport.receive(["default"], 100, 30.0, 0.0, "dead")
    app.transport.recover("dead", [suspect.id])
    for _ in range(300):
        work.map(range(5))
        bench.turn()
        clock.advance(0.01)
        bench.finish()
        bench.begin()
        if suspect.ready():
            return
    raise AssertionError("the suspect never began, and there was always other work")


def test_long_tasks_of_a_killed_process_run_beside_one_another_again(
    app: Taskline, clock: ManualClock
) -> None:
    results = app.tasks["work"].map(range(3))
    lose(app)
    bench = Bench(app, slots=3)
    begun: set[str] = set()
    for _ in range(60):
        bench.turn()
        for slot in range(3):
            if bench.io.slots[slot].current is None and (job := bench.begin(slot)) is not None:
                begun.add(job.delivery.id)
        clock.advance(0.05)
    assert begun == set(results.ids), "all run, though none has ended"


def test_one_that_was_lost_again_stays_alone(app: Taskline, clock: ManualClock) -> None:
    app.tasks["work"].map(range(2))
    lose(app, times=2)
    bench = Bench(app, slots=2)
    for _ in range(60):
        bench.turn()
        for slot in range(2):
            if bench.io.slots[slot].current is None:
                bench.begin(slot)
        clock.advance(0.05)
    assert [slot.current is not None for slot in bench.io.slots].count(True) == 1


def die_young(child: Child, clock: ManualClock, *, ready: bool) -> float:
    """Let a process die 0.1 s after its start; returns how long its successor waits."""
    child.ledger.reset()
    child.started_at = clock.monotonic()
    clock.advance(0.1)
    if ready:
        child.ledger.mark_ready(clock.monotonic())
    return child.backoff(clock.monotonic(), recycled=False)


def test_processes_that_are_killed_again_and_again_are_replaced_within_half_a_second(
    clock: ManualClock,
) -> None:
    child = Child(0, 1)
    waits = [die_young(child, clock, ready=True) for _ in range(40)]
    assert waits[:QUICK_DEATHS_FREE] == [0.0] * QUICK_DEATHS_FREE
    assert max(waits) == pytest.approx(READY_BACKOFF_MAX)
    assert READY_BACKOFF_MAX < 1.0


def test_processes_that_do_not_reach_their_broker_wait_longer_each_time(
    clock: ManualClock,
) -> None:
    child = Child(0, 1)
    waits = [die_young(child, clock, ready=False) for _ in range(12)]
    assert all(0 < wait < later for wait, later in itertools.pairwise(waits[:8]))
    assert waits[-1] == pytest.approx(BACKOFF_MAX)


def test_a_death_before_the_broker_was_reached_is_not_added_to_those_of_others(
    clock: ManualClock,
) -> None:
    child = Child(0, 1)
    for _ in range(20):
        die_young(child, clock, ready=True)
    assert die_young(child, clock, ready=False) < 1.0


def test_a_broker_out_of_reach_is_told_once(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    name = f"memory://{new_id()}"
    app, out_of_reach = Taskline("test", broker=name, backend=name, clock=clock), True
    recovery = Recovery(app, WorkerOptions())
    really_open = app.open_transport

    def open_transport() -> Transport:
        if out_of_reach:
            raise TransportError("the cable is cut")
        return really_open()

    app.open_transport = open_transport  # type: ignore[method-assign]
    recovery.add("dead-1", [], clock.monotonic())
    for _ in range(5):
        recovery.look(clock.monotonic())
        clock.advance(RETRY_AFTER)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert recovery.pending
    out_of_reach = False
    recovery.look(clock.monotonic())
    assert not recovery.pending
    out_of_reach = True
    recovery.add("dead-2", [], clock.monotonic())
    recovery.look(clock.monotonic())
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
