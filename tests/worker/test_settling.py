"""Results before receipts, and what happens when broker or backend fail in between (P2, P3)."""

from __future__ import annotations

import logging
from itertools import pairwise
from typing import Any

import pytest
from workbench import Bench, Spy, spy_on, until, working

from taskline import Taskline
from taskline.clock import ManualClock
from taskline.errors import BackendError, Retry, TransportError
from taskline.message import FAILURE, RETRY, SUCCESS
from taskline.worker.verdicts import Verdicts

SETTLING = ("store", "ack", "replace", "bury", "release")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


class Broken:
    """An app on a clock that stands still, whose worker's cables can be cut."""

    def __init__(self, app: Taskline, clock: ManualClock) -> None:
        self.app = app
        self.clock = clock
        self.transport, self.backend = spy_on(app)
        self.runs: list[str] = []

        @app.task(name="good")
        def good(key: str) -> str:
            self.runs.append(key)
            return key

        @app.task(name="bad")
        def bad(key: str) -> None:
            self.runs.append(key)
            raise ValueError(key)

        @app.task(name="again")
        def again(key: str) -> None:
            self.runs.append(key)
            raise Retry("later", after=3600)

        self.tasks = {"good": good, "bad": bad, "again": again}

    def call(self, name: str) -> Any:
        return self.tasks[name].delay(name)

    def recover(self, bench: Bench) -> None:
        """Let the worker have as many turns and as much time as it needs."""
        for _ in range(40):
            bench.turn()
            bench.work()
            if not bench.held and not bench.io._outage.lasts:
                return
            self.clock.advance(1.0)
        raise AssertionError(f"still holds {bench.held}")


@pytest.fixture
def broken(make_app: Any, clock: ManualClock) -> Broken:
    return Broken(make_app(clock=clock), clock)


STATES = {"good": SUCCESS, "bad": FAILURE, "again": RETRY}
VERDICTS = {"good": "ack", "bad": "bury", "again": "replace"}


@pytest.mark.parametrize("name", STATES)
def test_the_result_is_stored_before_the_message_is_settled(broken: Broken, name: str) -> None:
    result = broken.call(name)
    bench = Bench(broken.app)
    bench.drain()
    settling = broken.transport.names(*SETTLING)
    verdict = VERDICTS[name]
    if name == "good" and broken.transport.shares(broken.backend):
        assert settling == ["ack"], "in one step"
        [(_, (_, [outcome]))] = [call for call in broken.transport.calls if call[0] == "ack"]
        assert outcome.id == result.id
    else:
        assert settling == ["store", verdict]
    assert result.state == STATES[name]


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("fault", ["before", "after"])
def test_a_store_that_fails_keeps_the_message_and_is_repeated(
    broken: Broken, name: str, fault: str
) -> None:
    result = broken.call(name)
    if name == "good" and broken.transport.shares(broken.backend):
        broken.transport.faults["ack"] = [fault, fault]
    else:
        broken.backend.faults["store"] = [fault, fault]
    bench = Bench(broken.app)
    bench.turn()
    bench.work()
    broken.transport.calls.clear()
    bench.turn()
    assert bench.io._outage.lasts
    assert bench.held == {result.id}
    if fault == "before":
        assert result.state == "PENDING"
        assert not broken.transport.names("ack", "replace", "bury"), "nothing without its result"
    broken.recover(bench)
    assert broken.runs == [name], "the result was there: the task did not run again"
    assert result.state == STATES[name]


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("fault", ["before", "after"])
def test_a_receipt_that_fails_is_repeated(broken: Broken, name: str, fault: str) -> None:
    result = broken.call(name)
    broken.transport.faults[VERDICTS[name]] = [fault, fault, fault]
    bench = Bench(broken.app)
    bench.turn()
    bench.work()
    broken.recover(bench)
    assert broken.runs == [name]
    assert result.state == STATES[name]
    if name != "good" or not broken.transport.shares(broken.backend):
        assert broken.transport.names("store") == ["store"], "what is stored stays stored"
    left = [each.state for each in broken.app.transport.peek("default")]
    assert left == (["delayed"] if name == "again" else [])
    assert len(broken.app.transport.dead_letters()) == (name == "bad")


