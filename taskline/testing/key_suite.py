"""The conformance suite for key stores: what a backend's `keys()` gives.

    class TestPigeonLoftKeys(KeyStoreConformance):
        @pytest.fixture
        def make_backend(self, tmp_path):
            return lambda clock: PigeonLoft(tmp_path / "loft", clock)

Each sentence of `taskline.backends.keys` is a test.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from typing import TypeAlias

import pytest

from taskline.backends.base import Backend
from taskline.backends.keys import GREATEST, SMALLEST, KeyStore, Lease
from taskline.backends.permits import Ask, Claim, Holder
from taskline.clock import SYSTEM_CLOCK, Clock
from taskline.errors import BackendError
from taskline.testing.cases.base import Running, Suite

MakeBackend: TypeAlias = Callable[[Clock], Backend]
Connect: TypeAlias = Callable[..., KeyStore]

LONG = 600.0
"""Seconds: longer than any test lasts."""

NAMES = ["a", "a b", "a%'\"ü\n", "a:*{b}[c]?\\", "0", "é" * 256, "\0"]
"""Names that a store must keep apart, and take as they are."""


class KeyStoreSuite(Suite):
    """Connections to one store."""

    @pytest.fixture
    def make_backend(self) -> MakeBackend:
        """A function of a clock that opens one more connection to the test's own empty store."""
        raise NotImplementedError("override the fixture make_backend: see docs/testing.md")

    @pytest.fixture
    def backends(self, make_backend: MakeBackend) -> Iterator[Callable[[Clock], Backend]]:
        """Opens one more backend, which is closed after the test."""
        made: list[Backend] = []

        def connect(with_clock: Clock) -> Backend:
            made.append(make_backend(with_clock))
            return made[-1]

        yield connect
        while made:
            made.pop().close()

    @pytest.fixture
    def connect(self, backends: Callable[[Clock], Backend], clock: Clock) -> Connect:
        """The key store of one more connection."""
        return lambda with_clock=clock: backends(with_clock).keys()

    @pytest.fixture
    def store(self, connect: Connect) -> KeyStore:
        return connect()

    @pytest.fixture
    def other(self, connect: Connect) -> KeyStore:
        """A second connection to the same store."""
        return connect()


