"""What is declared as a limit, and how limits stand."""

from __future__ import annotations

import bisect
import math
from itertools import cycle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from taskline import Taskline
from taskline.backends.memory import MemoryBackend
from taskline.backends.permits import Ask, Claim, Holder
from taskline.clock import ManualClock
from taskline.errors import ConfigurationError, InvalidArguments
from taskline.limiting import Rulebook, key_of
from taskline.limits import rates
from taskline.message import new_id


@pytest.mark.parametrize(
    ("text", "number", "seconds", "burst"),
    [
        ("100/s", 100, 1, 5),
        ("10/m", 10, 60, 1),
        ("1000/h", 1000, 3600, 50),
        ("1/d", 1, 86400, 1),
        ("5/10s", 5, 10, 1),
        ("30 / 5 minutes", 30, 300, 1),
        ("7/second", 7, 1, 1),
        ("100/s burst 20", 100, 1, 20),
    ],
)
def test_rates_are_read(text: str, number: int, seconds: float, burst: float) -> None:
    (rate,) = rates("rate", text)
    assert (rate.number, rate.seconds, int(rate.burst)) == (number, seconds, burst)
    assert rate.per_second == number / seconds
    assert str(rate) == text


def test_several_rates() -> None:
    assert [str(rate) for rate in rates("rate", "10/s, 1000/h")] == ["10/s", "1000/h"]
    assert [str(rate) for rate in rates("rate", ["10/s", "1000/h"])] == ["10/s", "1000/h"]
    assert rates("rate", "none") == ()


@pytest.mark.parametrize(
    "wrong", ["", "10", "0/s", "10/x", "-1/s", "1.5/s", "10/0s", "10/s burst 0", 10, None, ["x"]]
)
def test_wrong_rates_are_refused(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^rate=.*100/s|burst of 0"):
        rates("rate", wrong)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rate": "much"}, "rate='much': a rate is written as"),
        ({"concurrency": 0}, "concurrency=0: must be a whole number of at least 1"),
        ({"concurrency": True}, "concurrency=True"),
        ({"limit_key": "to"}, "limit_key= goes with rate= or concurrency="),
        ({"rate": "1/s", "limit_key": 3}, "limit_key=3: must be the name of an argument"),
        ({"rate": "1/s", "limit_key": "customer"}, "limit_key='customer': the task has no such"),
        ({"rate": "1/s", "limit_key": "to", "batch": 10}, "limit_key= is not for batch="),
    ],
)
def test_wrong_options_of_tasks_are_refused(options: Any, words: str) -> None:
    app = Taskline("shop", broker="memory://", backend="memory://")
    with pytest.raises(ConfigurationError, match=words):

        @app.task(**options)
        def mail(to: list[str]) -> None: ...


def test_wrong_options_of_queues_are_refused() -> None:
    for options in ({"rate": "much"}, {"concurrency": 0}, {"concurrency": "four"}):
        with pytest.raises(ConfigurationError, match="queues: mail: "):
            Taskline("shop", broker="memory://", queues={"mail": options})


def test_keys_come_from_the_arguments() -> None:
    app = Taskline("shop", broker="memory://", backend="memory://")

    @app.task(rate="1/s", limit_key="customer")
    def charge(customer: int = 7, *rest: str, **more: str) -> None: ...

    assert key_of(charge, [3], {}) == key_of(charge, [], {"customer": 3}) == "=3"
    assert key_of(charge, [], {}) == "=7"

    @app.task(rate="1/s", limit_key=lambda to, **_: to.partition("@")[2])
    def mail(to: str, subject: str = "") -> None: ...

    assert key_of(mail, ["ann@example.org"], {"subject": "x"}) == "=example.org"

    @app.task(rate="1/s", limit_key="customer")
    def other(**more: str) -> None: ...

    assert key_of(other, [], {"customer": "x"}) == "=x"
    with pytest.raises(InvalidArguments, match="no argument 'customer'"):
        key_of(other, [], {})

    @app.task
    def plain(customer: int) -> None: ...

    assert key_of(plain, [1], {}) == ""


def test_each_limit_has_a_name_of_its_own() -> None:
    app = Taskline(
        "shop", broker="memory://", backend="memory://", queues={"mail": {"concurrency": 4}}
    )

    @app.task(name="t", rate="10/s, 100/h", concurrency=2, limit_key="a")
    def task(a: str) -> None: ...

    book = Rulebook(app)
    rules = book.rules("t", "mail", "=x")
    assert [each.name for each in rules.buckets] == ["shop:task:t:=x#0", "shop:task:t:=x#1"]
    assert [(each.name, each.limit) for each in rules.semaphores] == [
        ("shop:task:t:=x", 2),
        ("shop:queue:mail", 4),
    ]
    # However long the key, a store can have it in a name.
    long = book.rules("t", "mail", "=" + "x" * 100_000)
    assert len(long.buckets[0].name) < 200
    assert long.buckets[0].name != book.rules("t", "mail", "=" + "x" * 100_001).buckets[0].name
    assert book.rules("unheard-of", "default").buckets == ()


