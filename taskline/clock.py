"""The one place where Taskline reads the time, so that tests can move it by hand."""

from __future__ import annotations

import threading
import time


class Clock:
    """The system's clock."""

    def time(self) -> float:
        """Seconds since the Unix epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds of a clock that never jumps."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Return after `seconds`."""
        time.sleep(seconds)

    def bound(self, seconds: float) -> float:
        """The longest that a thread may really block before it reads this clock again.

        Whoever blocks on a socket, pipe or condition for `seconds` of this
        clock blocks for at most `bound(seconds)` real ones, and then looks.
        """
        return seconds


class ManualClock(Clock):
    """A clock that stands still until a test moves it."""

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self._now = start
        self._moved = threading.Condition()

    def time(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        """Block until another thread has moved the clock by `seconds`."""
        with self._moved:
            until = self._now + seconds
            while self._now < until:
                self._moved.wait()

    def bound(self, seconds: float) -> float:
        return min(seconds, 0.01)

    def advance(self, seconds: float) -> None:
        """Move the clock forward."""
        with self._moved:
            self._now += seconds
            self._moved.notify_all()


SYSTEM_CLOCK = Clock()