class Keys(KeyStoreSuite):
    """Values by key."""

    def test_a_key_holds_what_was_set_last(self, store: KeyStore, other: KeyStore) -> None:
        assert store.get("a") is None
        assert store.set("a", b"1", None)
        assert other.get("a") == b"1"
        assert other.set("a", b"2", LONG)
        assert store.get("a") == b"2"

    @pytest.mark.parametrize("value", [b"", b"\0\n\xff", bytes(range(256)) * 4096])
    def test_a_value_is_any_bytes(self, store: KeyStore, value: bytes) -> None:
        store.set("a", value, LONG)
        assert store.get("a") == value

    def test_keys_of_any_text_are_kept_apart(self, store: KeyStore, other: KeyStore) -> None:
        for number, key in enumerate(NAMES):
            assert store.set(key, b"%d" % number, LONG, if_absent=True), key
        assert [other.get(key) for key in NAMES] == [b"%d" % number for number in range(len(NAMES))]
        assert other.delete(NAMES[0])
        assert [store.get(key) is None for key in NAMES] == [True] + [False] * (len(NAMES) - 1)

    def test_a_key_is_set_if_absent(self, store: KeyStore, other: KeyStore, clock: Clock) -> None:
        since = clock.monotonic()
        assert store.set("a", b"1", self.span, if_absent=True)
        assert not other.set("a", b"2", LONG, if_absent=True)
        assert other.get("a") == b"1"
        # Nor did the second one prolong it.
        self.after(clock, self.span, lambda: other.get("a") is None, since)
        assert other.set("a", b"3", None, if_absent=True)
        assert not store.set("a", b"4", None, if_absent=True)
        assert store.get("a") == b"3"

    def test_of_many_who_set_if_absent_one_does(self, connect: Connect) -> None:
        def take(through: KeyStore, me: bytes) -> list[int]:
            return [n for n in range(30) if through.set(f"{n}", me, LONG, if_absent=True)]

        running = [self.in_thread(partial(take, connect(), b"%d" % me)) for me in range(4)]
        taken = [number for each in running for number in each.result()]
        assert sorted(taken) == list(range(30))

    def test_a_deleted_key_is_gone(self, store: KeyStore, other: KeyStore) -> None:
        store.set("a", b"1", LONG)
        assert other.delete("a")
        assert store.get("a") is None
        assert store.ttl("a") is None
        assert not store.delete("a")
        assert not store.delete("unheard-of")

    def test_a_key_ends_after_its_ttl(
        self, store: KeyStore, backends: Callable[[Clock], Backend], clock: Clock
    ) -> None:
        since = clock.monotonic()
        store.set("a", b"1", self.span)
        store.set("b", b"1", None)
        self.after(clock, self.span, lambda: store.get("a") is None, since)
        assert store.ttl("a") is None
        assert not store.expire("a", LONG)
        assert not store.delete("a")
        backends(clock).maintain()
        assert store.get("a") is None
        assert store.get("b") == b"1"

    def test_ttls_are_told_and_changed(
        self, store: KeyStore, other: KeyStore, clock: Clock
    ) -> None:
        store.set("a", b"1", LONG)
        store.set("b", b"1", None)
        assert LONG - 60 < (other.ttl("a") or 0) <= LONG
        assert other.ttl("b") == math.inf
        assert other.ttl("unheard-of") is None
        assert other.expire("a", None)
        assert store.ttl("a") == math.inf
        since = clock.monotonic()
        assert other.expire("b", self.span)
        assert not other.expire("unheard-of", LONG)
        self.after(clock, self.span, lambda: store.get("b") is None, since)
        assert store.get("a") == b"1"

    def test_setting_a_key_anew_brings_a_new_ttl(self, store: KeyStore, clock: Clock) -> None:
        store.set("a", b"1", self.span)
        store.set("b", b"1", None)
        store.set("a", b"2", None)
        since = clock.monotonic()
        store.set("b", b"2", self.span)
        self.after(clock, self.span, lambda: store.get("b") is None, since)
        assert (store.get("a"), store.ttl("a")) == (b"2", math.inf)

    def test_keys_outlive_the_connection(
        self, backends: Callable[[Clock], Backend], clock: Clock
    ) -> None:
        first = backends(clock)
        first.keys().set("a", b"1", LONG)
        first.close()
        assert backends(clock).keys().get("a") == b"1"


class Counters(KeyStoreSuite):
    """Numbers that are counted up and down."""

    def test_a_counter_begins_at_nothing(self, store: KeyStore, other: KeyStore) -> None:
        assert store.increment("a", 1, None) == 1
        assert other.increment("a", 41, LONG) == 42
        assert store.increment("a", -50, None) == -8
        assert store.increment("a", 0, None) == -8
        assert store.increment("b", 5, LONG) == 5
        assert store.get("a") == b"-8"
        assert store.ttl("a") == math.inf

    def test_what_was_set_is_counted_on(self, store: KeyStore) -> None:
        store.set("a", b"41", LONG)
        assert store.increment("a", 1, None) == 42
        assert LONG - 60 < (store.ttl("a") or 0) <= LONG

    def test_a_counter_ends_when_its_window_does(
        self, store: KeyStore, other: KeyStore, clock: Clock
    ) -> None:
        """The ttl is that of the first call: calls that follow do not prolong the window."""
        begun = clock.monotonic()
        assert store.increment("a", 1, self.span) == 1
        self.let_pass(clock, self.span / 2)
        assert other.increment("a", 1, LONG) == 2
        self.let_pass(clock, max(0.0, begun + self.span - clock.monotonic()) + 1 / 64)
        self.until(lambda: store.get("a") is None)
        since = clock.monotonic()
        assert other.increment("a", 1, self.span) == 1
        self.after(clock, self.span, lambda: store.get("a") is None, since)

    @pytest.mark.parametrize("value", [b"", b"x", b'"1"', b"1.5", b"[1]", b"null", b"\xff"])
    def test_only_numbers_are_counted(self, store: KeyStore, value: bytes) -> None:
        store.set("hits", value, None)
        with pytest.raises(BackendError, match="'hits' holds no whole number") as caught:
            store.increment("hits", 1, None)
        assert not caught.value.retryable
        assert store.get("hits") == value

    @pytest.mark.parametrize(("most", "by"), [(GREATEST, 1), (SMALLEST, -1)])
    def test_a_counter_has_64_bits(self, store: KeyStore, most: int, by: int) -> None:
        assert store.increment("hits", most - by, None) == most - by
        assert store.increment("hits", by, None) == most
        with pytest.raises(BackendError, match="'hits' would leave the range of 64 bits") as caught:
            store.increment("hits", by, None)
        assert not caught.value.retryable
        assert store.get("hits") == b"%d" % most
        # Also where the number itself is beyond it.
        for wrong in (most + by, 1000 * most):
            with pytest.raises(BackendError, match="'other' would leave the range of 64 bits"):
                store.increment("other", wrong, None)
        assert store.get("other") is None

    def test_of_many_who_count_each_sees_another_number(self, connect: Connect) -> None:
        def work(through: KeyStore) -> list[int]:
            return [through.increment("a", 1, LONG) for _ in range(25)]

        running = [self.in_thread(partial(work, connect())) for _ in range(4)]
        assert sorted(n for each in running for n in each.result()) == list(range(1, 101))


