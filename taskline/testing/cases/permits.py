"""Test cases for key stores: buckets of tokens, and semaphores."""

from __future__ import annotations

import math
from functools import partial

import pytest

from taskline.backends.keys import KeyStore
from taskline.backends.permits import Ask, Claim, Holder
from taskline.clock import Clock, ManualClock
from taskline.testing.cases.backend import LONG
from taskline.testing.cases.store import NAMES, Connect, KeyStoreSuite


class Buckets(KeyStoreSuite):
    """Tokens that come with time."""

    def test_a_bucket_is_full_at_first(self, store: KeyStore, other: KeyStore) -> None:
        ask = Ask("a", 0.001, 3.0, 2)
        assert store.take([ask])[0].number == 2
        (second,) = other.take([ask])
        assert second.number == 1
        assert 0 <= second.left < 0.5
        assert store.take([ask])[0].number == 0

    def test_a_bucket_fills_up_to_its_burst(
        self, store: KeyStore, other: KeyStore, clock: Clock
    ) -> None:
        ask = Ask("a", 2 / self.span, 3.0, 3)
        since = clock.monotonic()
        assert store.take([ask])[0].number == 3
        self.after(clock, self.span / 2, lambda: store.take([ask])[0].number > 0, since)
        self.let_pass(clock, 3 * self.span)
        (full,) = other.take([ask._replace(wanted=0)])
        assert full.number == 0
        assert full.left == pytest.approx(3.0)
        assert store.take([ask._replace(wanted=10)])[0].number == 3

    def test_buckets_are_kept_apart_and_from_keys(self, store: KeyStore, other: KeyStore) -> None:
        asks = [Ask(name, 0.001, 5.0, number) for number, name in enumerate(NAMES)]
        for name in NAMES:
            store.set(name, b"x", LONG)
        assert [taken.number for taken in store.take(asks)] == [0, 1, 2, 3, 4, 5, 5]
        left = [round(taken.left) for taken in other.take([a._replace(wanted=0) for a in asks])]
        assert left == [5, 4, 3, 2, 1, 0, 0]
        assert store.take([]) == []
        assert [other.get(name) for name in NAMES] == [b"x"] * len(NAMES)

    def test_what_is_given_back_is_there_again(self, store: KeyStore, other: KeyStore) -> None:
        assert store.take([Ask("a", 0.001, 4.0, 3)])[0].number == 3
        assert store.take([Ask("a", 0.001, 4.0, -2)])[0].number == -2
        assert other.take([Ask("a", 0.001, 4.0, 9)])[0].number == 3
        # And no more than the bucket holds.
        assert store.take([Ask("a", 0.001, 4.0, -9)])[0].left == pytest.approx(4.0)
        assert other.take([Ask("a", 0.001, 4.0, 9)])[0].number == 4

    def test_what_lies_ahead_is_promised_in_turn(
        self, store: KeyStore, other: KeyStore, clock: Clock
    ) -> None:
        """Each who asks gets the turns after those that others were promised."""
        ask = Ask("a", 0.001, 1.0, 3, math.inf)
        (first,) = store.take([ask])
        assert (first.number, round(first.left)) == (3, -2)
        (second,) = other.take([ask._replace(wanted=2)])
        assert (second.number, round(second.left)) == (2, -4)
        assert store.take([ask._replace(ahead=0.0)])[0].number == 0
        assert store.take([ask._replace(ahead=4500.0)])[0].number == 0
        assert store.take([ask._replace(ahead=5500.0)])[0].number == 1
        soon = Ask("b", 4 / self.span, 1.0, 4, math.inf)
        since = clock.monotonic()
        assert store.take([soon])[0].number == 4
        turn = soon._replace(wanted=1, ahead=0.0)
        self.after(clock, self.span, lambda: other.take([turn])[0].number, since)

    def test_a_bucket_with_a_span_makes_good_what_was_missed(
        self, store: KeyStore, other: KeyStore, clock: Clock
    ) -> None:
        """And gives at most 5 % more than its rate in any span."""
        span = 2 * self.span
        ask = Ask("a", 200 / span, 10.0, 1000, span=span)
        taken = [(clock.monotonic(), store.take([ask])[0].number, clock.monotonic())]
        assert taken[0][1] == 10
        first = taken[0][0]
        self.let_pass(clock, span / 8)
        while (since := clock.monotonic()) < first + 2.25 * span:
            number = (store, other)[len(taken) % 2].take([ask])[0].number
            taken.append((since, number, clock.monotonic()))
            self.let_pass(clock, span / 64)
        for n, (since, _, _) in enumerate(taken):
            assert sum(each for _, each, after in taken[n:] if after <= since + span) <= 210
        if isinstance(clock, ManualClock):  # in real time the test itself may be held up
            assert sum(number for _, number, _ in taken) > 2 * 200

    def test_what_a_span_gave_is_given_back_to_it(self, store: KeyStore, other: KeyStore) -> None:
        ask = Ask("a", 0.4, 10.0, 0, span=500.0)
        take = ask._replace(wanted=30)
        (taken,) = store.take([take])
        assert taken.number == 10
        assert store.time() - 60 < taken.at <= store.time()
        back = ask._replace(wanted=-3, at=taken.at)
        assert [each.number for each in other.take([back, back])] == [-3, -3]
        # It is in use now, and holds more.
        left = [store.take([ask])[0].left, other.take([ask])[0].left]
        assert [round(each) for each in left] == [6, 6]
        assert store.take([take])[0].number == 6
        assert other.take([take])[0].number == 0
        # Those of an earlier span do not count in this one, and are there all the same.
        assert store.take([back._replace(at=taken.at - 900.0)])[0].number == -3
        assert other.take([take])[0].number == 3

    def test_a_bucket_may_get_another_span(self, store: KeyStore, other: KeyStore) -> None:
        ask = Ask("a", 4.0, 10.0, 1, span=50.0)
        other_span = ask._replace(span=5.0, rate=40.0)
        for fresh in (ask, other_span, ask, ask._replace(span=0.0), ask, other_span):
            (taken,) = store.take([fresh])
            assert taken.number == 1
            assert other.take([fresh._replace(wanted=-1, at=taken.at)])[0].number == -1

    def test_of_many_who_take_each_gets_another_token(self, connect: Connect) -> None:
        def work(through: KeyStore) -> int:
            asks = [Ask("a", 1e-6, 50.0, 1), Ask("b", 1e-6, 20.0, 2)]
            return sum(
                1000 * a.number + b.number for a, b in (through.take(asks) for _ in range(20))
            )

        running = [self.in_thread(partial(work, connect())) for _ in range(4)]
        assert divmod(sum(each.result() for each in running), 1000) == (50, 20)


