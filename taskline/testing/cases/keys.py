"""Test cases for key stores: values, counters and swaps."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest

from taskline.backends.base import Backend
from taskline.backends.keys import GREATEST, SMALLEST, KeyStore
from taskline.clock import Clock
from taskline.errors import BackendError
from taskline.testing.cases.backend import LONG
from taskline.testing.cases.store import NAMES, Connect, KeyStoreSuite


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