def test_a_crash_between_result_and_receipt_costs_a_second_run_and_no_result(
    make_app: Any, clock: ManualClock
) -> None:
    broken = Broken(make_app(clock=clock), clock)
    result = broken.call("good")
    broken.transport.faults["ack"] = ["before"]
    first = Bench(broken.app, name="first")
    first.turn()
    first.work()
    first.turn()
    clock.advance(31.0)  # it is never heard of again
    second = Bench(broken.app, name="second")
    second.drain()
    assert broken.runs == ["good", "good"]
    assert result.get(timeout=0) == "good"
    assert broken.app.transport.peek("default") == []


def test_nothing_is_lost_while_the_broker_is_away(
    broken: Broken, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="taskline.worker")
    results = [broken.call(name) for name in ("good", "bad", "again") for _ in range(4)]
    bench = Bench(broken.app, prefetch=3)
    bench.turn()
    bench.work()
    broken.transport.down = broken.backend.down = True
    for _ in range(10):
        bench.turn()
        bench.work()
        broken.clock.advance(0.7)
    assert bench.held, "what was not settled is kept"
    ran = len(broken.runs)
    broken.transport.down = broken.backend.down = False
    broken.recover(bench)
    bench.drain()
    assert ran < len(broken.runs) == 12
    assert [result.state for result in results] == [SUCCESS] * 4 + [FAILURE] * 4 + [RETRY] * 4
    lines = [record.getMessage() for record in caplog.records]
    assert sum("trying until it works" in line for line in lines) == 1
    assert sum("answers again" in line for line in lines) == 1


def test_a_broker_that_is_away_is_asked_less_and_less_often(broken: Broken) -> None:
    bench = Bench(broken.app)
    bench.turn()
    asked = []
    broken.transport.down = True
    start = broken.clock.monotonic()
    original = broken.transport._error

    def note(message: str) -> TransportError:
        asked.append(broken.clock.monotonic() - start)
        return original(message)

    broken.transport._error = note
    while broken.clock.monotonic() < start + 60:
        bench.turn()
        broken.clock.advance(0.05)
    pauses = [after - before for before, after in pairwise(asked)]
    assert 10 < len(asked) < 40
    assert pauses[0] < 0.3
    assert min(pauses[-5:]) > 2.4
    assert max(pauses) < 5.2


