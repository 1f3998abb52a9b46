"""The conformance suite for result backends, for those who write one.

    class TestPigeonLoft(BackendConformance):
        @pytest.fixture
        def make_backend(self, tmp_path):
            return lambda clock: PigeonLoft(tmp_path / "loft", clock)

Each sentence of `taskline.backends.base` is a test. `docs/testing.md` tells more.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import TypeAlias

import pytest

from taskline.backends.base import Backend, Revocation
from taskline.clock import SYSTEM_CLOCK, Clock, ManualClock
from taskline.message import (
    EXPIRED,
    FAILURE,
    FINAL_STATES,
    PENDING,
    RETRY,
    REVOKED,
    STARTED,
    SUCCESS,
    Outcome,
)
from taskline.testing.cases.base import Running, Suite

MakeBackend: TypeAlias = Callable[[Clock], Backend]
Connect: TypeAlias = Callable[..., Backend]

LONG = 600.0
"""Seconds: longer than any test lasts."""

SOME_STATES = [STARTED, RETRY, SUCCESS, FAILURE]
FENCES = [(1.0, 1), (1.0, 2), (2.0, 1)]
"""From the least to the greatest."""


def outcome(
    id: str = "a",
    state: str = SUCCESS,
    *,
    sent: float = 1.0,
    deliveries: int = 1,
    ttl: float | None = None,
    frame: bytes = b"frame",
) -> Outcome:
    return Outcome(id, state, sent, deliveries, ttl, frame)


class BackendConformance(Suite):
    """Subclass it as `Test…` and override the fixture `make_backend`."""

    @pytest.fixture
    def make_backend(self) -> MakeBackend:
        """A function of a clock that opens one more connection to the test's own empty store."""
        pytest.fail("override the fixture make_backend: see docs/testing.md", pytrace=False)

    @pytest.fixture
    def connect(self, make_backend: MakeBackend, clock: Clock) -> Iterator[Connect]:
        """Opens one more connection, which is closed after the test."""
        made: list[Backend] = []

        def connect(with_clock: Clock = clock) -> Backend:
            made.append(make_backend(with_clock))
            return made[-1]

        yield connect
        while made:
            made.pop().close()

    @pytest.fixture
    def backend(self, connect: Connect) -> Backend:
        return connect()

    @pytest.fixture
    def other(self, connect: Connect) -> Backend:
        """A second connection to the same store."""
        return connect()

    def waiting(self, backend: Backend, *ids: str) -> Running[dict[str, Outcome]]:
        return self.in_thread(lambda: backend.wait(ids, LONG))

    def assert_state(self, backend: Backend, id: str, state: str | None) -> None:
        found = backend.fetch([id]).get(id)
        assert (found.state if found else None) == state

    # store and fetch

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
        stored = [outcome(f"id-{number}", frame=b"%d" % number) for number in range(5000)]
        assert list(backend.store(stored)) == []
        wanted = {each.id for each in stored} | {"unheard-of"}
        found = other.fetch(wanted)
        assert {key: bytes(each.frame) for key, each in found.items()} == {
            each.id: each.frame for each in stored
        }
        assert len(other.wait(wanted, 0)) == 5000
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

    # the fence

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

    # ends

    def test_an_outcome_ends_after_its_ttl(
        self, backend: Backend, other: Backend, clock: Clock
    ) -> None:
        backend.store([outcome("a", ttl=self.span), outcome("b", ttl=None)])
        self.after(clock, self.span, lambda: "a" not in other.fetch(["a"]))
        assert backend.wait(["a", "b"], 0).keys() == {"b"}
        backend.maintain()
        assert backend.fetch(["a", "b"]).keys() == {"b"}

    def test_an_ended_outcome_fences_nobody(self, backend: Backend, clock: Clock) -> None:
        backend.store([outcome("a", deliveries=9, ttl=self.span)])
        self.after(clock, self.span, lambda: not backend.fetch(["a"]))
        assert list(backend.store([outcome("a", STARTED)])) == []
        self.assert_state(backend, "a", STARTED)

    def test_each_outcome_brings_its_own_ttl(self, backend: Backend, clock: Clock) -> None:
        backend.store([outcome("a", STARTED, ttl=self.span), outcome("b", STARTED)])
        backend.store([outcome("a", ttl=None), outcome("b", ttl=self.span)])
        self.after(clock, self.span, lambda: not backend.fetch(["b"]))
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
        other.expire(["a", "b", "unheard-of"], self.span)
        self.after(clock, self.span, lambda: backend.fetch("abc").keys() == {"c"})

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

    # wait

    def test_what_is_final_is_returned_at_once(self, backend: Backend) -> None:
        backend.store([outcome(state, state) for state in (STARTED, RETRY, PENDING)])
        backend.store([outcome(state, state) for state in FINAL_STATES])
        waiting = self.waiting(backend, SUCCESS, FAILURE, REVOKED, EXPIRED, STARTED, RETRY, PENDING)
        found = waiting.result()
        assert {key: each.state for key, each in found.items()} == {
            state: state for state in FINAL_STATES
        }
        assert bytes(found[SUCCESS].frame) == b"frame"

    def test_what_is_not_final_is_not_returned(self, backend: Backend) -> None:
        backend.store([outcome("a", STARTED), outcome("b", RETRY)])
        assert backend.wait(["a", "b", "unheard-of"], 0) == {}

    def test_the_wait_ends(self, backend: Backend, clock: Clock) -> None:
        waiting = self.in_thread(lambda: backend.wait(["a"], self.short))

        def over() -> bool:
            if isinstance(clock, ManualClock):
                clock.advance(self.short)
            return not waiting.running

        self.until(over)
        assert waiting.result() == {}

    def test_a_store_wakes_who_waits_on_another_connection(self, connect: Connect) -> None:
        """Fifty times, there and back: who looks only now and then does not get through."""
        here, there = connect(SYSTEM_CLOCK), connect(SYSTEM_CLOCK)

        def answer() -> None:
            for number in range(50):
                assert there.wait([f"question-{number}"], LONG)
                there.store([outcome(f"answer-{number}")])

        def ask() -> None:
            for number in range(50):
                here.store([outcome(f"question-{number}")])
                assert here.wait([f"answer-{number}"], LONG)

        answering, asking = self.in_thread(answer), self.in_thread(ask)
        asking.result()
        answering.result()

    def test_only_a_final_state_ends_the_wait(self, connect: Connect) -> None:
        here, there = connect(SYSTEM_CLOCK), connect(SYSTEM_CLOCK)
        waiting = self.waiting(here, "a", "b")
        there.store([outcome("c"), outcome("a", STARTED), outcome("b", RETRY)])
        there.store([outcome("b", FAILURE)])
        found = waiting.result()
        assert {key: each.state for key, each in found.items()} == {"b": FAILURE}

    def test_one_of_many_ids_ends_the_wait(self, connect: Connect) -> None:
        here, there = connect(SYSTEM_CLOCK), connect(SYSTEM_CLOCK)
        waiting = self.waiting(here, *(f"id-{number}" for number in range(3000)))
        there.store([outcome("id-2718")])
        assert list(waiting.result()) == ["id-2718"]

    def test_several_connections_wait_at_once(self, connect: Connect) -> None:
        there = connect(SYSTEM_CLOCK)
        waiting = [self.waiting(connect(SYSTEM_CLOCK), "a", f"own-{n}") for n in range(4)]
        there.store([outcome("own-2")])
        assert list(waiting.pop(2).result()) == ["own-2"]
        there.store([outcome("a")])
        for each in waiting:
            assert list(each.result()) == ["a"]

    def test_other_calls_work_while_one_thread_waits(self, connect: Connect) -> None:
        backend = connect(SYSTEM_CLOCK)
        waiting = self.waiting(backend, "a")

        def others() -> None:
            for number in range(50):
                backend.store([outcome("b", deliveries=number)])
                assert backend.fetch(["b"])["b"].deliveries == number
            backend.store([outcome("a")])

        self.in_thread(others).result()
        assert list(waiting.result()) == ["a"]

    def test_an_interrupt_ends_a_wait(self, connect: Connect) -> None:
        backend = connect(SYSTEM_CLOCK)
        begun = threading.Event()

        def wait() -> dict[str, Outcome]:
            begun.set()
            return backend.wait(["a"], LONG)

        for _ in range(20):
            begun.clear()
            waiting = self.in_thread(wait)
            assert begun.wait(self.bound)
            backend.interrupt()
            assert waiting.result() == {}

    def test_an_interrupt_before_a_wait_makes_it_return_early(self, connect: Connect) -> None:
        here, there = connect(SYSTEM_CLOCK), connect(SYSTEM_CLOCK)
        here.interrupt()
        assert self.waiting(here, "a").result() == {}
        # It is spent then: the next one waits until there is something.
        waiting = self.waiting(here, "a")
        there.store([outcome("a")])
        assert list(waiting.result()) == ["a"]

    # revocations

    def test_revocations_are_seen_by_those_who_come_later(
        self, backend: Backend, other: Backend
    ) -> None:
        wishes = [Revocation("a"), Revocation("b", terminate=True)]
        backend.revoke(wishes, LONG)
        cursor, seen = other.revoked(0)
        assert list(seen) == wishes
        assert cursor > 0
        assert other.revoked(cursor) == (cursor, [])

    def test_the_cursor_shows_what_is_newer(self, backend: Backend, other: Backend) -> None:
        cursor, seen = other.revoked(0)
        assert list(seen) == []
        for number in range(5):
            backend.revoke([Revocation(f"{number}-a"), Revocation(f"{number}-b")], LONG)
            newer, seen = other.revoked(cursor)
            assert [each.id for each in seen] == [f"{number}-a", f"{number}-b"]
            assert newer > cursor
            cursor = newer
        assert len(other.revoked(0)[1]) == 10

    def test_a_second_wish_is_news(self, backend: Backend, other: Backend) -> None:
        backend.revoke([Revocation("a")], LONG)
        cursor, _ = other.revoked(0)
        backend.revoke([Revocation("a", terminate=True)], LONG)
        _, seen = other.revoked(cursor)
        assert list(seen) == [Revocation("a", terminate=True)]

    def test_revocations_end_after_their_ttl(
        self, backend: Backend, other: Backend, clock: Clock
    ) -> None:
        backend.revoke([Revocation("long")], LONG)
        backend.revoke([Revocation("short")], self.span)
        assert {each.id for each in other.revoked(0)[1]} == {"long", "short"}
        cursor, _ = other.revoked(0)
        self.after(clock, self.span, lambda: len(other.revoked(0)[1]) == 1)
        backend.maintain()
        assert list(other.revoked(0)[1]) == [Revocation("long")]
        # What has ended takes no cursor back with it: later wishes are newer.
        assert other.revoked(cursor)[0] >= cursor
        backend.revoke([Revocation("next")], LONG)
        assert list(other.revoked(cursor)[1]) == [Revocation("next")]

    def test_the_cursor_never_goes_back(
        self, backend: Backend, other: Backend, clock: Clock
    ) -> None:
        """Not even when all that it counted has ended and was deleted."""
        backend.revoke([Revocation("a"), Revocation("b")], self.span)
        cursor, _ = other.revoked(0)
        self.after(clock, self.span, lambda: not other.revoked(0)[1])
        backend.maintain()
        backend.revoke([Revocation("c")], LONG)
        assert list(other.revoked(cursor)[1]) == [Revocation("c")]

    # counts

    def test_members_are_counted_once(self, backend: Backend, other: Backend) -> None:
        assert backend.count("group", "a", LONG) == 1
        assert other.count("group", "b", LONG) == 2
        assert backend.count("group", "a", LONG) == 2
        assert backend.count("another", "a", LONG) == 1
        assert other.count("group", "ü%'", LONG) == 3

    def test_a_counted_set_ends_after_its_last_member_was_added(
        self, backend: Backend, clock: Clock
    ) -> None:
        backend.count("group", "a", self.span)
        self.let_pass(clock, self.span * 0.6)
        assert backend.count("group", "b", self.span) == 2
        self.let_pass(clock, self.span * 0.6)
        backend.maintain()
        assert backend.count("group", "c", self.span) == 3
        self.let_pass(clock, self.span + 0.1)
        assert backend.count("group", "d", self.span) == 1

    def test_of_many_who_count_one_sees_each_number(self, connect: Connect) -> None:
        """So exactly one of the members of a group knows that it was the last."""

        def count(through: Backend, part: int) -> list[int]:
            return [through.count("group", f"{part}-{n}", LONG) for n in range(25)]

        running = [self.in_thread(partial(count, connect(), part)) for part in range(4)]
        assert sorted(size for each in running for size in each.result()) == list(range(1, 101))

    # health

    def test_it_answers(self, backend: Backend) -> None:
        backend.ping()
        backend.maintain()

    def test_it_tells_about_itself(self, backend: Backend) -> None:
        info = backend.info()
        assert info["backend"] == backend.scheme
        assert info["address"]
        assert info["version"]
        json.dumps(info)

    def test_upkeep_harms_nothing(self, backend: Backend) -> None:
        backend.store([outcome("a"), outcome("b", STARTED, ttl=LONG)])
        backend.revoke([Revocation("a")], LONG)
        backend.count("group", "a", LONG)
        for _ in range(3):
            backend.maintain()
        assert sorted(backend.fetch(["a", "b"])) == ["a", "b"]
        assert list(backend.revoked(0)[1]) == [Revocation("a")]
        assert backend.count("group", "b", LONG) == 2

    def test_closing_twice_is_no_error_and_leaves_others(
        self, backend: Backend, connect: Connect
    ) -> None:
        other = connect()
        other.ping()
        other.close()
        other.close()
        backend.store([outcome("a")])
        self.assert_state(backend, "a", SUCCESS)

    def test_another_thread_may_close(self, connect: Connect) -> None:
        backend = connect()
        backend.ping()
        self.in_thread(backend.close).result()