class Semaphores(KeyStoreSuite):
    """Places under leases."""

    def holders(self, *names: str, run: str = "1") -> tuple[Holder, ...]:
        return tuple(Holder(name, run) for name in names)

    def held(self, store: KeyStore, name: str = "s") -> list[str]:
        return sorted(place.id for place in store.places(name))

    def test_as_many_hold_places_as_there_are(self, store: KeyStore, other: KeyStore) -> None:
        assert store.hold([Claim("s", 3, self.holders("a", "b"))], LONG) == [["a", "b"]]
        assert other.hold([Claim("s", 3, self.holders("c", "d"))], LONG) == [["c"]]
        assert self.held(other) == ["a", "b", "c"]
        assert all(LONG - 60 < place.left <= LONG for place in store.places("s"))
        assert other.hold([Claim("s", 3, self.holders("d"))], LONG) == [[]]
        freed = Claim("s", 3, self.holders("d", "e"), freed=self.holders("b"))
        assert other.hold([freed], LONG) == [["d"]]
        assert self.held(store) == ["a", "c", "d"]
        assert store.places("unheard-of") == []
        assert store.hold([], LONG) == []

    def test_semaphores_are_kept_apart_and_from_keys(
        self, store: KeyStore, other: KeyStore
    ) -> None:
        for name in NAMES:
            store.set(name, b"x", LONG)
        claims = [Claim(name, 1, self.holders(f"h{n}", name)) for n, name in enumerate(NAMES)]
        assert store.hold(claims, LONG) == [[f"h{n}"] for n in range(len(NAMES))]
        assert [self.held(other, name) for name in NAMES] == [[f"h{n}"] for n in range(len(NAMES))]
        claims = [Claim(name, 2, self.holders(name, name)) for name in NAMES]
        assert other.hold(claims, LONG) == [[name, name] for name in NAMES]
        assert [store.get(name) for name in NAMES] == [b"x"] * len(NAMES)

    def test_an_id_keeps_its_place_for_another_run(self, store: KeyStore, other: KeyStore) -> None:
        """What runs again because its worker died finds its place, also where all are taken."""
        store.hold([Claim("s", 2, self.holders("a", "b"))], LONG)
        assert other.hold([Claim("s", 1, self.holders("c", "a", run="2"))], LONG) == [["a"]]
        # The run that had it neither frees nor renews it.
        assert store.hold([Claim("s", 2, freed=self.holders("a", "b"))], LONG) == [[]]
        assert store.hold([Claim("s", 2, renewed=self.holders("a", "b"))], LONG) == [[]]
        assert [place[:2] for place in store.places("s")] == [("a", "2")]
        assert other.hold([Claim("s", 2, freed=self.holders("a", run="2"))], LONG) == [[]]
        assert self.held(store) == []

    def test_a_place_ends_with_its_lease(
        self, store: KeyStore, other: KeyStore, clock: Clock
    ) -> None:
        since = clock.monotonic()
        assert store.hold([Claim("s", 2, self.holders("a", "b"))], self.span) == [["a", "b"]]
        assert store.hold([Claim("s", 2, renewed=self.holders("b"))], LONG) == [["b"]]
        want = Claim("s", 2, self.holders("c"))
        self.after(clock, self.span, lambda: other.hold([want], LONG) == [["c"]], since)
        assert self.held(store) == ["b", "c"]
        # What has ended is not renewed, and nothing of another is freed.
        claim = Claim("s", 5, renewed=self.holders("a"), freed=self.holders("a"))
        assert store.hold([claim], LONG) == [[]]
        assert self.held(store) == ["b", "c"]

    def test_a_renewed_place_lasts(self, store: KeyStore, other: KeyStore, clock: Clock) -> None:
        store.hold([Claim("s", 1, self.holders("a"))], self.span)
        for _ in range(3):
            self.let_pass(clock, self.span * 0.6)
            since = clock.monotonic()
            assert store.hold([Claim("s", 1, renewed=self.holders("a"))], self.span) == [["a"]]
        assert other.hold([Claim("s", 1, self.holders("b"))], LONG) == [[]]
        self.after(clock, self.span, lambda: self.held(other) == [], since)

    def test_a_limit_may_change(self, store: KeyStore) -> None:
        store.hold([Claim("s", 3, self.holders("a", "b", "c"))], LONG)
        renewed = Claim("s", 1, self.holders("d"), renewed=self.holders("a", "b"))
        assert store.hold([renewed], LONG) == [["a", "b"]]
        assert store.hold([Claim("s", 4, self.holders("d", "e"))], LONG) == [["d"]]

    def test_of_many_who_want_places_never_too_many_hold_them(self, connect: Connect) -> None:
        inside: list[str] = []
        most: list[int] = []

        def work(through: KeyStore, me: str) -> None:
            done = 0
            while done < 10:
                if through.hold([Claim("s", 2, self.holders(me))], LONG)[0]:
                    inside.append(me)
                    most.append(len(inside))
                    inside.remove(me)
                    through.hold([Claim("s", 2, freed=self.holders(me))], LONG)
                    done += 1

        running = [self.in_thread(partial(work, connect(), f"t{me}")) for me in range(4)]
        for each in running:
            each.result()
        assert max(most) <= 2
        assert connect().places("s") == []
