"""Thousands of schedules of the core, each with faults at the calls that its workers make."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from simulation import FAULTS, KINDS, TIMES, Action, World

from taskline.worker.verdicts import ACK

RANDOM = 500
"""Schedules that hypothesis draws, for each of four tests."""
FIXED = 35
"""Calls at which each fault is tried in each of the fixed schedules."""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """No words about faults: there are too many."""
    logger = logging.getLogger("taskline")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(before)


sends = st.builds(Action, st.just("send"), st.integers(0, len(KINDS) - 1))
turns = st.builds(
    Action,
    st.sampled_from(["turn", "begin", "finish", "work", "turn", "begin", "finish", "work", "stop"]),
    st.integers(0, 1),
    st.integers(0, 1),
)
kills = st.builds(Action, st.just("kill"), st.integers(0, 1), st.integers(0, 1))
times = st.builds(Action, st.just("time"), st.integers(0, len(TIMES) - 1))
actions = st.lists(st.one_of(sends, turns, turns, times, kills), min_size=8, max_size=40)
faults = st.dictionaries(st.integers(0, 50), st.sampled_from(FAULTS), max_size=10)


@pytest.mark.parametrize("apart", [False, True], ids=["one store", "two stores"])
@pytest.mark.parametrize("part", [1, 2])
def test_whatever_fails_when(part: int, apart: bool) -> None:
    @settings(
        max_examples=RANDOM,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(first=st.lists(sends, min_size=part, max_size=3 * part), then=actions, faults=faults)
    def run(first: list[Action], then: list[Action], faults: dict[int, str]) -> None:
        World(apart, faults).run([*first, *then])

    run()


SCHEDULE = [
    *(Action("send", kind) for kind in range(len(KINDS))),
    Action("work", 0),
    Action("time", 2),
    Action("turn", 1),
    Action("begin", 1),
    Action("send", 0),
    Action("time", 0),
    Action("finish", 1),
    Action("turn", 1),
    Action("stop", 1),
    Action("work", 0),
]


@pytest.mark.parametrize("apart", [False, True], ids=["one store", "two stores"])
@pytest.mark.parametrize("fault", FAULTS)
def test_each_call_of_a_schedule_in_turn(fault: str, apart: bool) -> None:
    for number in range(FIXED):
        World(apart, {number: fault}).run(SCHEDULE)
        World(apart, {number: fault, number + 1: fault}).run(SCHEDULE)


def test_the_simulation_finds_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that acknowledges before it stores: some schedule shows it."""
    from taskline.worker.settle import Settlements

    def hasty(self: Settlements) -> None:
        jobs = self._pending[ACK]
        lost = self._transport.ack([job.delivery for job in jobs if not job.early])
        self._store(jobs)
        self._settled(ACK, jobs, lost)

    monkeypatch.setattr(Settlements, "_ack", hasty)
    told = []
    for number in range(FIXED):
        try:
            World(True, {number: "die before"}).run(SCHEDULE)
        except AssertionError as error:
            told.append(str(error))
    assert any("left no result" in each for each in told)