class Swaps(KeyStoreSuite):
    """Changes of what is as expected."""

    def test_what_is_expected_is_swapped(self, store: KeyStore, other: KeyStore) -> None:
        assert not store.swap("a", b"", b"1", LONG)
        assert store.swap("a", None, b"1", LONG)
        assert not other.swap("a", None, b"2", LONG)
        assert not other.swap("a", b"2", b"3", LONG)
        assert other.swap("a", b"1", b"", None)
        assert (store.get("a"), store.ttl("a")) == (b"", math.inf)
        assert store.swap("a", b"", b"\0\n\xff", LONG)
        assert LONG - 60 < (other.ttl("a") or 0) <= LONG
        assert other.swap("a", b"\0\n\xff", b"\0\n\xff", LONG)
        assert store.get("a") == b"\0\n\xff"

    def test_a_swap_deletes(self, store: KeyStore, other: KeyStore) -> None:
        assert store.swap("a", None, None, None)
        assert not store.swap("a", b"1", None, None)
        store.set("a", b"1", LONG)
        assert not other.swap("a", None, None, None)
        assert not other.swap("a", b"2", None, None)
        assert other.swap("a", b"1", None, None)
        assert store.get("a") is None
        assert not store.swap("a", b"1", b"2", None)

    def test_counted_numbers_are_swapped(self, store: KeyStore, other: KeyStore) -> None:
        store.increment("a", 42, None)
        assert not other.swap("a", b"042", b"1", None)
        assert not other.swap("a", b"4", b"1", None)
        assert other.swap("a", b"42", b"7", None)
        assert store.increment("a", 1, None) == 8
        assert other.swap("a", b"8", None, None)
        assert store.increment("a", 1, None) == 1

    def test_a_key_that_has_ended_is_no_key(self, store: KeyStore, clock: Clock) -> None:
        since = clock.monotonic()
        assert store.swap("a", None, b"1", self.span)
        self.after(clock, self.span, lambda: store.get("a") is None, since)
        assert not store.swap("a", b"1", b"2", LONG)
        assert store.swap("a", None, b"2", self.span)
        since = clock.monotonic()
        assert store.swap("a", b"2", b"3", self.span)
        self.after(clock, self.span, lambda: store.get("a") is None, since)

    def test_of_many_who_swap_none_overwrites_another(self, connect: Connect) -> None:
        def work(through: KeyStore, me: int) -> None:
            for number in range(15):
                while True:
                    found = through.get("a")
                    if through.swap("a", found, (found or b"") + b"%d-%d " % (me, number), LONG):
                        break

        running = [self.in_thread(partial(work, connect(), me)) for me in range(3)]
        for each in running:
            each.result()
        words = (connect().get("a") or b"").split()
        assert sorted(words) == sorted(b"%d-%d" % (me, n) for me in range(3) for n in range(15))


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


