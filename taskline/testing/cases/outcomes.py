"""Outcomes: what is stored, which of two stays, and how long."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product

import pytest

from taskline.backends.base import Backend
from taskline.clock import Clock
from taskline.message import (
    FAILURE,
    FINAL_STATES,
    RETRY,
    STARTED,
    SUCCESS,
    Outcome,
)
from taskline.testing.cases.backend import FENCES, LONG, SOME_STATES, BackendSuite, Connect, outcome


class Storing(BackendSuite):
    @pytest.mark.parametrize("state", [STARTED, RETRY, *sorted(FINAL_STATES)])
    def test_an_outcome_is_fetched_as_it_was_stored(
        self, backend: Backend, other: Backend, state: str
    ) -> None:
        stored = outcome("order-42/ü'%", state, sent=1700000000.123456, deliveries=3, ttl=LONG)
        assert list(backend.store([stored])) == []
        (found,) = other.fetch(["order-42/ü'%"]).values()
        assert (found.id, found.state, found.fence) == (stored.id, state, stored.fence)
        assert bytes(found.frame) == stored.frame

    @pytest.mark.parametrize(
        "frame", [b"", b"\n\x00\r\n", bytes(range(256)), bytes(range(256)) * 4096]
    )
    def test_a_frame_is_any_bytes(self, backend: Backend, frame: bytes) -> None:
        backend.store([outcome(frame=frame)])
        assert bytes(backend.fetch(["a"])["a"].frame) == frame

    def test_only_what_is_stored_is_fetched(self, backend: Backend) -> None:
        backend.store([outcome("a"), outcome("b", STARTED), outcome("c")])
        found = backend.fetch(["a", "b", "unheard-of"])
        assert {key: each.state for key, each in found.items()} == {"a": SUCCESS, "b": STARTED}
        assert backend.fetch([]) == {}

    @pytest.mark.parametrize("collection", [list, tuple, set, frozenset, dict.fromkeys])
    def test_ids_come_in_any_collection(
        self, backend: Backend, collection: Callable[[list[str]], dict[str, None]]
    ) -> None:
        backend.store([outcome("a"), outcome("b")])
        assert sorted(backend.fetch(collection(["a", "b"]))) == ["a", "b"]
        assert sorted(backend.wait(collection(["a", "b"]), 0)) == ["a", "b"]

    def test_many_ids_at_once(self, backend: Backend, other: Backend) -> None:
        stored = [outcome(f"id-{number}", frame=b"%d" % number) for number in range(self.many)]
        assert list(backend.store(stored)) == []
        wanted = {each.id for each in stored} | {"unheard-of"}
        found = other.fetch(wanted)
        assert {key: bytes(each.frame) for key, each in found.items()} == {
            each.id: each.frame for each in stored
        }
        assert len(other.wait(wanted, 0)) == self.many
        other.expire(sorted(wanted), LONG)
        other.forget(sorted(wanted))
        assert backend.fetch(wanted) == {}

    def test_an_empty_batch_is_no_error(self, backend: Backend) -> None:
        assert list(backend.store([])) == []
        backend.forget([])
        backend.expire([], 1.0)
        backend.revoke([], LONG)
        assert backend.wait([], 0) == {}

    def test_what_is_stored_outlives_the_connection(self, connect: Connect) -> None:
        first = connect()
        first.store([outcome("a")])
        first.close()
        self.assert_state(connect(), "a", SUCCESS)


class Fence(BackendSuite):
    def test_of_two_runs_the_one_with_the_greater_fence_stays(self, backend: Backend) -> None:
        """Every pair of states and fences, each pair with an id of its own."""
        runs = list(product(SOME_STATES, FENCES))
        pairs = {f"{number:03d}": pair for number, pair in enumerate(product(runs, runs))}

        def stored(key: str, at: int) -> Outcome:
            state, (sent, deliveries) = pairs[key][at]
            return outcome(key, state, sent=sent, deliveries=deliveries, frame=b"%d" % at)

        backend.store([stored(key, 0) for key in pairs])
        refused = {each.id: each.frame for each in backend.store([stored(key, 1) for key in pairs])}
        found, final = backend.fetch(pairs), backend.wait(pairs, 0)
        for key, ((old_state, old_fence), (new_state, new_fence)) in pairs.items():
            wins = new_fence > old_fence or (
                new_fence == old_fence
                and (new_state in FINAL_STATES or old_state not in FINAL_STATES)
            )
            about = f"{old_state} {old_fence}, then {new_state} {new_fence}"
            assert refused.get(key) == (None if wins else b"1"), about
            assert found[key] == stored(key, int(wins)), about
            assert (key in final) == (found[key].state in FINAL_STATES), about

    def test_of_a_batch_only_what_is_outranked_is_refused(self, backend: Backend) -> None:
        backend.store([outcome("b", deliveries=5), outcome("d")])
        batch = [outcome("a"), outcome("b", FAILURE), outcome("c"), outcome("d", STARTED)]
        assert [each.id for each in backend.store(batch)] == ["b", "d"]
        assert sorted(backend.fetch("abcd")) == ["a", "b", "c", "d"]
        self.assert_state(backend, "b", SUCCESS)
        self.assert_state(backend, "d", SUCCESS)

    def test_a_batch_is_stored_in_its_order(self, backend: Backend) -> None:
        steps = [outcome("a", STARTED), outcome("a", FAILURE), outcome("a", STARTED, deliveries=2)]
        refused = backend.store([*steps, outcome("a", SUCCESS)])
        assert [each.state for each in refused] == [SUCCESS]
        self.assert_state(backend, "a", STARTED)

    def test_a_new_run_takes_back_a_final_state(self, backend: Backend) -> None:
        """A dead letter that is requeued is not done any more."""
        backend.store([outcome("a", FAILURE)])
        assert list(backend.store([outcome("a", STARTED, deliveries=2)])) == []
        assert backend.wait(["a"], 0) == {}
        self.assert_state(backend, "a", STARTED)

    def test_the_fence_holds_however_many_store_at_once(
        self, backend: Backend, connect: Connect
    ) -> None:
        def store(through: Backend, start: int) -> None:
            for deliveries in range(start, 60, 4):
                through.store([outcome("a", deliveries=deliveries, frame=b"%d" % deliveries)])

        for each in [self.in_thread(partial(store, connect(), start)) for start in range(4)]:
            each.result()
        assert bytes(backend.fetch(["a"])["a"].frame) == b"59"


class Ends(BackendSuite):
    def test_an_outcome_ends_after_its_ttl(
        self, backend: Backend, other: Backend, clock: Clock
    ) -> None:
        since = clock.monotonic()
        backend.store([outcome("a", ttl=self.span), outcome("b", ttl=None)])
        self.after(clock, self.span, lambda: "a" not in other.fetch(["a"]), since)
        assert backend.wait(["a", "b"], 0).keys() == {"b"}
        backend.maintain()
        assert backend.fetch(["a", "b"]).keys() == {"b"}

    def test_an_ended_outcome_fences_nobody(self, backend: Backend, clock: Clock) -> None:
        since = clock.monotonic()
        backend.store([outcome("a", deliveries=9, ttl=self.span)])
        self.after(clock, self.span, lambda: not backend.fetch(["a"]), since)
        assert list(backend.store([outcome("a", STARTED)])) == []
        self.assert_state(backend, "a", STARTED)

    def test_each_outcome_brings_its_own_ttl(self, backend: Backend, clock: Clock) -> None:
        backend.store([outcome("a", STARTED, ttl=self.span), outcome("b", STARTED)])
        since = clock.monotonic()
        backend.store([outcome("a", ttl=None), outcome("b", ttl=self.span)])
        self.after(clock, self.span, lambda: not backend.fetch(["b"]), since)
        backend.maintain()
        self.assert_state(backend, "a", SUCCESS)

    def test_a_refused_outcome_leaves_the_ttl_as_it_is(
        self, backend: Backend, clock: Clock
    ) -> None:
        backend.store([outcome("a", deliveries=2, ttl=None)])
        backend.store([outcome("a", deliveries=1, ttl=self.span)])
        self.let_pass(clock, self.span + 0.1)
        backend.maintain()
        self.assert_state(backend, "a", SUCCESS)

    def test_expire_counts_from_now(self, backend: Backend, other: Backend, clock: Clock) -> None:
        backend.store([outcome("a", ttl=LONG * 10), outcome("b"), outcome("c")])
        since = clock.monotonic()
        other.expire(["a", "b", "unheard-of"], self.span)
        self.after(clock, self.span, lambda: backend.fetch("abc").keys() == {"c"}, since)

    def test_expire_with_none_keeps_for_ever(self, backend: Backend, clock: Clock) -> None:
        backend.store([outcome("a", ttl=self.span)])
        backend.expire(["a"], None)
        self.let_pass(clock, self.span + 0.1)
        backend.maintain()
        self.assert_state(backend, "a", SUCCESS)

    def test_what_is_forgotten_is_gone(self, backend: Backend, other: Backend) -> None:
        backend.store([outcome("a", deliveries=9), outcome("b")])
        other.forget(["a", "unheard-of"])
        assert backend.fetch(["a", "b"]).keys() == {"b"}
        assert backend.wait(["a"], 0) == {}
        assert list(backend.store([outcome("a", STARTED)])) == []