@pytest.mark.parametrize("down", ["transport", "backend"])
def test_a_worker_that_starts_before_its_broker_waits_for_it(
    make_memory_app: Any, down: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_memory_app()
    transport, backend = spy_on(app)
    refusals = []

    @app.task
    def hello() -> str:
        return "hello"

    spy = {"transport": transport, "backend": backend}[down]
    open_one = f"open_{down}"
    opened = getattr(app, open_one)

    def refuse() -> Any:
        refusals.append(1)
        if len(refusals) < 3:
            raise (TransportError if down == "transport" else BackendError)("connection refused")
        return opened()

    monkeypatch.setattr(app, open_one, refuse)
    spy.faults["ping"] = ["before"]
    result = hello.delay()
    with working(app):
        assert result.get(timeout=30) == "hello"
    assert len(refusals) == 3


def test_a_backend_that_fails_as_messages_arrive_has_them_handed_back(broken: Broken) -> None:
    results = [broken.call("good") for _ in range(2)]
    broken.backend.faults["revoked"] = ["before"]
    bench = Bench(broken.app)
    bench.turn()
    assert broken.runs == []
    assert not bench.waiting
    broken.recover(bench)
    bench.drain()
    assert len(broken.runs) == 2
    assert all(result.info["deliveries"] == 2 for result in results)


def test_showing_that_a_task_runs_may_fail_and_is_repeated(broken: Broken) -> None:
    result = broken.call("good")
    bench = Bench(broken.app)
    bench.turn()
    bench.begin()
    broken.backend.faults["store"] = ["before"]
    broken.clock.advance(2.0)
    bench.turn()
    assert result.state == "PENDING"
    broken.clock.advance(2.0)
    bench.turn()
    assert result.state == "STARTED"
    bench.finish()
    bench.drain()
    assert result.state == SUCCESS


def test_stop_ends_though_the_broker_is_gone_and_says_so(
    broken: Broken, caplog: pytest.LogCaptureFixture
) -> None:
    broken.call("good")
    bench = Bench(broken.app, lease=30.0)
    bench.turn()
    broken.transport.down = broken.backend.down = True
    bench.io.stop(5.0)
    start = broken.clock.monotonic()
    while bench.turn():
        broken.clock.advance(1.0)
    assert 30 < broken.clock.monotonic() - start < 50, "it tried for a grace and a lease"
    assert "without having handed everything back" in caplog.text


def test_nothing_is_taken_in_while_what_is_done_cannot_be_settled(broken: Broken) -> None:
    broken.tasks["good"].map(["x"] * 40)
    bench = Bench(broken.app, prefetch=4)
    for _ in range(30):  # the broker would hand out, but takes nothing back
        broken.transport.faults["ack"] = ["before"]
        broken.backend.faults["store"] = ["before"]
        bench.turn()
        bench.work()
        broken.clock.advance(6.0)
    assert len(broken.runs) <= 4
    broken.transport.faults.clear()
    broken.backend.faults.clear()
    broken.recover(bench)
    bench.drain()
    assert len(broken.runs) == 40


def test_a_broker_that_answers_does_not_end_the_backends_outage(
    broken: Broken, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="taskline.worker")
    result = broken.call("good")
    bench = Bench(broken.app)
    broken.backend.down = True
    bench.turn()
    broken.clock.advance(40.0)
    # Another worker, with a cable of its own, does the work meanwhile.
    healthy = Bench(broken.app, name="healthy", backend=broken.backend.inner)
    healthy.drain()
    assert result.state == SUCCESS
    for _ in range(20):
        broken.clock.advance(1.0)
        bench.turn()
    assert bench.io._outage.lasts
    assert "answers again" not in caplog.text
    broken.backend.down = False
    broken.recover(bench)
    assert "answers again" in caplog.text


@pytest.mark.parametrize("end", ["expires", "is revoked"])
def test_a_success_whose_receipt_was_lost_stays_one(
    make_memory_app: Any, clock: ManualClock, end: str
) -> None:
    """The worker dies between result and receipt, and when the message comes again its time is
    over: whoever has read the result would find another."""
    app = make_memory_app(clock=clock)
    transport, _ = spy_on(app)
    transport.shares = lambda backend: False  # type: ignore[method-assign]

    @app.task
    def work() -> str:
        return "done"

    result = work.options(expires=20.0 if end == "expires" else None).delay()
    bench = Bench(app)
    bench.turn()
    bench.work()
    transport.faults["ack"] = ["before"]
    bench.turn()
    assert app.AsyncResult(result.id).get(timeout=0) == "done"
    clock.advance(31.0)  # it is never heard of again
    if end == "is revoked":
        result.revoke()
    Bench(app, name="next").drain()
    assert app.AsyncResult(result.id).get(timeout=0) == "done"
    assert app.transport.peek("default") == []


class Early:
    """An app with a task that is acknowledged before it runs."""

    def __init__(self, app: Taskline) -> None:
        self.app = app
        self.transport, self.backend = spy_on(app)
        self.runs: list[int] = []

        @app.task(ack="early", retry={"max": 1, "wait": 0})
        def once(number: int) -> int:
            self.runs.append(number)
            if number < 0:
                raise ValueError("negative")
            return number

        self.once = once


@pytest.fixture
def early(make_app: Any, clock: ManualClock) -> Early:
    return Early(make_app(clock=clock))


def test_early_means_before_the_run(early: Early) -> None:
    results = early.once.map([1, 2, 3])
    bench = Bench(early.app)
    bench.turn()
    assert early.transport.names("ack") == ["ack"], "in one batch"
    assert early.runs == []
    assert early.app.transport.stats()[0].leased == 0
    bench.drain()
    assert results.get(timeout=0) == [1, 2, 3]


def test_early_a_crash_loses_the_task_and_never_repeats_it(
    early: Early, clock: ManualClock
) -> None:
    early.once.delay(1)
    bench = Bench(early.app)
    bench.turn()
    bench.begin()
    bench.die()
    clock.advance(1000)
    other = Bench(early.app, name="other")
    other.drain()
    assert early.runs == []


@pytest.mark.parametrize("fault", ["before", "after"])
def test_early_a_receipt_that_fails_never_lets_it_run_twice(
    early: Early, clock: ManualClock, fault: str
) -> None:
    early.once.map([1, 2])
    early.transport.faults["ack"] = [fault]
    bench = Bench(early.app)
    bench.turn()
    assert early.runs == []
    clock.advance(5)
    bench.drain()
    # Lost where the broker took the receipt and could not say so: at most once.
    assert early.runs == ([1, 2] if fault == "before" else [])


def test_early_a_failure_is_tried_again_by_a_new_message(early: Early, clock: ManualClock) -> None:
    result = early.once.delay(-1)
    early.transport.faults["replace"] = ["before"]
    bench = Bench(early.app)
    bench.turn()
    bench.work()
    bench.turn()
    assert early.transport.names("send"), "the new message has been sent"
    clock.advance(5.0)
    bench.drain()
    with pytest.raises(ValueError, match="negative"):
        result.get(timeout=0)
    assert early.runs == [-1, -1]


def test_early_a_new_message_is_sent_once_though_its_neighbours_have_to_be_repeated(
    early: Early, clock: ManualClock
) -> None:
    @early.app.task(retry={"max": 1, "wait": 0})
    def late() -> None:
        raise ValueError("late")

    early.once.delay(-1)
    late.delay()
    bench = Bench(early.app)
    bench.turn()
    bench.work()
    early.transport.faults["replace"] = ["before", "before"]
    for _ in range(5):
        bench.turn()
        clock.advance(5.0)
    assert early.transport.names("send") == ["send"]


@pytest.mark.parametrize("which", ["early", "late"])
def test_what_given_up_code_returns_after_all_is_not_its_result(
    early: Early, clock: ManualClock, which: str
) -> None:
    @early.app.task
    def late(number: int) -> int:
        return number

    task = early.once if which == "early" else late
    result = task.options(timeout=5, retry=0).delay(7)
    bench = Bench(early.app)
    bench.turn()
    bench.begin()
    bench.io.slots[0].interrupt = lambda job, error: None  # type: ignore[method-assign]
    for _ in range(3):
        clock.advance(5.0)
        bench.turn()
    assert result.state == FAILURE
    bench.finish()
    bench.turn(2)
    assert early.app.AsyncResult(result.id).state == FAILURE


def test_early_what_has_not_begun_at_the_end_is_sent_again(
    early: Early, clock: ManualClock
) -> None:
    results = early.once.map([1, 2, 3])
    bench = Bench(early.app)
    bench.turn()
    bench.begin()
    bench.io.stop(10.0)
    bench.turn()
    assert bench.waiting == 1, "there is still time"
    bench.finish()
    clock.advance(11.0)
    while bench.turn():
        pass
    assert early.runs == [1]
    other = Bench(early.app, name="other")
    other.drain()
    assert sorted(early.runs) == [1, 2, 3]
    assert results.get(timeout=0) == [1, 2, 3]


def test_a_defect_of_ours_costs_the_message_and_not_the_slot(
    memory_app: Taskline, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = memory_app

    @app.task
    def run() -> int:
        return 1

    @app.task
    async def coroutine() -> int:
        return 1

    with working(app):
        with monkeypatch.context() as patch:
            patch.setattr(Verdicts, "succeeded", lambda self, job, value: 1 / 0)
            ids = {run.delay().id, coroutine.delay().id}
            letters = until(lambda: len(found := app.transport.dead_letters()) == 2 and found)
        assert run.delay().get(timeout=30) == 1
        assert coroutine.delay().get(timeout=30) == 1
    assert isinstance(letters, list)
    assert {letter.id for letter in letters} == ids
    assert all("a defect in Taskline" in letter.reason for letter in letters)


def test_spies_keep_quiet_only_where_they_should() -> None:
    spy = Spy(object(), [])
    with pytest.raises(AttributeError):
        spy.ack([])
