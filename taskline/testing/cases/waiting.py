"""Waiting for outcomes, revocations, counted sets, and health."""

from __future__ import annotations

import json
import threading
from functools import partial

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
from taskline.testing.cases.backend import LONG, BackendSuite, Connect, outcome


class Waiting(BackendSuite):
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


class Revocations(BackendSuite):
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

    def test_any_text_may_stand_in_the_place_of_the_id(
        self, backend: Backend, other: Backend
    ) -> None:
        """As it does where all messages of a kind are revoked."""
        texts = ['all {"before":1.5,"headers":{"a b":"%\'\\\\ü:*"}}', "all " + "x" * 2000]
        backend.revoke([Revocation(text) for text in texts], LONG)
        assert [each.id for each in other.revoked(0)[1]] == texts

    def test_revocations_end_after_their_ttl(
        self, backend: Backend, other: Backend, clock: Clock
    ) -> None:
        backend.revoke([Revocation("long")], LONG)
        since = clock.monotonic()
        backend.revoke([Revocation("short")], self.span)
        assert {each.id for each in other.revoked(0)[1]} == {"long", "short"}
        cursor, _ = other.revoked(0)
        self.after(clock, self.span, lambda: len(other.revoked(0)[1]) == 1, since)
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
        since = clock.monotonic()
        backend.revoke([Revocation("a"), Revocation("b")], self.span)
        cursor, _ = other.revoked(0)
        self.after(clock, self.span, lambda: not other.revoked(0)[1], since)
        backend.maintain()
        backend.revoke([Revocation("c")], LONG)
        assert list(other.revoked(cursor)[1]) == [Revocation("c")]


class Counts(BackendSuite):
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

    def test_many_members_are_counted_at_once(
        self, backend: Backend, other: Backend, clock: Clock
    ) -> None:
        many = [str(number) for number in range(30)]
        assert backend.count_all({"a": many, "b": ["x", "y", "x"]}, LONG) == {"a": 30, "b": 2}
        assert other.count_all({"a": ["7", "new"]}, LONG) == {"a": 31}
        assert other.count("a", "8", LONG) == 31
        assert backend.count_all({}, LONG) == {}
        assert backend.count_all({"c": ["x", "y"]}, self.span) == {"c": 2}
        self.let_pass(clock, self.span + 0.1)
        assert backend.count_all({"c": ["z"]}, self.span) == {"c": 1}

    def test_of_many_who_count_one_sees_each_number(self, connect: Connect) -> None:
        """So exactly one of the members of a group knows that it was the last."""

        def count(through: Backend, part: int) -> list[int]:
            return [through.count("group", f"{part}-{n}", LONG) for n in range(25)]

        running = [self.in_thread(partial(count, connect(), part)) for part in range(4)]
        assert sorted(size for each in running for size in each.result()) == list(range(1, 101))


class Health(BackendSuite):
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
