"""Queues by rank: what is asked first, and what runs first."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from workbench import Bench, until, working

from taskline import Taskline
from taskline.clock import ManualClock
from taskline.worker.turns import Turns

NAMES = [f"q{number}" for number in range(6)]


@given(
    queues=st.lists(st.sampled_from(NAMES), unique=True, min_size=1),
    ranks=st.dictionaries(st.sampled_from(NAMES), st.integers(0, 3)),
    weights=st.dictionaries(st.sampled_from(NAMES), st.integers(1, 100)),
    paused=st.lists(st.sets(st.sampled_from(NAMES)), max_size=3),
)
def test_all_that_are_not_paused_are_asked_by_rank(
    queues: list[str], ranks: dict[str, int], weights: dict[str, int], paused: list[set[str]]
) -> None:
    turns = Turns(queues, weights, ranks)
    gone: set[str] = set()
    for these in [*paused, set()]:
        assert set(turns.leave_out(these)) == set(queues) & (these - gone)
        gone = these
        order = turns.next()
        assert sorted(order) == sorted(set(queues) - these)
        asked = [ranks.get(queue, 0) for queue in order]
        assert asked == sorted(asked)


def test_within_a_rank_the_weights_decide() -> None:
    turns = Turns(["low", "b", "a", "high"], {"a": 3, "low": 100}, {"a": 1, "b": 1, "low": 2})
    seen = Counter(tuple(turns.next()) for _ in range(4000))
    assert set(seen) == {("high", "a", "b", "low"), ("high", "b", "a", "low")}
    assert 2850 < seen["high", "a", "b", "low"] < 3150


@pytest.fixture
def order() -> list[str]:
    """The queues of what has run, in that order."""
    return []


def noting(app: Taskline, order: list[str], work: Callable[[], object] = lambda: None) -> Any:
    @app.task(name="note")
    def note(queue: str) -> None:
        work()
        order.append(queue)

    return note


def test_a_rank_is_served_when_those_before_it_are_empty(app: Taskline, order: list[str]) -> None:
    note = noting(app, order)
    bench = Bench(
        app,
        queues=["low", "mail", "default", "critical"],
        ranks={"low": 2, "mail": 1, "default": 1},
        weights={"mail": 2},
        prefetch=3,
    )
    for queue in ("low", "default", "critical", "mail") * 20:
        note.options(queue=queue).delay(queue)
    bench.drain(200)
    runs = [(queue, len(list(group))) for queue, group in itertools.groupby(order)]
    assert order[:20] == ["critical"] * 20
    assert set(order[20:60]) == {"default", "mail"}
    assert runs[-1] == ("low", 20)


def test_what_comes_new_goes_before_what_was_fetched_but_for_a_moment(
    make_memory_app: Any, order: list[str]
) -> None:
    """Prefetch holds a tenth of a second's work, and asks again when half of it is done."""
    clock = ManualClock()
    app = make_memory_app(clock=clock)
    note = noting(app, order, lambda: clock.advance(0.01))
    bench = Bench(app, queues=["critical", "low"], ranks={"low": 1})
    bench.io._prefetch.observe([0.01] * 100)  # it knows how long they take
    for _ in range(500):
        note.options(queue="low").delay("low")
    bench.turn()
    assert bench.waiting > 5
    begun = clock.monotonic()
    note.options(queue="critical").delay("critical")
    while "critical" not in order:
        if bench.begin() is not None:
            bench.finish()
        bench.turn()
    assert clock.monotonic() - begun < 0.15
    assert len(order) < 15


def test_idle_workers_are_woken_by_any_rank(app: Taskline, order: list[str]) -> None:
    note = noting(app, order)
    with working(app, queues=["critical", "low"], ranks={"low": 1}):
        for number, queue in enumerate(["low", "critical"] * 3):
            note.options(queue=queue).delay(queue)
            until(lambda count=number: len(order) > count)  # type: ignore[misc]
    assert order == ["low", "critical"] * 3
