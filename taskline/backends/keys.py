"""The seam for locks, keys and counters, which a result backend may also keep.

A key holds bytes; a lock is held under a lease. Names are any text of at most
512 bytes in UTF-8, and those of keys and of locks never meet. Token buckets and
semaphores are kept under keys that begin with `taskline.`, or apart from all keys.
All calls are atomic, however many processes call; any thread may call anything.
Seconds are counted by the store's clock.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypeVar

from taskline.backends import permits
from taskline.backends.permits import Ask, Claim, Place, State, Taken
from taskline.errors import BackendError

if TYPE_CHECKING:
    from typing_extensions import Self

SMALLEST, GREATEST = -(2**63), 2**63 - 1
"""What a counter can count to."""

Step: TypeAlias = Callable[[bytes | None, float], State]
"""From what a key holds, None for nothing, and the store's time to what it is to hold."""

A = TypeVar("A")
B = TypeVar("B")


class Lease(NamedTuple):
    """A lock that is held: by whom, under which fence, and for how many seconds more."""

    token: str
    fence: int
    left: float


class Watch(ABC):
    """Sees from when it is made that a lock may have become free. For one thread.

    Use it in a `with`, which closes it.
    """

    @abstractmethod
    def wait(self, seconds: float) -> None:
        """Return at a release since the last `wait` returned, or after `seconds`.

        It may return earlier, and where the store cannot push it does not see releases.
        """

    @abstractmethod
    def interrupt(self) -> None:
        """Make this and every later `wait` return at once. Any thread may call it."""

    @abstractmethod
    def close(self) -> None:
        """Give back what the watch needed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class KeyStore(ABC):
    """Keeps keys and locks. It is the backend's, and closed with it."""

    @abstractmethod
    def time(self) -> float:
        """Seconds of the store's clock, which goes on when the store is started again."""

    # Keys

    @abstractmethod
    def get(self, key: str) -> bytes | None:
        """What the key holds; None when there is no such key, or it has ended."""

    @abstractmethod
    def set(self, key: str, value: bytes, ttl: float | None, *, if_absent: bool = False) -> bool:
        """Let the key hold this value for `ttl` seconds; None is without an end.

        With `if_absent` only when there is no such key. Returns whether it was set.
        """

    @abstractmethod
    def swap(
        self, key: str, expected: bytes | None, value: bytes | None, ttl: float | None
    ) -> bool:
        """Let a key that holds `expected` hold `value` for `ttl` seconds; returns whether it did.

        None stands for no key: nothing was expected, or the key is to be deleted.
        """

    @abstractmethod
    def delete(self, key: str) -> bool:
        """Delete the key; returns whether there was one."""

    @abstractmethod
    def increment(self, key: str, by: int, ttl: float | None) -> int:
        """Add to the whole number, in decimal, that the key holds; returns the sum.

        A key that is not there is made, with `by` for its value, and ends after
        `ttl` seconds; one that is there keeps its end. Raises `BackendError` when the
        value is no number, or the sum is not within 64 bits: `added` does.
        """

    @abstractmethod
    def ttl(self, key: str) -> float | None:
        """Seconds that the key has left, infinite for ever; None when there is no such key."""

    @abstractmethod
    def expire(self, key: str, ttl: float | None) -> bool:
        """Let the key end `ttl` seconds from now, or never; returns whether there is one."""

    # Token buckets and semaphores

    def take(self, asks: Sequence[Ask]) -> list[Taken]:
        """Take tokens of some buckets; returns the answers in the order of the asks.

        In any span of time at most rate * span + burst of a bucket are taken. A call
        whose answer is lost may have taken what nobody uses.
        """
        answers: list[list[Taken]] = [[] for _ in asks]
        self._change(
            [
                (f"taskline.rate.{ask.bucket}", partial(_answer, into, permits.take, ask))
                for ask, into in zip(asks, answers, strict=True)
            ]
        )
        return [answer[-1] for answer in answers]

    def hold(self, claims: Sequence[Claim], ttl: float) -> list[list[str]]:
        """Take, renew and free places of some semaphores; returns the ids that have places.

        They are in the order of the claims, of those that are wanted or renewed there.
        A place ends `ttl` seconds after it was taken or renewed last.
        """
        answers: list[list[list[str]]] = [[] for _ in claims]
        self._change(
            [
                (
                    f"taskline.places.{claim.name}",
                    partial(_answer, into, permits.hold, (claim, ttl)),
                )
                for claim, into in zip(claims, answers, strict=True)
            ]
        )
        return [answer[-1] for answer in answers]

    def places(self, name: str) -> list[Place]:
        """The places of a semaphore that are held, by the time they have left."""
        return permits.places(self.get(f"taskline.places.{name}"), self.time())

    def _change(self, steps: Sequence[tuple[str, Step]]) -> None:
        """Change each of these keys atomically. A step may be called again."""
        for key, step in steps:
            while True:
                found = self.get(key)
                value, ttl = step(found, self.time())
                if value == found or self.swap(key, found, value, ttl):
                    break

    # Locks

    @abstractmethod
    def acquire(self, name: str, token: str, ttl: float) -> Lease:
        """Take the lock for `ttl` seconds if nobody holds it; returns the lease that then holds.

        It is the caller's if it has the caller's token. Who holds the lock already
        gets that lease, unchanged. A new lease has a greater fence than every
        earlier one of this name, those before a restart included: `next_fence`.
        """

    @abstractmethod
    def renew(self, name: str, token: str, ttl: float) -> bool:
        """Let the lease end `ttl` seconds from now; False when this token does not hold the lock.

        A lease that has ended is not renewed, even if nobody took the lock.
        """

    @abstractmethod
    def release(self, name: str, token: str) -> bool:
        """Free the lock and wake who waits; False when this token does not hold it."""

    @abstractmethod
    def holder(self, name: str) -> Lease | None:
        """The lease under which the lock is held; None when it is free."""

    @abstractmethod
    def watch(self, name: str) -> Watch:
        """A watch on one lock. Make it, try to acquire, then wait: no release is missed."""


def _answer(
    into: list[A],
    ask: Callable[[bytes | None, float, B], tuple[A, State]],
    what: B,
    value: bytes | None,
    now: float,
) -> State:
    """The state after asking; the answer is put into a list, whose last item counts."""
    answer, state = ask(value, now, what)
    into.append(answer)
    return state


def next_fence(last: int, time: float) -> int:
    """The fence after `last` at `time`, Unix seconds.

    It is the time in microseconds, so that it also grows when the store, and with it
    `last`, is lost or replaced.
    """
    return max(last + 1, int(time * 1_000_000))


def added(key: str, value: bytes, by: int) -> int:
    """What a counter holds after `by` is added; raises `BackendError`, as `KeyStore.increment`."""
    try:
        total = int(value.decode("ascii")) + by
    except ValueError:
        raise not_a_number(key) from None
    if not SMALLEST <= total <= GREATEST:
        raise too_large(key)
    return total


def not_a_number(key: str) -> BackendError:
    """What `increment` of a key raises that holds another value."""
    return BackendError(
        f"the key {key!r} holds no whole number: count under another key, or delete it first",
        retryable=False,
    )


def too_large(key: str) -> BackendError:
    """What `increment` raises beyond 64 bits."""
    return BackendError(
        f"the counter {key!r} would leave the range of 64 bits: delete it to begin again",
        retryable=False,
    )
