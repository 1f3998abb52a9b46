"""Poison is contained, and takes nobody with it (P7). Processes die here by decree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from workbench import Bench

from taskline import Taskline
from taskline.clock import ManualClock
from taskline.errors import TaskPoisoned
from taskline.message import SUCCESS

Death = Callable[[Bench], None]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def app(make_app: Any, clock: ManualClock) -> Taskline:
    app: Taskline = make_app(clock=clock)
    return app


class Farm:
    """Processes on one queue. One that has a poisonous message in a slot dies."""

    def __init__(self, app: Taskline, clock: ManualClock, *, slots: int, processes: int = 1):
        self.app = app
        self.clock = clock
        self.slots = slots
        self.runs: dict[str, int] = {}
        self.deaths = 0
        self.whole_group = False
        """Whether the supervisor dies, too, so that leases have to end."""

        @app.task(name="innocent")
        def innocent(key: str) -> str:
            self.runs[key] = self.runs.get(key, 0) + 1
            return key

        @app.task(name="poison")
        def poison(key: str) -> None:
            raise AssertionError("no process lives to see this")

        self.innocent, self.poison = innocent, poison
        self.benches = [self.process() for _ in range(processes)]

    def process(self) -> Bench:
        return Bench(
            self.app, slots=self.slots, max_deliveries=3, name=f"process-{self.deaths}-{id(self)}"
        )

    def step(self, at: int) -> None:
        """One process fills its slots, and then either dies or has them all end."""
        bench = self.benches[at]
        bench.turn()
        jobs = [bench.begin(slot) for slot in range(self.slots)]
        if any(job.task is self.poison for job in jobs if job is not None):
            self.deaths += 1
            if self.whole_group:
                self.clock.advance(31.0)
                self.benches = [self.process() for _ in self.benches]
            else:
                bench.die()
                self.benches[at] = self.process()
            return
        for slot in range(self.slots):
            bench.finish(slot)

    def run(self, steps: int = 400) -> None:
        for step in range(steps):
            self.step(step % len(self.benches))
            self.clock.advance(0.05)
            if not self.app.transport.peek("default"):
                return
        raise AssertionError(f"still there: {self.app.transport.stats()}")


@pytest.mark.parametrize("whole_group", [False, True])
@pytest.mark.parametrize("slots", [1, 4])
@pytest.mark.parametrize("poisons", [1, 6])
def test_poison_is_buried_and_bystanders_never_are(
    app: Taskline, clock: ManualClock, slots: int, poisons: int, whole_group: bool
) -> None:
    farm = Farm(app, clock, slots=slots)
    farm.whole_group = whole_group
    names = [f"p{n}" for n in range(poisons)]
    bystanders = [str(n) for n in range(30)]
    deadly, fine = [], []
    for n, key in enumerate(bystanders):  # the poison is spread among them
        if n % 5 == 1 and names:
            deadly.append(farm.poison.delay(names.pop()))
        fine.append(farm.innocent.delay(key))
    farm.run()
    assert [result.state for result in fine] == [SUCCESS] * 30
    for result in deadly:
        with pytest.raises(TaskPoisoned):
            result.get(timeout=0)
    assert {letter.id for letter in app.transport.dead_letters()} == {each.id for each in deadly}
    assert farm.deaths <= 3 * poisons, "none had more chances than it should"
    assert set(farm.runs.values()) == {1}


def test_poison_that_wanders_between_processes_harms_nobody(
    app: Taskline, clock: ManualClock
) -> None:
    farm = Farm(app, clock, slots=4, processes=3)
    deadly = [farm.poison.delay(str(n)) for n in range(4)]
    fine = farm.innocent.map([str(n) for n in range(40)])
    farm.run()
    assert fine.get(timeout=0) == [str(n) for n in range(40)]
    assert {each.state for each in deadly} == {"FAILURE"}
    assert len(app.transport.dead_letters()) == 4


def lose(app: Taskline, count: int = 1) -> None:
    """Let everything in the queue be lost once by a worker that ran it."""
    for _ in range(count):
        taken = app.transport.receive(["default"], 100, 30.0, 0.0, "dead")
        app.transport.recover("dead", [delivery.id for delivery in taken])


def test_a_suspect_begins_when_nothing_else_is_held(app: Taskline, clock: ManualClock) -> None:
    farm = Farm(app, clock, slots=4)
    suspects = [farm.innocent.delay(f"suspect-{n}") for n in range(2)]
    lose(app)
    farm.innocent.map([str(n) for n in range(10)])
    bench = farm.benches[0]
    bench.turn(2)
    assert bench.held == {suspects[0].id}
    assert bench.waiting == 1
    bench.begin()
    bench.turn(3)
    assert bench.held == {suspects[0].id}, "nothing new during its first moments"
    bench.finish()
    farm.run()
    assert len(farm.runs) == 12
    assert set(farm.runs.values()) == {1}


@pytest.mark.parametrize("losses", [1, 2])
def test_a_long_suspect_holds_back_no_idle_slot_for_long(
    app: Taskline, clock: ManualClock, losses: int
) -> None:
    farm = Farm(app, clock, slots=2)
    farm.innocent.delay("long")
    farm.innocent.delay("other-suspect")
    lose(app, losses)
    farm.innocent.map([str(n) for n in range(5)])
    bench = farm.benches[0]
    bench.turn(2)
    job = bench.begin(0)
    assert job is not None
    clock.advance(1.0)
    for _ in range(20):
        bench.turn()
        bench.work(1)
        assert job.delivery.id in bench.held
    ran = {str(n): 1 for n in range(5)}
    if losses == 1:
        ran["other-suspect"] = 1  # the first is cleared: what kills does it at once
    assert farm.runs == ran
    bench.finish(0)
    clock.advance(1.0)
    farm.run()
    assert farm.runs["other-suspect"] == 1


def test_a_suspect_is_not_starved_by_work_that_is_always_there(
    app: Taskline, clock: ManualClock
) -> None:
    farm = Farm(app, clock, slots=1)
    farm.innocent.map([str(n) for n in range(20)])
    bench = farm.benches[0]
    bench.drain()
    farm.innocent.map([str(n) for n in range(20, 60)])
    bench.turn()
    assert bench.waiting > 1
    suspect = farm.innocent.delay("suspect")
    taken = app.transport.receive(["default"], 100, 30.0, 0.0, "dead")
    app.transport.recover("dead", [suspect.id])
    assert suspect.id in {delivery.id for delivery in taken}
    for number in range(60, 200):
        farm.innocent.delay(str(number))
        bench.turn()
        bench.begin()
        clock.advance(0.02)
        bench.turn()
        bench.finish()
        if suspect.state == SUCCESS:
            break
    assert suspect.state == SUCCESS
    assert app.transport.peek("default"), "others still wait"


def test_what_waited_before_the_suspect_came_is_handed_back_too(
    app: Taskline, clock: ManualClock
) -> None:
    farm = Farm(app, clock, slots=4)
    farm.innocent.map(["a", "b"])
    bench = farm.benches[0]
    bench.turn()
    assert bench.waiting == 2
    suspect = farm.innocent.delay("suspect")
    lose(app)
    bench.turn(2)
    assert bench.held == {suspect.id}
    farm.run()
    assert farm.runs == {"a": 1, "b": 1, "suspect": 1}


def test_many_suspects_are_worked_off_without_ado(app: Taskline, clock: ManualClock) -> None:
    """After a power cut all that was held is suspect: that must not take the day."""
    farm = Farm(app, clock, slots=4)
    results = farm.innocent.map([str(n) for n in range(60)])
    lose(app)
    bench, turns = farm.benches[0], 0
    while app.transport.peek("default"):
        turns += 1
        bench.turn()
        bench.work()
    assert set(farm.runs.values()) == {1}
    assert turns < 200
    deliveries = [result.info["deliveries"] for result in results]
    assert max(deliveries) < 12, "they are not handed back and forth"


def test_a_suspect_waits_for_a_free_slot_in_the_broker(app: Taskline, clock: ManualClock) -> None:
    farm = Farm(app, clock, slots=1)
    farm.innocent.delay("long")
    bench = farm.benches[0]
    bench.turn()
    bench.begin()
    suspect = farm.innocent.delay("suspect")
    lose(app)
    for _ in range(10):
        bench.turn()
    assert suspect.id not in bench.held
    [stored] = [each for each in app.transport.peek("default") if each.id == suspect.id]
    assert stored.deliveries < 5
    bench.finish()
    clock.advance(1.0)
    farm.run()
    assert farm.runs == {"long": 1, "suspect": 1}


def test_a_suspect_is_handed_back_when_the_worker_stops(app: Taskline, clock: ManualClock) -> None:
    farm = Farm(app, clock, slots=1)
    farm.innocent.delay("suspect")
    lose(app)
    bench = farm.benches[0]
    bench.io.step(0.0)  # it was received, and has no place yet
    bench.io.stop(0.0)
    while bench.turn():
        pass
    assert not bench.held
    [again] = app.transport.receive(["default"], 10, 30.0, 0.0, "next")
    assert again.lost == 1, "being handed back is no loss"


def test_release_that_fails_keeps_the_suspect_waiting(
    make_memory_app: Any, clock: ManualClock
) -> None:
    from workbench import spy_on

    app = make_memory_app(clock=clock)
    transport, _ = spy_on(app)
    farm = Farm(app, clock, slots=1)
    suspect = farm.innocent.delay("suspect")
    lose(app)
    farm.innocent.delay("fresh")
    bench = farm.benches[0]
    transport.faults["release"] = ["before"]
    bench.turn(2)
    assert not bench.waiting, "what waits beside it is still ours"
    clock.advance(1.0)
    bench.turn()
    assert (bench.waiting, bench.held) == (1, {suspect.id})
    farm.run()
    assert farm.runs == {"suspect": 1, "fresh": 1}
