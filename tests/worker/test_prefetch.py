from __future__ import annotations

import pytest
from workbench import Bench

from taskline import Taskline
from taskline.transports.memory import MemoryTransport
from taskline.worker.prefetch import HORIZON, Prefetch


def test_short_tasks_are_held_by_the_hundred_up_to_the_limit() -> None:
    prefetch = Prefetch(slots=1, limit=500)
    prefetch.observe([0.00001] * 100)
    assert prefetch.target() == 500
    prefetch.observe([0.001] * 100)
    assert 50 < prefetch.target() <= 100


def test_long_tasks_are_not_held_at_all() -> None:
    prefetch = Prefetch(slots=4, limit=500)
    prefetch.observe([5 * HORIZON] * 50)
    assert prefetch.target() == 0


def test_a_stuck_slot_ends_prefetching_at_once() -> None:
    prefetch = Prefetch(slots=1, limit=500)
    prefetch.observe([0.0001] * 100)
    prefetch.stuck(10.0)
    assert prefetch.target() == 0


def test_it_recovers_when_tasks_are_short_again() -> None:
    prefetch = Prefetch(slots=1, limit=500)
    prefetch.stuck(10.0)
    prefetch.observe([0.0001] * 60)
    assert prefetch.target() > 100


def test_tasks_too_short_for_the_clock_do_not_divide_by_zero() -> None:
    prefetch = Prefetch(slots=1, limit=7)
    prefetch.observe([0.0] * 100_000)
    assert prefetch.target() == 7


def test_where_nobody_says_how_many_the_broker_does(
    memory_app: Taskline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MemoryTransport, "ahead", 70)
    for said, most in ((None, 70), (7, 7)):
        bench = Bench(memory_app, prefetch=said)
        bench.io._prefetch.observe([0.0] * 100_000)
        assert bench.io._prefetch.target() == most