class Locks(KeyStoreSuite):
    """Leases of locks, and their fences."""

    def taken(self, store: KeyStore, name: str, token: str, ttl: float = LONG) -> Lease:
        lease = store.acquire(name, token, ttl)
        assert lease.token == token
        return lease

    def test_one_holds_a_lock(self, store: KeyStore, other: KeyStore) -> None:
        assert store.holder("a") is None
        lease = self.taken(store, "a", "me")
        assert LONG - 60 < lease.left <= LONG
        for held in (other.acquire("a", "you", 2 * LONG), other.holder("a")):
            assert held is not None
            assert (held.token, held.fence) == ("me", lease.fence)
            assert LONG - 60 < held.left <= LONG

    def test_who_holds_a_lock_and_asks_again_is_told_so(
        self, store: KeyStore, other: KeyStore
    ) -> None:
        """A call that is repeated because its answer was lost takes nothing from the caller."""
        lease = self.taken(store, "a", "me")
        again = other.acquire("a", "me", 2 * LONG)
        assert (again.token, again.fence) == ("me", lease.fence)
        assert again.left <= LONG

    def test_a_released_lock_is_free(self, store: KeyStore, other: KeyStore) -> None:
        lease = self.taken(store, "a", "me")
        assert store.release("a", "me")
        assert store.holder("a") is None
        assert other.holder("a") is None
        assert self.taken(other, "a", "you").fence > lease.fence

    def test_only_its_holder_releases_and_renews(self, store: KeyStore, other: KeyStore) -> None:
        lease = self.taken(store, "a", "me")
        assert not other.release("a", "you")
        assert not other.renew("a", "you", 2 * LONG)
        assert not other.release("unheard-of", "you")
        assert not other.renew("unheard-of", "you", LONG)
        held = store.holder("a")
        assert held is not None
        assert (held.token, held.fence) == ("me", lease.fence)
        assert held.left <= LONG
        assert store.release("a", "me")
        assert not store.release("a", "me")

    def test_locks_and_keys_of_any_text_are_kept_apart(
        self, store: KeyStore, other: KeyStore
    ) -> None:
        for number, name in enumerate(NAMES):
            self.taken(store, name, f"t{number}")
            assert store.set(name, b"value", LONG, if_absent=True)
        for number, name in enumerate(NAMES):
            held = other.holder(name)
            assert held is not None
            assert held.token == f"t{number}"
            assert other.delete(name)
            assert other.release(name, f"t{number}")

    def test_a_lease_ends_after_its_ttl(
        self, store: KeyStore, other: KeyStore, clock: Clock
    ) -> None:
        since = clock.monotonic()
        lease = self.taken(store, "a", "me", self.span)
        self.after(clock, self.span, lambda: other.holder("a") is None, since)
        # It is over, though nobody has taken the lock.
        assert not store.renew("a", "me", LONG)
        assert not store.release("a", "me")
        assert self.taken(other, "a", "you").fence > lease.fence
        assert not store.renew("a", "me", LONG)
        assert not store.release("a", "me")
        assert other.release("a", "you")

    def test_a_lock_is_taken_over_when_its_lease_ends(
        self, store: KeyStore, other: KeyStore, clock: Clock
    ) -> None:
        since = clock.monotonic()
        lease = self.taken(store, "a", "me", self.span)
        self.after(clock, self.span, lambda: other.acquire("a", "you", LONG).token == "you", since)
        held = store.holder("a")
        assert held is not None
        assert held.fence > lease.fence

    def test_a_renewed_lease_lasts(self, store: KeyStore, other: KeyStore, clock: Clock) -> None:
        lease = self.taken(store, "a", "me", self.span)
        self.let_pass(clock, self.span * 0.6)
        assert store.renew("a", "me", self.span)
        self.let_pass(clock, self.span * 0.6)
        held = other.acquire("a", "you", LONG)
        assert (held.token, held.fence) == ("me", lease.fence)
        assert store.renew("a", "me", LONG)
        longer = other.holder("a")
        assert longer is not None
        assert longer.left > self.span
        # It may also be cut short.
        since = clock.monotonic()
        assert store.renew("a", "me", self.span)
        self.after(clock, self.span, lambda: other.holder("a") is None, since)

    def test_fences_grow(
        self, store: KeyStore, other: KeyStore, backends: Callable[[Clock], Backend], clock: Clock
    ) -> None:
        """Also over what upkeep deletes, and as whole numbers that any language can hold."""
        fences = []
        numbers = count()
        for _ in range(5):
            for through in (store, other):
                token = f"t{next(numbers)}"
                fences.append(self.taken(through, "a", token, self.span).fence)
                assert through.release("a", token)
        since = clock.monotonic()
        self.taken(store, "a", "short", self.span)
        self.after(clock, self.span, lambda: store.holder("a") is None, since)
        backends(clock).maintain()
        fences.append(self.taken(other, "a", "last").fence)
        assert fences == sorted(set(fences))
        assert all(type(fence) is int and 0 < fence < 2**53 for fence in fences)

    def test_a_lock_outlives_the_connection(
        self, backends: Callable[[Clock], Backend], clock: Clock
    ) -> None:
        first = backends(clock)
        lease = self.taken(first.keys(), "a", "me")
        first.close()
        later = backends(clock).keys()
        held = later.holder("a")
        assert held is not None
        assert (held.token, held.fence) == ("me", lease.fence)
        assert later.release("a", "me")

    def test_of_many_who_want_a_lock_one_gets_it(self, connect: Connect) -> None:
        def take(through: KeyStore, token: str) -> list[int]:
            return [n for n in range(30) if through.acquire(f"{n}", token, LONG).token == token]

        running = [self.in_thread(partial(take, connect(), f"t{me}")) for me in range(4)]
        taken = [number for each in running for number in each.result()]
        assert sorted(taken) == list(range(30))


