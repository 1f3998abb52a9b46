"""The conformance suite for key stores fails on wrong ones, each in the test made for it."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest

from taskline.backends.memory import MemoryBackend
from taskline.backends.memory_keys import MemoryKeys
from taskline.clock import ManualClock
from taskline.message import new_id
from taskline.testing.key_suite import KeyStoreConformance


class SetsWhatIsThere(MemoryKeys):
    def set(self, key, value, ttl, *, if_absent=False):
        return super().set(key, value, ttl)


class ProlongsWhatIsThere(MemoryKeys):
    def set(self, key, value, ttl, *, if_absent=False):
        if if_absent:
            self.expire(key, ttl)
        return super().set(key, value, ttl, if_absent=if_absent)


class LooksBeforeItSets(MemoryKeys):
    def set(self, key, value, ttl, *, if_absent=False):
        if if_absent and self.get(key) is not None:
            return False
        time.sleep(0.001)
        return super().set(key, value, ttl)


class KeepsTheOldEnd(MemoryKeys):
    def set(self, key, value, ttl, *, if_absent=False):
        left = self.ttl(key)
        done = super().set(key, value, ttl, if_absent=if_absent)
        return done if left is None or if_absent else self.expire(key, left)


class KeysNeverEnd(MemoryKeys):
    def set(self, key, value, ttl, *, if_absent=False):
        return super().set(key, value, None, if_absent=if_absent)


class KeysEndEarly(MemoryKeys):
    def set(self, key, value, ttl, *, if_absent=False):
        return super().set(key, value, ttl and ttl / 2, if_absent=if_absent)


class TellsOfNoDeletion(MemoryKeys):
    def delete(self, key):
        super().delete(key)
        return True


class CutsAtZeroBytes(MemoryKeys):
    def get(self, key):
        value = super().get(key)
        return value and value.partition(b"\0")[0]


class FoldsNames(MemoryKeys):
    def set(self, key, value, ttl, *, if_absent=False):
        return super().set(key.strip("\0%"), value, ttl, if_absent=if_absent)


class OneRoomForKeysAndLocks(MemoryKeys):
    def acquire(self, name, token, ttl):
        lease = super().acquire(name, token, ttl)
        self.set(name, token.encode(), ttl)
        return lease


class CountsWithoutALock(MemoryKeys):
    def increment(self, key, by, ttl):
        value = int(self.get(key) or b"0") + by
        time.sleep(0.0001)
        self.set(key, b"%d" % value, ttl)
        return value


class EachCallProlongsTheWindow(MemoryKeys):
    def increment(self, key, by, ttl):
        total = super().increment(key, by, ttl)
        self.expire(key, ttl)
        return total


class CountersNeverEnd(MemoryKeys):
    def increment(self, key, by, ttl):
        return super().increment(key, by, None)


class CountsTextAsNothing(MemoryKeys):
    def increment(self, key, by, ttl):
        if not (self.get(key) or b"0").strip(b"-").isdigit():
            self.delete(key)
        return super().increment(key, by, ttl)


class CountsRound(MemoryKeys):
    def increment(self, key, by, ttl):
        total = int(self.get(key) or b"0") + by
        total = (total + 2**63) % 2**64 - 2**63
        self.set(key, b"%d" % total, ttl)
        return total


class GivesAHeldLock(MemoryKeys):
    def acquire(self, name, token, ttl):
        self._room.leases.pop(name, None)
        return super().acquire(name, token, ttl)


class RefusesItsHolder(MemoryKeys):
    def acquire(self, name, token, ttl):
        lease = super().acquire(name, token, ttl)
        known = self._room.__dict__.setdefault("known", set())
        if token in known and lease.token == token:
            return lease._replace(token="another")
        known.add(token)
        return lease


class AnybodyReleases(MemoryKeys):
    def release(self, name, token):
        held = self.holder(name)
        return super().release(name, held.token if held else token)


class AnybodyRenews(MemoryKeys):
    def renew(self, name, token, ttl):
        held = self.holder(name)
        return super().renew(name, held.token if held else token, ttl)


class RenewsWhatHasEnded(MemoryKeys):
    def renew(self, name, token, ttl):
        found = self._room.leases.get(name)
        if found is not None and found[0] == token:
            self._room.leases[name] = (*found[:2], self._end(ttl))
            return True
        return False


class RenewsNothing(MemoryKeys):
    def renew(self, name, token, ttl):
        held = self.holder(name)
        return held is not None and held.token == token


class LeasesNeverEnd(MemoryKeys):
    def acquire(self, name, token, ttl):
        return super().acquire(name, token, ttl * 1000)


class FencesByTheClockAlone(MemoryKeys):
    def acquire(self, name, token, ttl):
        self._room.fence = 0
        return super().acquire(name, token, ttl)


class FencesGoBackAfterARelease(MemoryKeys):
    def release(self, name, token):
        self._room.fence -= 1
        return super().release(name, token)


class WakesNobody(MemoryKeys):
    def release(self, name, token):
        watches, self._room.watches = self._room.watches, {}
        try:
            return super().release(name, token)
        finally:
            self._room.watches = watches


class WatchesOnlyWhileItWaits(MemoryKeys):
    def watch(self, name):
        watch = super().watch(name)
        wait = watch.wait

        def deaf(seconds):
            watch._event.clear()
            wait(seconds)

        watch.wait = deaf
        return watch


class InterruptsOnce(MemoryKeys):
    def watch(self, name):
        watch = super().watch(name)
        watch.interrupt = watch._event.set
        return watch


class SwapsAnything(MemoryKeys):
    def swap(self, key, expected, value, ttl):
        if expected is not None and self.get(key) is None:
            return False
        return super().swap(key, self.get(key), value, ttl)


class LooksBeforeItSwaps(MemoryKeys):
    def swap(self, key, expected, value, ttl):
        if self.get(key) != expected:
            return False
        time.sleep(0.001)
        return super().set(key, value, ttl)


class SwapsForEver(MemoryKeys):
    def swap(self, key, expected, value, ttl):
        return super().swap(key, expected, value, None)


class FillsAtOnce(MemoryKeys):
    def take(self, asks):
        return super().take([ask._replace(rate=1e6 * ask.rate) for ask in asks])


class FillsBeyondItsBurst(MemoryKeys):
    def take(self, asks):
        return super().take([ask._replace(burst=ask.burst + 1) for ask in asks])


class PromisesOneTurnToAll(MemoryKeys):
    def take(self, asks):
        turns = super().take([ask._replace(wanted=0) for ask in asks])
        plain = super().take([ask for ask in asks if not ask.ahead])
        return [
            taken._replace(number=ask.wanted) if ask.ahead else plain.pop(0)
            for ask, taken in zip(asks, turns, strict=True)
        ]


class TakesWithoutALock(MemoryKeys):
    def _change(self, steps):
        for key, step in steps:
            value, ttl = step(self.get(key), self.time())
            time.sleep(0.0001)
            if value is not None:
                self.set(key, value, ttl)


class PlacesNeverEnd(MemoryKeys):
    def hold(self, claims, ttl):
        return super().hold(claims, 10 * ttl)


class AnybodyFrees(MemoryKeys):
    def hold(self, claims, ttl):
        for claim in claims:
            runs = {place.id: place.run for place in self.places(claim.name)}
            freed = tuple(each._replace(run=runs.get(each.id, "")) for each in claim.freed)
            super().hold([claim._replace(wanted=(), renewed=(), freed=freed)], ttl)
        return super().hold(claims, ttl)


class RefusesTheSameId(MemoryKeys):
    def hold(self, claims, ttl):
        kept = []
        for claim in claims:
            runs = {place.id: place.run for place in self.places(claim.name)}
            wanted = tuple(each for each in claim.wanted if each.id not in runs)
            kept.append(claim._replace(wanted=wanted))
        return super().hold(kept, ttl)


BUGS: dict[type[MemoryKeys], str] = {
    SetsWhatIsThere: "test_a_key_is_set_if_absent",
    ProlongsWhatIsThere: "test_a_key_is_set_if_absent",
    LooksBeforeItSets: "test_of_many_who_set_if_absent_one_does",
    KeepsTheOldEnd: "test_setting_a_key_anew_brings_a_new_ttl",
    KeysNeverEnd: "test_a_key_ends_after_its_ttl",
    KeysEndEarly: "test_a_key_ends_after_its_ttl",
    TellsOfNoDeletion: "test_a_deleted_key_is_gone",
    CutsAtZeroBytes: "test_a_value_is_any_bytes",
    FoldsNames: "test_keys_of_any_text_are_kept_apart",
    OneRoomForKeysAndLocks: "test_locks_and_keys_of_any_text_are_kept_apart",
    CountsWithoutALock: "test_of_many_who_count_each_sees_another_number",
    EachCallProlongsTheWindow: "test_a_counter_ends_when_its_window_does",
    CountersNeverEnd: "test_a_counter_ends_when_its_window_does",
    CountsTextAsNothing: "test_only_numbers_are_counted",
    CountsRound: "test_a_counter_has_64_bits",
    SwapsAnything: "test_what_is_expected_is_swapped",
    LooksBeforeItSwaps: "test_of_many_who_swap_none_overwrites_another",
    SwapsForEver: "test_a_key_that_has_ended_is_no_key",
    FillsAtOnce: "test_a_bucket_fills_up_to_its_burst",
    FillsBeyondItsBurst: "test_a_bucket_is_full_at_first",
    PromisesOneTurnToAll: "test_what_lies_ahead_is_promised_in_turn",
    TakesWithoutALock: "test_of_many_who_take_each_gets_another_token",
    PlacesNeverEnd: "test_a_place_ends_with_its_lease",
    AnybodyFrees: "test_an_id_keeps_its_place_for_another_run",
    RefusesTheSameId: "test_an_id_keeps_its_place_for_another_run",
    GivesAHeldLock: "test_one_holds_a_lock",
    RefusesItsHolder: "test_who_holds_a_lock_and_asks_again_is_told_so",
    AnybodyReleases: "test_only_its_holder_releases_and_renews",
    AnybodyRenews: "test_only_its_holder_releases_and_renews",
    RenewsWhatHasEnded: "test_a_lease_ends_after_its_ttl",
    RenewsNothing: "test_a_renewed_lease_lasts",
    LeasesNeverEnd: "test_a_lease_ends_after_its_ttl",
    FencesByTheClockAlone: "test_fences_grow",
    FencesGoBackAfterARelease: "test_fences_grow",
    WakesNobody: "test_a_release_wakes_who_waits",
    WatchesOnlyWhileItWaits: "test_a_release_before_the_wait_is_not_missed",
    InterruptsOnce: "test_an_interrupt_ends_this_wait_and_later_ones",
}


class Quick(KeyStoreConformance):
    bound = 1.0


def failures(name: str, keys: type[MemoryKeys]) -> list[str]:
    """Run one test of the suite, with all its parameters, and tell how it failed."""
    suite = Quick()
    test = getattr(suite, name)
    marks = [mark.args for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
    found = []
    for values in product(*(list(values) for _, values in marks)):
        parameters: dict[str, Any] = {}
        for (names, _), value in zip(marks, values, strict=True):
            several = not isinstance(names, str)
            parameters |= zip(names, value, strict=True) if several else {names: value}
        try:
            test(**arguments(test, keys), **parameters)
        except (AssertionError, pytest.fail.Exception) as failure:
            found.append(str(failure))
    return found


def arguments(test: Callable[..., None], keys: type[MemoryKeys]) -> dict[str, Any]:
    """What the fixtures of the suite would give: connections to a new store."""
    clock, name = ManualClock(), f"test-{new_id()}"

    def backends(with_clock: Any) -> MemoryBackend:
        made = MemoryBackend(name, with_clock)
        made._keys = keys(made._store.keys, with_clock, made._check_open)
        return made

    def connect(with_clock: Any = clock) -> Any:
        return backends(with_clock).keys()

    fixtures = {
        "clock": lambda: clock,
        "backends": lambda: backends,
        "connect": lambda: connect,
        "store": connect,
        "other": connect,
    }
    wanted = inspect.signature(test).parameters
    return {name: fixtures[name]() for name in wanted if name in fixtures}


@pytest.mark.parametrize("keys", BUGS, ids=[bug.__name__ for bug in BUGS])
def test_a_wrong_key_store_is_caught(keys: type[MemoryKeys]) -> None:
    assert failures(BUGS[keys], keys)


def test_what_is_caught_is_the_bug_and_not_the_way_of_running() -> None:
    for name in sorted(set(BUGS.values())):
        assert failures(name, MemoryKeys) == []