def test_rates_that_were_told_stand_in_for_those_of_the_code() -> None:
    app = Taskline("shop", broker="memory://", backend="memory://")

    @app.task(name="t", rate="10/s", concurrency=3)
    def task() -> None: ...

    @app.task(name="free")
    def free() -> None: ...

    book = Rulebook(app, {"t": rates("rate", "none"), "free": rates("rate", "1/m")})
    assert book.rules("t", "default").buckets == ()
    assert book.rules("t", "default").semaphores[0].limit == 3
    assert [str(each.rate) for each in book.rules("free", "default").buckets] == ["1/m"]


def test_how_limits_stand_is_told() -> None:
    app = Taskline(
        "shop",
        broker="memory://",
        backend=f"memory://{new_id()}",
        queues={"mail": {"rate": "40/h"}},
    )

    @app.task(name="keyed", rate="100/h", limit_key="a")
    def keyed(a: str) -> None: ...

    @app.task(name="two", concurrency=2)
    def two() -> None: ...

    @app.task(name="free")
    def free() -> None: ...

    book, keys = Rulebook(app), app.require_backend().keys()
    (semaphore,) = book.rules("two", "default").semaphores
    keys.hold([Claim(semaphore.name, 2, (Holder("id-1", "1 worker-a"),))], 30.0)
    (bucket,) = book.rules("keyed", "default", "=x").buckets
    keys.take([Ask(bucket.name, bucket.rate.per_second, bucket.rate.burst, 2)])
    found = {each.name: each for each in app.limits()}
    assert sorted(found) == ["keyed", "mail", "two"]
    assert (found["keyed"].keyed, found["keyed"].left) == (True, ())
    assert [(place.id, place.run) for place in found["two"].held] == [("id-1", "1 worker-a")]
    assert (found["mail"].scope, found["mail"].rates, found["mail"].left) == (
        "queue",
        ("40/h",),
        (2.0,),
    )
    of_x = {each.name: each for each in app.limits("x")}["keyed"]
    assert (of_x.rates, round(of_x.left[0])) == (("100/h",), 3)
    app.control.rate("free", "7/h")
    assert {each.name: each.rates for each in app.limits()}["free"] == ("7/h",)
    with pytest.raises(ConfigurationError, match="rate='much'"):
        app.control.rate("free", "much")


# The store


