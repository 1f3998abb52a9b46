"""What was interrupted runs again soon (P4), whatever else there is to do."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from typing import Any, ClassVar

import msgspec
import pytest
from workbench import Bench

from taskline import Taskline
from taskline.clock import ManualClock
from taskline.errors import TransportError
from taskline.message import new_id
from taskline.transports.base import Transport
from taskline.transports.memory import MemoryTransport
from taskline.worker import Worker
from taskline.worker.options import WorkerOptions
from taskline.worker.parent.child import BACKOFF_MAX, QUICK_DEATHS_FREE, READY_BACKOFF_MAX, Child
from taskline.worker.parent.recovery import HEIR_WITHIN, RETRY_AFTER, Recovery


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


# ---- who replaces a dead process is in its place


class Heirs(MemoryTransport):
    """Says that it has places, and notes what it is told of the dead."""

    capabilities = msgspec.structs.replace(MemoryTransport.capabilities, inherits=True)
    told: ClassVar[list[Any]] = []

    def inherit(self, queues: Sequence[str], place: str, started: Collection[str]) -> int:
        self.told.append(("inherit", queues, place, [*started]))
        return len(started)

    def recover(self, consumer: str, started: Collection[str]) -> int:
        self.told.append(("recover", consumer, [*started]))
        return len(started)

    def prepare(self, queues: Sequence[str], lease: float, consumer: str) -> None:
        self.told.append("prepare")


@pytest.fixture
def told(app: Taskline, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What those are told that the app opens."""
    name = new_id()

    def open_transport() -> Transport:
        return Heirs(name, app.clock)

    monkeypatch.setattr(app, "open_transport", open_transport)
    Heirs.told = []
    return Heirs.told


def dead(child: Child, clock: ManualClock, *ran: str, ready: bool = True) -> Child:
    """One more process of this place has lived, run these and died."""
    child.ledger.reset()
    if ready:
        child.ledger.mark_ready(clock.monotonic())
    for slot, message in enumerate(ran):
        child.ledger.start(slot, message, clock.time())
    child.died(clock.monotonic())
    return child


@pytest.fixture
def child() -> Child:
    child = Child(0, 2)
    child.consumer, child.place = "third", "first"
    return child


def test_who_was_not_in_the_place_yet_leaves_what_is_owed_to_the_next(
    child: Child, clock: ManualClock
) -> None:
    assert dead(child, clock, "a", "b").owed == ["a", "b"]
    assert dead(child, clock, ready=False).owed == ["a", "b"]
    assert child.owes
    assert dead(child, clock, "c").owed == ["c"], "who was has told of those before"
    dead(child, clock)
    assert not child.owes
    dead(child, clock, ready=False)
    assert child.owes, "nobody ran anything, but the dead may hold something"


def test_the_dead_are_left_to_those_that_replace_them_soon(
    app: Taskline, child: Child, clock: ManualClock, told: list[Any]
) -> None:
    recovery = Recovery(app, WorkerOptions())
    assert recovery.leaves(dead(child, clock, "a"))
    recovery.look(clock.monotonic(), [child])
    assert told == []
    clock.advance(HEIR_WITHIN + 0.1)
    recovery.look(clock.monotonic(), [child])
    assert told == [("recover", "first", ["a"])]
    assert not child.place, "the next one is to have another"
    recovery.look(clock.monotonic(), [child])
    assert len(told) == 1


def test_the_dead_are_not_left_to_those_that_come_late(
    app: Taskline, child: Child, clock: ManualClock, told: list[Any]
) -> None:
    dead(child, clock, "a")
    assert not Recovery(app, WorkerOptions(start_method="spawn")).leaves(child)
    child.start_at = child.died_at + HEIR_WITHIN + 0.1
    assert not Recovery(app, WorkerOptions()).leaves(child)


def test_the_dead_are_not_left_to_anybody_in_a_worker_that_stops(
    app: Taskline, child: Child, clock: ManualClock, told: list[Any]
) -> None:
    Recovery(app, WorkerOptions()).look(clock.monotonic(), [dead(child, clock, "a")], stopping=True)
    assert told == [("recover", "first", ["a"])]


def test_a_transport_without_places_hands_back_at_once(app: Taskline, child: Child) -> None:
    assert not Recovery(app, WorkerOptions()).leaves(child)


def test_an_heir_has_what_it_inherits_before_it_asks_for_more(
    make_app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app()
    monkeypatch.setattr(app, "open_transport", lambda: Heirs(new_id(), app.clock))
    Heirs.told = []
    worker = Worker(app, WorkerOptions(place="first", begun=["a"]))
    worker.start()
    worker.stop()
    assert Heirs.told == [("inherit", ["default"], "first", ["a"]), "prepare"]
