"""What all conformance suites stand on: the clock, waiting with a bound, threads that end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import ClassVar, Generic, TypeVar

import pytest

from taskline.backends.base import Backend
from taskline.clock import SYSTEM_CLOCK, Clock, ManualClock
from taskline.transports.base import Transport

T = TypeVar("T")

C = TypeVar("C", Backend, Transport)


def connections(make: Callable[[Clock], C], clock: Clock) -> Iterator[Callable[..., C]]:
    """For a fixture: opens one more, by `clock` or another; all are closed after the test."""
    made: list[C] = []

    def connect(with_clock: Clock = clock) -> C:
        made.append(make(with_clock))
        return made[-1]

    yield connect
    while made:
        made.pop().close()


class Running(Generic[T]):
    """A call in a thread of its own."""

    def __init__(self, work: Callable[[], T], bound: float) -> None:
        self._work = work
        self._bound = bound
        self._outcome: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="taskline-suite", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._outcome.append(self._work())
        except BaseException as error:
            self._error = error

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def result(self) -> T:
        """What the call returned or raised; fails when it does not end within the bound."""
        self._thread.join(self._bound)
        if self._thread.is_alive():
            pytest.fail(f"a call that has to return is still running after {self._bound:g} s")
        if self._error is not None:
            raise self._error
        return self._outcome[0]


class Suite:
    """Fixtures and helpers of both conformance suites."""

    manual_clock: ClassVar[bool] = True
    """Whether the store takes the time from the clock that it is given. A store with a
    clock of its own (a server) says False; the suite then waits for real time to pass."""

    short: ClassVar[float] = 1.0
    """Seconds: leases, delays and lifetimes where the suite really waits for their end."""

    early: ClassVar[float] = 0.1
    """Seconds by which the clock of a server may be ahead of ours."""

    bound: ClassVar[float] = 20.0
    """Real seconds after which a call counts as hanging."""

    crowd: ClassVar[int] = 400
    """Messages in the tests with many threads."""

    many: ClassVar[int] = 5000
    """Outcomes in the test of large batches: more than one command of the store takes."""
    contested: ClassVar[int] = 30
    """Dead letters in the test where several connections want the same ones."""

    @pytest.fixture
    def clock(self) -> Clock:
        return ManualClock() if self.manual_clock else SYSTEM_CLOCK

    @property
    def span(self) -> float:
        """Seconds that a test lets pass: long where that costs nothing."""
        return 30.0 if self.manual_clock else self.short

    def in_thread(self, work: Callable[[], T]) -> Running[T]:
        return Running(work, self.bound)

    def until(self, probe: Callable[[], T]) -> T:
        """Poll until the probe answers with something true; fails after the bound."""
        return self._poll(probe, self.bound)

    def after(self, clock: Clock, seconds: float, probe: Callable[[], T], since: float) -> T:
        """Let seconds pass until the probe answers with something true, and not earlier.

        In real time they are counted from `since`, of the monotonic clock: a moment before
        the call from which the store counts them.
        """
        if isinstance(clock, ManualClock):
            # Not at the very moment, which may count as either; binary fractions add up exactly.
            clock.advance(seconds - 1 / 8)
            assert not probe(), f"happened earlier than after {seconds:g} s"
            clock.advance(1 / 8 + 1 / 64)
            return self.until(probe)
        answer = self._poll(probe, seconds + self.bound)
        passed = clock.monotonic() - since
        assert passed >= seconds - self.early, f"happened after {passed:g} of {seconds:g} s"
        return answer

    def let_pass(self, clock: Clock, seconds: float) -> None:
        """Let seconds pass in which nothing is awaited."""
        if isinstance(clock, ManualClock):
            clock.advance(seconds)
        else:
            clock.sleep(seconds)

    def _poll(self, probe: Callable[[], T], bound: float) -> T:
        pause = threading.Event()
        end = SYSTEM_CLOCK.monotonic() + bound
        while not (answer := probe()):
            if SYSTEM_CLOCK.monotonic() > end:
                pytest.fail(f"did not happen within {bound:g} s; the last answer was {answer!r}")
            pause.wait(0.01)
        return answer