class Waiting(KeyStoreSuite):
    """Who waits for a lock."""

    def waiting(self, store: KeyStore, name: str, token: str) -> Running[Lease]:
        """As `taskline.lock` waits, but with a bound that only a wake-up keeps to."""

        def wait() -> Lease:
            with store.watch(name) as watch:
                while (lease := store.acquire(name, token, LONG)).token != token:
                    watch.wait(LONG)
            return lease

        return self.in_thread(wait)

    def test_a_release_wakes_who_waits(self, connect: Connect) -> None:
        store = connect(SYSTEM_CLOCK)
        for name in NAMES:
            store.acquire(name, "first", LONG)
            waiting = [self.waiting(connect(SYSTEM_CLOCK), name, f"t{n}") for n in range(3)]
            waiting.append(self.waiting(store, name, "here"))
            assert store.release(name, "first")
            # Each releases for the next, whichever of them is first.
            for _ in waiting:
                lease = self.until(partial(store.holder, name))
                assert lease is not None
                assert store.release(name, lease.token)
            assert len({each.result().fence for each in waiting}) == 4

    def test_a_release_before_the_wait_is_not_missed(self, connect: Connect) -> None:
        store, other = connect(SYSTEM_CLOCK), connect(SYSTEM_CLOCK)

        def work() -> None:
            for number in range(30):
                store.acquire("a", f"s{number}", LONG)
                with other.watch("a") as watch:
                    assert other.acquire("a", "other", LONG).token != "other"
                    assert store.release("a", f"s{number}")
                    # It may return for another reason, but not be left waiting.
                    watch.wait(LONG)

        self.in_thread(work).result()

    def test_an_interrupt_ends_this_wait_and_later_ones(self, connect: Connect) -> None:
        store = connect(SYSTEM_CLOCK)
        store.acquire("a", "me", LONG)
        with store.watch("a") as watch:
            waiting = self.in_thread(lambda: watch.wait(LONG))
            watch.interrupt()
            waiting.result()
            for _ in range(3):
                self.in_thread(lambda: watch.wait(LONG)).result()

    def test_a_wait_is_bounded(self, connect: Connect) -> None:
        store = connect(SYSTEM_CLOCK)
        store.acquire("a", "me", LONG)
        with store.watch("a") as watch:
            self.in_thread(lambda: watch.wait(0.01)).result()
            watch.interrupt()


class KeyStoreConformance(Keys, Counters, Swaps, Buckets, Semaphores, Locks, Waiting):
    """Subclass it as `Test…` and override the fixture `make_backend`."""
