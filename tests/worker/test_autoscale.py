"""How many processes a worker has, when it may have more or fewer."""

from __future__ import annotations

import time
from typing import Any

import pytest
from stage import Stage
from workbench import until

from taskline import Taskline
from taskline.errors import ConfigurationError
from taskline.worker import Supervisor, WorkerOptions
from taskline.worker.autoscale import DOWN_AFTER, Autoscale, Load


class Simulation:
    """A worker whose broker is asked once a second, in virtual time."""

    def __init__(self, least: int, most: int, slots: int = 1) -> None:
        self.scale = Autoscale(least, most)
        self.slots = slots
        self.now = 0.0
        self.processes = least
        self.history = [least]

    def live(
        self, seconds: float, *, busy: float = 0.0, ready: int = 0, oldest: float = 0.0
    ) -> None:
        """`busy`: the part of the slots in use. `oldest`: at first; it grows while it waits."""
        until = self.now + seconds
        while self.now < until:
            self.now += 1.0
            oldest = oldest + 1.0 if ready else 0.0
            used = round(busy * self.slots * self.processes)
            load = Load(self.now, self.processes, self.slots, used, ready, oldest)
            count = self.scale.wanted(load)
            if count != self.processes:
                self.processes = count
                self.history.append(count)


def test_more_within_three_seconds_when_messages_wait_and_all_are_busy() -> None:
    simulation = Simulation(1, 8)
    simulation.live(3, busy=1.0, ready=100)
    assert simulation.history == [1, 2]
    simulation.live(8, busy=1.0, ready=100)
    assert simulation.history == [1, 2, 4, 8], "and twice as many each time, to the most"
    simulation.live(100, busy=1.0, ready=100)
    assert simulation.processes == 8


def test_not_more_than_what_waits_can_use() -> None:
    simulation = Simulation(4, 100, slots=10)
    simulation.live(3, busy=1.0, ready=15)
    assert simulation.processes == 6


@pytest.mark.parametrize(
    "load",
    [
        {"busy": 0.5, "ready": 100},  # paused or limited: more would not run them either
        {"busy": 1.0, "ready": 0},
        {"busy": 0.0, "ready": 0},
    ],
)
def test_otherwise_not(load: Any) -> None:
    simulation = Simulation(2, 8)
    simulation.live(60, **load)
    assert simulation.processes == 2


def test_a_short_burst_changes_nothing() -> None:
    simulation = Simulation(1, 8)
    for _ in range(50):
        simulation.live(1, busy=1.0, ready=100)
        simulation.live(1, busy=1.0)
    assert simulation.processes == 1


def test_fewer_slowly_one_after_the_other_down_to_the_least() -> None:
    simulation = Simulation(2, 8)
    simulation.live(20, busy=1.0, ready=100)
    assert simulation.processes == 8
    simulation.live(DOWN_AFTER, busy=0.0)
    assert simulation.processes == 8
    simulation.live(DOWN_AFTER, busy=0.0)
    assert simulation.processes == 7
    simulation.live(10 * DOWN_AFTER, busy=0.0)
    assert simulation.processes == 2


def test_as_many_stay_as_the_load_needs() -> None:
    """A steady load does not make it swing."""
    simulation = Simulation(1, 10)
    simulation.live(20, busy=1.0, ready=100)
    for _ in range(1000):
        needed = 4.0  # slots in use, of however many
        overload = simulation.processes < needed
        simulation.live(
            1, busy=min(1.0, needed / simulation.processes), ready=10 if overload else 0, oldest=2.0
        )
    assert simulation.processes == 5
    assert len(simulation.history) < 15


def test_bounds_hold_after_a_person_has_scaled_it() -> None:
    simulation = Simulation(2, 4)
    simulation.processes = 9
    simulation.live(1)
    assert simulation.processes == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"processes": 3, "max_processes": 2}, "max_processes=2 is less than processes=3"),
        ({"max_processes": 2, "drain": True}, "drain=True"),
    ],
)
def test_wrong_bounds_are_refused(make_memory_app: Any, options: Any, message: str) -> None:
    app: Taskline = make_memory_app()
    with pytest.raises(ConfigurationError, match=message):
        Supervisor(app, WorkerOptions(**options))


def test_a_real_worker_grows_and_loses_nothing(stage: Stage) -> None:
    results = [stage.call("hold", f"x{number}") for number in range(4)]
    group = stage.start(processes=1, max_processes=4)
    began = time.monotonic()
    until(lambda: len({note[2] for note in stage.notes() if note[0] == "begin"}) == 4)
    print(f"four processes after {time.monotonic() - began:.1f} s")
    for number in range(4):
        stage.release(f"x{number}")
    assert len({stage.get(result)[0] for result in results}) == 4
    assert "2 processes from now on, after 1" in group.log
