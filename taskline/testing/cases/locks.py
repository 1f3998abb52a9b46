"""Test cases for key stores: locks, and waiting for one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count

from taskline.backends.base import Backend
from taskline.backends.keys import KeyStore, Lease
from taskline.clock import SYSTEM_CLOCK, Clock
from taskline.testing.cases.backend import LONG
from taskline.testing.cases.base import Running
from taskline.testing.cases.store import NAMES, Connect, KeyStoreSuite


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
