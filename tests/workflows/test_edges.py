"""What goes wrong around workflows, and what it says; and tasks of every kind within them."""

from __future__ import annotations

import json
import logging
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from taskline import Retry, Taskline
from taskline.context import current_task
from taskline.errors import (
    BackendError,
    ConfigurationError,
    InvalidArguments,
    NoResult,
    SerializationError,
    TasklineError,
)
from taskline.message import FAILURE, REVOKED, SUCCESS
from taskline.testing.stepping import Hand
from taskline.workflows import FlowResult, chain, chord, each, from_dict, group, inputs


@pytest.fixture
def app(taskline_app: Taskline) -> Taskline:
    tasks(taskline_app)
    return taskline_app


def tasks(app: Taskline) -> None:
    @app.task(name="add")
    def add(x: int, y: int = 1) -> int:
        return x + y

    @app.task(name="total")
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    @app.task(name="fail")
    def fail(number: int) -> int:
        raise ValueError(number)


def work(app: Taskline) -> None:
    hand = Hand(app)
    hand.work()
    hand.close()


# What is said at once


def test_a_workflow_without_a_backend_is_refused_in_one_line() -> None:
    app = Taskline("bare", broker="memory://bare")
    tasks(app)
    with pytest.raises(ConfigurationError, match="the app bare has no result backend, which work"):
        app.tasks["add"].s(1).delay()


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda add, total: add.s(1, 2) | add.s(1, 2), InvalidArguments, r"\.si\(\) takes none"),
        (lambda add, total: add.s("x"), None, ""),
        (lambda add, total: add.s(1, 2, 3), InvalidArguments, "too many positional"),
        (lambda add, total: add.s(z=1), InvalidArguments, "unexpected keyword"),
        (lambda add, total: add.si(), InvalidArguments, "missing a required argument: 'x'"),
        (lambda add, total: add.si(1).into("y"), InvalidArguments, "takes no result"),
        (lambda add, total: add.s(1) | total.s().into("z"), InvalidArguments, "'numbers'"),
        (lambda add, total: chain(add.s(1), total), ConfigurationError, "no step of a workflow"),
        (lambda add, total: chain(), ConfigurationError, "empty chain"),
        (lambda add, total: group([]), ConfigurationError, "give it app="),
        (lambda add, total: each(add.s()), InvalidArguments, r"each\(\) needs a list"),
        (lambda add, total: each(add.si(1)), InvalidArguments, "takes no item"),
        (lambda add, total: add.s(1).undo(add.s() | add.s()), ConfigurationError, "one call"),
        (lambda add, total: add.s(x={1: object()}), InvalidArguments, "x = "),
    ],
)
def test_wrong_steps(app: Taskline, build: Any, error: Any, message: str) -> None:
    add, total = app.tasks["add"], app.tasks["total"]
    if error is None:
        build(add, total)
        return
    with pytest.raises(error, match=message):
        build(add, total).delay()
    assert app.transport.stats() == [] or app.transport.stats()[0].ready == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_failure": "explode"}, "'stop' or 'continue' or 'compensate'"),
        ({"expire": 3}, "did you mean 'expires'"),
        ({"expires": -1}, "more than 0 seconds"),
        ({"task_id": "a b"}, "no blanks"),
    ],
)
def test_wrong_options(app: Taskline, options: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        app.tasks["add"].s(1).apply_async(**options)


def test_wrong_graphs(app: Taskline) -> None:
    add, total = app.tasks["add"], app.tasks["total"]
    flow = app.workflow()
    with pytest.raises(ConfigurationError, match="has no steps"):
        flow.delay()
    flow.step("a", add.s(1))
    with pytest.raises(ConfigurationError, match="has a step 'a' already"):
        flow.step("a", add.s(1))
    with pytest.raises(ConfigurationError, match="no step 'aa' before this one"):
        flow.step("b", add.s(1), takes="aa")
    with pytest.raises(InvalidArguments, match="too many positional"):
        flow.step("b", add.s(1), takes=["a", "a"])
    with pytest.raises(ConfigurationError, match="each= gives"):
        flow.step("b", add.s(), each="a", takes="a")
    with pytest.raises(ConfigurationError, match="is no step"):
        flow.step("b", 3)  # type: ignore[arg-type]
    flow.step("b", total)
    with pytest.raises(InvalidArguments, match="step 'b' lacks its first argument"):
        flow.delay()
    result = flow.delay([1, 2])
    work(app)
    assert result.get(timeout=1) == {"a": 2, "b": 3}


def test_an_unknown_workflow(app: Taskline) -> None:
    result = FlowResult[int](app, "nobody")
    for ask in (result.progress, result.graph, lambda: result.children, result.revoke):
        with pytest.raises(NoResult, match="no workflow nobody is known"):
            ask()
    with pytest.raises(ConfigurationError, match="must be one of text, mermaid, dot"):
        app.tasks["add"].s(1).delay().graph("svg")  # type: ignore[arg-type]
    with pytest.raises(TasklineError, match="is no group of members"):
        app.tasks["add"].s(1).delay().members()


# What is noticed later


def test_a_workflow_that_was_forgotten_does_not_go_on(
    app: Taskline, caplog: pytest.LogCaptureFixture
) -> None:
    result = chain(app.tasks["add"].s(1), app.tasks["add"].s(1)).delay()
    result.forget()
    work(app)
    assert "is gone, so nothing follows its step" in caplog.text
    assert app.transport.stats()[0].ready == 0


def test_a_result_that_is_gone_fails_the_step_that_takes_it(app: Taskline) -> None:
    add, total = app.tasks["add"], app.tasks["total"]
    result = chord([add.s(1), add.s(2)], total.s()).delay()
    hand = Hand(app)
    hand.turn()
    hand.io.step(0.0)
    app.require_backend().forget([f"{result.id}-0-0"])
    hand.work()
    hand.close()
    with pytest.raises(NoResult, match="longer keep="):
        result.get(timeout=1)


def test_each_over_what_is_no_list_fails_with_a_line(app: Taskline) -> None:
    result = (app.tasks["add"].s(1) | each(app.tasks["add"].s())).delay()
    work(app)
    with pytest.raises(InvalidArguments, match=r"each\(\) needs a list to go through, not 2"):
        result.get(timeout=1)


def test_a_backend_that_is_away_as_results_are_read_hands_the_step_back(
    app: Taskline, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = chord([app.tasks["add"].s(n) for n in range(3)], app.tasks["total"].s()).delay()
    real, failures = inputs.completed, iter([1])

    def completed(*args: Any) -> Any:
        if args[2].take and next(failures, None):
            raise BackendError("the cable is cut")
        return real(*args)

    monkeypatch.setattr(inputs, "completed", completed)
    monkeypatch.setattr("taskline.worker.verdicts.PAUSE", 0.0)
    work(app)
    assert result.get(timeout=1) == 6
    assert app.AsyncResult(f"{result.id}-1").info["deliveries"] == 2


def test_a_backend_that_is_away_as_steps_arrive_hands_them_back(
    app: Taskline, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = chain(app.tasks["add"].s(1), app.tasks["add"].s(1)).delay()
    monkeypatch.setattr("taskline.worker.admit.ASK_AGAIN", 0.0)
    hand = Hand(app)
    real, failures = hand.backend.fetch, iter([1, 1])

    def fetch(ids: Any) -> Any:
        if next(failures, None):
            raise BackendError("the cable is cut")
        return real(ids)

    hand.backend.fetch = fetch  # type: ignore[method-assign,union-attr]
    hand.work()
    assert result.get(timeout=1) == 3
    assert app.AsyncResult(f"{result.id}-0").info["deliveries"] == 3


def test_a_successor_that_cannot_be_sent_ends_the_workflow(
    app: Taskline, caplog: pytest.LogCaptureFixture
) -> None:
    step = chain(app.tasks["add"].s(1), app.tasks["add"].s(1))
    result = step.delay()
    hand = Hand(app)
    reframe = app.codec.reframe

    def refuse(header: Any, body: bytes) -> Any:
        if header.id.endswith("-1"):
            raise SerializationError("too large")
        return reframe(header, body)

    app.codec.reframe = refuse  # type: ignore[method-assign]
    hand.work()
    hand.close()
    assert "cannot go on after" in caplog.text
    with pytest.raises(SerializationError, match="too large"):
        result.get(timeout=1)


def test_a_worker_without_a_backend_buries_steps_with_a_reason(app: Taskline) -> None:
    app.tasks["add"].s(1).delay()
    poor = Taskline("poor", broker=app.settings.broker, backend=None)
    tasks(poor)
    hand = Hand(poor)
    hand.work()
    (letter,) = app.dead.find()
    assert "this worker has no result backend" in letter.reason


# Tasks of every kind


def test_coroutines_bound_tasks_retries_and_other_queues(
    app: Taskline, taskline_worker: Any
) -> None:
    @app.task(name="later")
    async def later(number: int) -> int:
        return number + current_task.attempt

    @app.task(name="bound", bind=True, queue="other")
    def bound(self: Any, number: int) -> str:
        return f"{self.name} {number}"

    @app.task(name="shaky", retry={"max": 2, "wait": 0})
    def shaky(number: int) -> int:
        if current_task.attempt == 1:
            raise Retry(after=0)
        return number * current_task.attempt

    @app.task(name="packed", serializer="msgpack")
    def packed(number: int, blob: bytes) -> bytes:
        return blob * number

    @app.task(name="when")
    def when(blob: bytes, at: datetime) -> datetime:
        return at + timedelta(seconds=len(blob))

    taskline_worker(app)
    start = datetime(2026, 1, 1, tzinfo=timezone.utc)
    result = chain(later.s(1), shaky.s(), packed.s(blob=b"x"), when.s(start), bound.si(7)).delay()
    assert result.get(timeout=20) == "bound 7"
    assert result[1].get(timeout=1) == 4
    assert result[3].get(timeout=1) == start + timedelta(seconds=4)


def test_signed_and_compressed(taskline_memory: str) -> None:
    settings: Any = {"signing_key": "secret", "compression": "zlib", "compress_above": 10}
    with Taskline("signed", broker=taskline_memory, backend=taskline_memory, **settings) as app:
        tasks(app)
        result = chord([app.tasks["add"].s(n) for n in range(20)], app.tasks["total"].s()).delay()
        work(app)
        assert result.get(timeout=1) == 210


def test_pickled_arguments_travel_as_a_message_carries_them(taskline_memory: str) -> None:
    url = taskline_memory
    with Taskline(
        "pickled", broker=url, backend=url, accept=["json", "pickle"], signing_key="key"
    ) as app:

        @app.task(name="kind", serializer="pickle")
        def kind(value: Any, other: Any) -> str:
            return f"{type(value).__name__} {type(other).__name__}"

        @app.task(name="make", serializer="pickle")
        def make() -> Any:
            return {1, 2}

        result = (make.s() | kind.s(complex(1, 2))).delay()
        work(app)
        assert result.get(timeout=1) == "set complex"


def test_steps_are_plain_data_and_can_be_kept(app: Taskline) -> None:
    add, total = app.tasks["add"], app.tasks["total"]
    steps = [
        (chain(add.s(1), add.s(3)), (), 5),
        (add.s(y=5) | add.s(), (2,), 8),
        (chord([add.s(1, 1), add.s(1, 1) | add.s(1)], total.s()), (), 5),
        (each(add.s(1)) | total.s(), ([1, 2],), 5),
        (group(add.s(1), add.s(2)), (1,), [2, 3]),
    ]
    for step, value, expected in steps:
        data = json.loads(json.dumps(step.to_dict()))
        assert from_dict(app, data).to_dict() == data
        results = [from_dict(app, data).delay(*value), step.delay(*value)]  # type: ignore[misc]
        work(app)
        assert [result.get(timeout=1) for result in results] == [expected, expected]
    for wrong in ({}, {"type": "call"}, {"type": "nothing"}):
        with pytest.raises(ConfigurationError, match="not a step of a workflow"):
            from_dict(app, wrong)


def test_a_workflow_is_a_step_too(app: Taskline) -> None:
    add, total = app.tasks["add"], app.tasks["total"]
    inner = app.workflow(name="inner")
    inner.step("twice", add.s(), named={})
    inner.step("more", add.s(10), takes="twice")
    result = chain(add.s(1, 1), inner, group(inner, inner | add.s(100)), total.s()).delay()
    work(app)
    # 2 -> 2+1+10 = 13 -> (13+1+10, 13+1+10+100)
    assert result.get(timeout=1) == 24 + 124


def test_eager(app: Taskline) -> None:
    app.settings.eager = True
    add, total, fail = app.tasks["add"], app.tasks["total"], app.tasks["fail"]
    assert (chord([add.s(n) for n in range(4)], total.s()) | add.s(1)).delay().get() == 11
    assert (add.s(1) | add.s(1)).delay().progress() == (2, 2, 0)
    result = chain(fail.s(1), add.s()).delay()
    with pytest.raises(ValueError, match="1"):
        result.get()


def test_eager_needs_no_backend() -> None:
    with Taskline("eager", broker="memory://nowhere", eager=True) as app:
        tasks(app)
        step = group(app.tasks["add"].s(n) for n in range(3)) | each(app.tasks["add"].s(1))
        assert step.delay().get() == [2, 3, 4]


def test_by_name(app: Taskline) -> None:
    caller = Taskline("caller", broker=app.settings.broker, backend=app.settings.backend)
    result = chord([caller.by_name("add").s(n, 1) for n in range(3)], caller.by_name("total").s())
    started = result.delay()
    work(app)
    assert started.get(timeout=1) == 6


def test_terminating_the_whole_stops_what_runs(app: Taskline, taskline_worker: Any) -> None:
    @app.task(name="long")
    def long() -> None:
        while True:
            app.clock.sleep(0.01)

    worker = taskline_worker(app)
    result = chain(long.si(), app.tasks["add"].si(1)).delay()
    step = app.AsyncResult(f"{result.id}-0")
    while worker.io.slots[0].current is None:
        app.clock.sleep(0.01)
    result.revoke(terminate=True)
    while not step.ready():
        app.clock.sleep(0.01)
    assert step.state == result.state == REVOKED


def test_great_failures_are_told_once(app: Taskline, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    result = group(app.tasks["fail"].s(n) for n in range(60)).delay()
    work(app)
    assert result.state == FAILURE
    assert result.progress() == (0, 60, 60)
    assert [child.state for child in result.members()] == [FAILURE] * 60


def test_what_it_stored_ends_like_the_results_of_tasks(app: Taskline) -> None:
    app.settings.result_ttl = 300.0
    result = chord([app.tasks["add"].s(n) for n in range(3)], app.tasks["total"].s()).delay()
    work(app)
    assert result.state == SUCCESS
    backend: Any = app.require_backend()
    ends = {key: end - app.clock.monotonic() for key, (_, end) in backend._store.outcomes.items()}
    assert {key.removeprefix(result.id) for key in ends} == {
        "",
        ":plan",
        "-0",
        "-0-0",
        "-0-1",
        "-0-2",
        "-1",
    } - {"-0"}
    assert max(ends.values()) <= 300
