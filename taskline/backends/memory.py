"""Outcomes in this process's memory. See `taskline.transports.memory` for what that means."""

from __future__ import annotations

import heapq
import math
import os
import platform
import threading
from bisect import bisect_right
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from taskline.backends.base import Backend, Revocation
from taskline.backends.keys import KeyStore
from taskline.backends.memory_keys import MemoryKeys, Room
from taskline.clock import SYSTEM_CLOCK, Clock
from taskline.errors import BackendError
from taskline.message import FINAL_STATES, Outcome
from taskline.registry import Spec, options_of

if TYPE_CHECKING:
    from typing_extensions import Self


class _Waiter:
    """A thread in `wait`: what it waits for, and what wakes it."""

    __slots__ = ("ids", "wake")

    def __init__(self) -> None:
        self.ids: frozenset[str] = frozenset()
        self.wake = threading.Event()


class _Store:
    """All that backends of one name share. Times are on the monotonic clock."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.outcomes: dict[str, tuple[Outcome, float]] = {}
        """Each with the time at which it ends."""
        self.final: set[str] = set()
        self.ends: list[tuple[float, str]] = []
        self.waiters: set[_Waiter] = set()
        self.revocations: list[tuple[int, float, Revocation]] = []
        self.cursor = 0
        self.members: dict[str, tuple[set[str], float]] = {}
        self.keys = Room()

    def keep(self, outcome: Outcome, end: float) -> None:
        self.outcomes[outcome.id] = (outcome, end)
        if end != math.inf:
            heapq.heappush(self.ends, (end, outcome.id))

    def drop(self, id: str) -> None:
        if self.outcomes.pop(id, None) is not None:
            self.final.discard(id)

    def sweep(self, ticks: float) -> None:
        """Drop outcomes that have ended."""
        ends = self.ends
        while ends and ends[0][0] <= ticks:
            key = heapq.heappop(ends)[1]
            if key in self.outcomes and self.outcomes[key][1] <= ticks:
                self.drop(key)
        # Outcomes that were replaced or forgotten leave their ends behind.
        if len(ends) > 2 * len(self.outcomes) + 1000:
            self.ends = [(end, key) for key, (_, end) in self.outcomes.items() if end != math.inf]
            heapq.heapify(self.ends)

    def ready(self, ids: frozenset[str]) -> dict[str, Outcome]:
        return {key: self.outcomes[key][0] for key in ids & self.final}


_stores: dict[str, _Store] = {}


def forget(name: str) -> None:
    """Drop what `memory://name` keeps. Backends that are open keep what they see."""
    _stores.pop(name, None)


if hasattr(os, "register_at_fork"):
    # The parent's outcomes never reach the child again, and its lock may be held.
    os.register_at_fork(after_in_child=_stores.clear)


class MemoryBackend(Backend):
    """A backend without a server or a file."""

    scheme = "memory"

    def __init__(self, name: str = "", clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__(clock)
        self.name = name
        self._store = _stores.setdefault(name, _Store())
        self._waiter = _Waiter()
        self._interrupted = False
        self._closed = False
        self._keys = MemoryKeys(self._store.keys, clock, self._check_open)

    @classmethod
    def from_spec(cls, spec: Spec, clock: Clock) -> Self:
        """`memory://name`, or a mapping with `name`."""
        return cls(options_of(spec, rest="name").get("name", ""), clock)

    def store(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        refused, final = [], []
        store = self._current()
        with store.lock:
            now = self._sweep()
            for outcome in outcomes:
                found = store.outcomes.get(outcome.id)
                if found is not None and _outranks(found[0], outcome):
                    refused.append(outcome)
                    continue
                store.keep(outcome, math.inf if outcome.ttl is None else now + outcome.ttl)
                if outcome.state in FINAL_STATES:
                    store.final.add(outcome.id)
                    final.append(outcome.id)
                else:
                    store.final.discard(outcome.id)
            for waiter in store.waiters:
                if not waiter.ids.isdisjoint(final):
                    waiter.wake.set()
        return refused

    def fetch(self, ids: Collection[str]) -> dict[str, Outcome]:
        store = self._current()
        with store.lock:
            self._sweep()
            return {key: store.outcomes[key][0] for key in ids if key in store.outcomes}

    def wait(self, ids: Collection[str], timeout: float) -> dict[str, Outcome]:
        clock, store, waiter = self.clock, self._store, self._waiter
        until = clock.monotonic() + timeout
        waiter.ids = frozenset(ids)
        try:
            while True:
                self._check_open()
                with store.lock:
                    self._sweep()
                    found = store.ready(waiter.ids)
                    store.waiters.add(waiter)
                    waiter.wake.clear()
                    patience = until - clock.monotonic()
                    if found or self._interrupted or patience <= 0:
                        self._interrupted = False
                        return found
                waiter.wake.wait(clock.bound(patience))
        finally:
            with store.lock:
                store.waiters.discard(waiter)

    def interrupt(self) -> None:
        with self._store.lock:
            self._interrupted = True
            self._waiter.wake.set()

    def forget(self, ids: Sequence[str]) -> None:
        store = self._current()
        with store.lock:
            for key in ids:
                store.drop(key)

    def expire(self, ids: Sequence[str], ttl: float | None) -> None:
        store = self._current()
        with store.lock:
            now = self._sweep()
            for key in ids:
                if key in store.outcomes:
                    store.keep(store.outcomes[key][0], math.inf if ttl is None else now + ttl)

    def revoke(self, revocations: Sequence[Revocation], ttl: float) -> None:
        store = self._current()
        with store.lock:
            now = self.clock.monotonic()
            store.revocations = [item for item in store.revocations if item[1] > now]
            for revocation in revocations:
                store.cursor += 1
                store.revocations.append((store.cursor, now + ttl, revocation))

    def revoked(self, after: int) -> tuple[int, list[Revocation]]:
        store = self._current()
        with store.lock:
            now = self.clock.monotonic()
            start = bisect_right(store.revocations, after, key=lambda item: item[0])
            newer = store.revocations[start:]
            return store.cursor, [revocation for _, end, revocation in newer if end > now]

    def count(self, key: str, member: str, ttl: float) -> int:
        store = self._current()
        with store.lock:
            now = self.clock.monotonic()
            members, end = store.members.get(key, (set[str](), math.inf))
            if end <= now:
                members = set()
            members.add(member)
            store.members[key] = (members, now + ttl)
            return len(members)

    def keys(self) -> KeyStore:
        return self._keys

    def ping(self) -> None:
        self._check_open()

    def info(self) -> dict[str, Any]:
        store = self._current()
        with store.lock:
            return {
                "backend": self.scheme,
                "address": f"memory://{self.name}",
                "version": f"Python {platform.python_version()}",
                "outcomes": len(store.outcomes),
            }

    def maintain(self) -> None:
        """Drop what has ended."""
        store = self._current()
        with store.lock:
            now = self._sweep()
            store.revocations = [item for item in store.revocations if item[1] > now]
            store.members = {
                key: (members, end) for key, (members, end) in store.members.items() if end > now
            }
        with store.keys.lock:
            store.keys.sweep(now)

    def close(self) -> None:
        with self._store.lock:
            self._closed = True
            self._waiter.wake.set()

    def _check_open(self) -> None:
        if self._closed:
            raise BackendError("the memory backend is closed: open another", retryable=False)

    def _current(self) -> _Store:
        self._check_open()
        return self._store

    def _sweep(self) -> float:
        """Drop what has ended by now; returns the clock's monotonic time."""
        now = self.clock.monotonic()
        self._store.sweep(now)
        return now


def _outranks(stored: Outcome, new: Outcome) -> bool:
    if stored.fence != new.fence:
        return stored.fence > new.fence
    return stored.state in FINAL_STATES and new.state not in FINAL_STATES
