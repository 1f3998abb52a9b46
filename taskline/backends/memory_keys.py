"""Locks, keys and counters in this process's memory."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence

from taskline.backends.keys import KeyStore, Lease, Step, Watch, added, next_fence
from taskline.clock import Clock

_FEW = 1000
"""Keys that may be kept beyond their end before all are looked through."""


class Room:
    """What key stores of one name share. Ends are on the monotonic clock."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.values: dict[str, tuple[bytes, float]] = {}
        """Each with the time at which it ends."""
        self.leases: dict[str, tuple[str, int, float]] = {}
        """Token, fence and end of each lock."""
        self.fence = 0
        self.watches: dict[str, set[threading.Event]] = {}
        self._full = _FEW

    def put(self, key: str, value: bytes, end: float, now: float) -> None:
        """Keep a value until `end`, Unix seconds; now and then this drops what has ended."""
        self.values[key] = (value, end)
        if len(self.values) > self._full:
            self.sweep(now)

    def sweep(self, now: float) -> None:
        """Drop what has ended."""
        self.values = {key: item for key, item in self.values.items() if item[1] > now}
        self.leases = {name: item for name, item in self.leases.items() if item[2] > now}
        self._full = 2 * len(self.values) + _FEW

    def wake(self, name: str) -> None:
        """Tell those who watch this lock that it is free."""
        for event in self.watches.get(name, ()):
            event.set()


class MemoryKeys(KeyStore):
    """The key store of one backend; `check_open` raises when that is closed."""

    def __init__(self, room: Room, clock: Clock, check_open: Callable[[], None]) -> None:
        self._room = room
        self._clock = clock
        self._check_open = check_open

    def time(self) -> float:
        return self._clock.monotonic()

    def get(self, key: str) -> bytes | None:
        room = self._open()
        with room.lock:
            found = self._value(key)
            return None if found is None else found[0]

    def set(self, key: str, value: bytes, ttl: float | None, *, if_absent: bool = False) -> bool:
        room = self._open()
        with room.lock:
            if if_absent and self._value(key) is not None:
                return False
            room.put(key, value, self._end(ttl), self._clock.monotonic())
            return True

    def swap(
        self, key: str, expected: bytes | None, value: bytes | None, ttl: float | None
    ) -> bool:
        room = self._open()
        with room.lock:
            found = self._value(key)
            if (None if found is None else found[0]) != expected:
                return False
            self._put(key, value, ttl)
            return True

    def delete(self, key: str) -> bool:
        room = self._open()
        with room.lock:
            found = self._value(key)
            room.values.pop(key, None)
            return found is not None

    def increment(self, key: str, by: int, ttl: float | None) -> int:
        room = self._open()
        with room.lock:
            value, end = self._value(key) or (b"0", self._end(ttl))
            total = added(key, value, by)
            room.put(key, b"%d" % total, end, self._clock.monotonic())
            return total

    def ttl(self, key: str) -> float | None:
        room = self._open()
        with room.lock:
            found = self._value(key)
            return None if found is None else found[1] - self._clock.monotonic()

    def expire(self, key: str, ttl: float | None) -> bool:
        room = self._open()
        with room.lock:
            found = self._value(key)
            if found is None:
                return False
            room.values[key] = (found[0], self._end(ttl))
            return True

    def _change(self, steps: Sequence[tuple[str, Step]]) -> None:
        room = self._open()
        with room.lock:
            for key, step in steps:
                found = self._value(key)
                self._put(key, *step(None if found is None else found[0], self.time()))

    def acquire(self, name: str, token: str, ttl: float) -> Lease:
        room = self._open()
        with room.lock:
            held = self._lease(name)
            if held is not None:
                return held
            room.fence = next_fence(room.fence, self._clock.time())
            room.leases[name] = (token, room.fence, self._end(ttl))
            return Lease(token, room.fence, ttl)

    def renew(self, name: str, token: str, ttl: float) -> bool:
        room = self._open()
        with room.lock:
            held = self._lease(name)
            if held is None or held.token != token:
                return False
            room.leases[name] = (token, held.fence, self._end(ttl))
            room.wake(name)
            return True

    def release(self, name: str, token: str) -> bool:
        room = self._open()
        with room.lock:
            held = self._lease(name)
            if held is None or held.token != token:
                return False
            del room.leases[name]
            room.wake(name)
            return True

    def holder(self, name: str) -> Lease | None:
        room = self._open()
        with room.lock:
            return self._lease(name)

    def watch(self, name: str) -> Watch:
        self._check_open()
        return _MemoryWatch(self._room, self._clock, name)

    def _put(self, key: str, value: bytes | None, ttl: float | None) -> None:
        if value is None:
            self._room.values.pop(key, None)
        else:
            self._room.put(key, value, self._end(ttl), self._clock.monotonic())

    def _open(self) -> Room:
        self._check_open()
        return self._room

    def _end(self, ttl: float | None) -> float:
        return math.inf if ttl is None else self._clock.monotonic() + ttl

    def _value(self, key: str) -> tuple[bytes, float] | None:
        found = self._room.values.get(key)
        return found if found is not None and found[1] > self._clock.monotonic() else None

    def _lease(self, name: str) -> Lease | None:
        found = self._room.leases.get(name)
        if found is None:
            return None
        token, fence, end = found
        left = end - self._clock.monotonic()
        return Lease(token, fence, left) if left > 0 else None


class _MemoryWatch(Watch):
    def __init__(self, room: Room, clock: Clock, name: str) -> None:
        self._room = room
        self._clock = clock
        self._name = name
        self._event = threading.Event()
        self._interrupted = False
        with room.lock:
            room.watches.setdefault(name, set()).add(self._event)

    def wait(self, seconds: float) -> None:
        self._event.wait(self._clock.bound(seconds))
        if not self._interrupted:
            self._event.clear()

    def interrupt(self) -> None:
        self._interrupted = True
        self._event.set()

    def close(self) -> None:
        with self._room.lock:
            events = self._room.watches.get(self._name, set())
            events.discard(self._event)
            if not events:
                self._room.watches.pop(self._name, None)