class Buckets(RuleBasedStateMachine):
    """Whoever takes from a bucket, in no span of time are there more than rate * span + burst."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.keys = MemoryBackend(f"test-{new_id()}", self.clock).keys()
        self.taken: list[tuple[float, int]] = []
        self.given_back = 0

    @rule(wanted=st.integers(1, 12))
    def take(self, wanted: int) -> None:
        (taken,) = self.keys.take([Ask("b", 2.0, 3.0, wanted)])
        assert 0 <= taken.number <= wanted
        assert taken.left <= 3.0
        # It never refuses what is there.
        assert taken.number == wanted or taken.left < 1
        if taken.number:
            self.taken.append((self.clock.monotonic(), taken.number))

    @precondition(lambda self: self.taken)
    @rule()
    def give_back(self) -> None:
        _, number = self.taken.pop()
        self.keys.take([Ask("b", 2.0, 3.0, -number)])

    @rule(seconds=st.sampled_from([0.0, 0.125, 0.5, 1.0, 7.0]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def never_too_many(self) -> None:
        for first in range(len(self.taken)):
            begin, number = self.taken[first][0], 0
            for at, some in self.taken[first:]:
                number += some
                assert number <= 2.0 * (at - begin) + 3.0 + 1e-6


class Semaphores(RuleBasedStateMachine):
    """A model of who holds which place until when."""

    LIMIT = 2

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.keys = MemoryBackend(f"test-{new_id()}", self.clock).keys()
        self.places: dict[str, tuple[str, float]] = {}

    def alive(self) -> dict[str, tuple[str, float]]:
        now = self.clock.monotonic()
        return {key: place for key, place in self.places.items() if place[1] > now}

    holders = st.builds(Holder, st.sampled_from("abcd"), st.sampled_from("12"))

    @rule(holder=holders, ttl=st.sampled_from([1.0, 5.0]))
    def want(self, holder: Holder, ttl: float) -> None:
        places = self.alive()
        (answer,) = self.keys.hold([Claim("s", self.LIMIT, (holder,))], ttl)
        fits = holder.id in places or len(places) < self.LIMIT
        assert answer == ([holder.id] if fits else [])
        if fits:
            places[holder.id] = (holder.run, self.clock.monotonic() + ttl)
        self.places = places

    @rule(holder=holders, ttl=st.sampled_from([1.0, 5.0]))
    def renew(self, holder: Holder, ttl: float) -> None:
        places = self.alive()
        (answer,) = self.keys.hold([Claim("s", self.LIMIT, renewed=(holder,))], ttl)
        theirs = holder.id in places and places[holder.id][0] == holder.run
        assert answer == ([holder.id] if theirs else [])
        if theirs:
            places[holder.id] = (holder.run, self.clock.monotonic() + ttl)
        self.places = places

    @rule(holder=holders)
    def free(self, holder: Holder) -> None:
        places = self.alive()
        self.keys.hold([Claim("s", self.LIMIT, freed=(holder,))], 1.0)
        if holder.id in places and places[holder.id][0] == holder.run:
            del places[holder.id]
        self.places = places

    @rule(seconds=st.sampled_from([0.5, 1.25, 3.0]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def as_in_the_model(self) -> None:
        now = self.clock.monotonic()
        found = {place.id: (place.run, now + place.left) for place in self.keys.places("s")}
        assert found == self.alive()
        assert len(found) <= self.LIMIT


TestBuckets = Buckets.TestCase
TestSemaphores = Semaphores.TestCase


@given(st.lists(st.integers(1, 20), max_size=20))
def test_turns_that_are_promised_follow_one_another(numbers: list[int]) -> None:
    keys = MemoryBackend(f"test-{new_id()}", ManualClock()).keys()
    before = 0
    for number in numbers:
        (taken,) = keys.take([Ask("b", 1.0, 1.0, number, math.inf)])
        assert taken.number == number
        before += number
        assert taken.left == pytest.approx(1 - before)


# Rates that are counted in each span

FAST = Ask("b", 100.0, 5.0, 0, span=1.0)


class Spans(RuleBasedStateMachine):
    """Some begin within 2 % of a span after they took a token, some give it back, all may stall."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.keys = MemoryBackend(f"test-{new_id()}", self.clock).keys()
        self.granted: list[tuple[float, int]] = []
        """Tokens with which nothing has begun, and when they were taken."""
        self.starts: list[float] = []

    @rule(wanted=st.integers(1, 60))
    def take(self, wanted: int) -> None:
        (taken,) = self.keys.take([FAST._replace(wanted=wanted)])
        assert 0 <= taken.number <= min(wanted, 20)
        # It never refuses what it says is there.
        assert taken.number == wanted or taken.left < 1
        if taken.number:
            self.granted.append((taken.at, taken.number))

    @precondition(lambda self: self.granted)
    @rule(late=st.sampled_from([0.0, 0.004, 0.0199]), last=st.booleans())
    def begin(self, late: float, last: bool) -> None:
        at, number = self.granted.pop(-1 if last else 0)
        self.starts += [max(at + late, self.clock.time())] * number if self._fresh(at) else []

    @precondition(lambda self: self.granted)
    @rule(last=st.booleans())
    def give_back(self, last: bool) -> None:
        at, number = self.granted.pop(-1 if last else 0)
        self.keys.take([FAST._replace(wanted=-number, at=at)])

    @rule(seconds=st.sampled_from([0.001, 0.005, 0.02, 0.05, 0.1, 0.3, 0.4, 1.0, 5.0]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    def _fresh(self, at: float) -> bool:
        return self.clock.time() - at <= 0.02

    @invariant()
    def never_too_many(self) -> None:
        starts = sorted(self.starts)
        for number, at in enumerate(starts):
            assert bisect.bisect_left(starts, at + 1.0) - number <= 105


TestSpans = Spans.TestCase


@pytest.mark.parametrize(("slowest", "share"), [(0.02, 0.99), (0.08, 0.95)])
@given(
    st.lists(st.floats(0.5, 1.0), min_size=1, max_size=20),
    st.floats(0.0, 0.5),
    st.sampled_from([(100.0, 5.0, 1.0), (40.0, 2.0, 1.0), (1000.0, 50.0, 2.0), (57.0, 2.85, 0.5)]),
)
@settings(max_examples=10)
def test_what_comes_during_a_stall_is_made_good(
    slowest: float,
    share: float,
    pauses: list[float],
    stall: float,
    of: tuple[float, float, float],
) -> None:
    """However irregularly they ask: behind by half a span, they are up to date 30 spans later."""
    number, burst, span = of
    clock = ManualClock()
    keys = MemoryBackend(f"test-{new_id()}", clock).keys()
    ask = Ask("b", number / span, burst, 1000, span=span)
    starts = [clock.time()] * keys.take([ask])[0].number
    begin = clock.time()
    clock.advance(stall * span)
    for pause in cycle(pauses):
        clock.advance(pause * slowest * span)
        starts += [clock.time()] * keys.take([ask])[0].number
        if clock.time() > begin + 30 * span:
            break
    most = max(bisect.bisect_left(starts, at + 1.02 * span) - n for n, at in enumerate(starts))
    assert most <= math.ceil(1.05 * number)
    assert len(starts) >= 30 * number * share
