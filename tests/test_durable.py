"""Durable tasks: what a further run finds of an earlier one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import pytest

from integration.durable import kill_between_steps
from taskline import ConfigurationError, Taskline, TasklineError, step
from taskline.message import new_id
from taskline.worker import Worker, WorkerOptions

MakeApp = Callable[..., Taskline]


class Receipt(msgspec.Struct):
    number: int
    day: date


@pytest.fixture
def app(make_app: MakeApp) -> Taskline:
    return make_app(retry={"max": 3, "wait": 0.01})


def finish(app: Taskline, result: Any) -> Any:
    """The result, from a worker that runs meanwhile."""
    worker = Worker(app, WorkerOptions(schedule=False))
    worker.start()
    try:
        return result.get(timeout=20)
    finally:
        worker.stop(0)


def test_finished_steps_are_not_run_again(app: Taskline) -> None:
    calls: list[str] = []

    def charge(number: int) -> Receipt:
        calls.append("charge")
        return Receipt(number, date(2026, 1, 2))

    def ship(receipt: Receipt) -> str:
        calls.append("ship")
        if calls.count("ship") < 3:
            raise OSError("no van")
        return f"{receipt.number} of {receipt.day:%d.%m.}"

    @app.task(durable=True)
    def order(number: int) -> str:
        receipt = step("charge", charge, number)
        assert type(receipt) is Receipt
        return step("ship", ship, receipt)

    assert finish(app, order.delay(7)) == "7 of 02.01."
    assert calls == ["charge", "ship", "ship", "ship"]


def test_a_requeued_dead_letter_goes_on(make_app: MakeApp) -> None:
    app, calls, broken = make_app(), list[str](), [True]

    def first() -> int:
        calls.append("first")
        return 1

    @app.task(durable=True)
    def work() -> int:
        found = step("first", first)
        if broken:
            raise ValueError("mend me")
        return found + 1

    result = work.delay()
    with pytest.raises(ValueError, match="mend me"):
        finish(app, result)
    broken.clear()
    result.requeue()
    app.require_backend().forget([result.id])
    assert finish(app, app.AsyncResult(result.id)) == 2
    assert calls == ["first"]


def test_coroutines_have_steps_too(app: Taskline) -> None:
    calls: list[str] = []

    async def fetch(number: int) -> list[int]:
        await asyncio.sleep(0)
        calls.append(f"fetch {number}")
        return [number]

    def add(numbers: list[int]) -> int:
        calls.append("add")
        return sum(numbers)

    @app.task(durable=True)
    async def work() -> int:
        numbers = []
        for number in range(3):
            numbers += await step(f"fetch-{number}", fetch, number)
        total = step("add", add, numbers)
        if calls.count("failed") < 2:
            calls.append("failed")
            raise OSError("again")
        return total

    assert finish(app, work.delay()) == 3
    assert calls == ["fetch 0", "fetch 1", "fetch 2", "add", "failed", "failed"]


def test_a_failing_step_is_not_kept_and_none_is_a_result(app: Taskline) -> None:
    calls: list[str] = []

    def nothing() -> None:
        calls.append("nothing")

    def moody() -> str:
        calls.append("moody")
        if calls.count("moody") == 1:
            raise OSError("not now")
        return "fine"

    @app.task(durable=True)
    def work() -> str:
        step("nothing", nothing)
        try:
            return step("moody", moody)
        except OSError:
            raise ValueError("it said no") from None

    assert finish(app, work.delay()) == "fine"
    assert calls == ["nothing", "moody", "moody"]


def test_steps_of_different_tasks_do_not_meet(app: Taskline) -> None:
    @app.task(durable=True)
    def work(number: int) -> int:
        return step("same", lambda: number)

    results = work.map(range(5))
    assert finish(app, results) == list(range(5))


def test_the_first_result_that_was_stored_holds(app: Taskline) -> None:
    from taskline.context import Request
    from taskline.durable import Steps
    from taskline.message import Header

    header = Header(1, new_id(), "work", "default", 0.0)
    paused, other = (Steps(app, Request(header)) for _ in range(2))
    assert paused.recall("x", int) == (False, None)
    assert other.keep("x", int, 1) == 1
    assert paused.keep("x", int, 2) == 1


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (lambda: [step("x", int), step("x", int)], "step 'x' comes twice in this run of work"),
        (lambda: step("", int), "step=''"),
        (lambda: step("x", object), "the result of step 'x', a object, cannot be kept"),
    ],
)
def test_mistakes(make_app: MakeApp, body: Callable[[], Any], says: str) -> None:
    app = make_app()

    @app.task(name="work", durable=True)
    def work() -> None:
        body()

    with pytest.raises(TasklineError) as raised:
        finish(app, work.delay())
    assert says in str(raised.value)


def test_a_task_without_durable_says_so_and_a_plain_call_just_runs(make_app: MakeApp) -> None:
    app = make_app()

    @app.task(name="plain")
    def plain() -> int:
        return step("x", lambda: 7)

    with pytest.raises(TasklineError, match="keeps no steps: declare it with durable=True"):
        finish(app, plain.delay())
    assert plain() == 7

    @app.task(durable=True)
    def durable() -> int:
        return step("x", lambda: 7)

    assert durable() == 7


def test_a_backend_is_needed(make_app: MakeApp) -> None:
    with pytest.raises(ConfigurationError, match="durable=True: the app shop has no result"):
        make_app(backend=None).task(durable=True)(print)
    eager = make_app(backend=None, eager=True, retry={"max": 3, "wait": 0})
    tries: list[int] = []

    @eager.task(durable=True)
    def work() -> int:
        tries.append(step("x", lambda: len(tries)))
        if len(tries) < 2:
            raise OSError
        return tries[-1]

    assert work.delay().get() == 1


def test_steps_are_signed(make_app: MakeApp) -> None:
    app = make_app(signing_key="secret", retry={"max": 1, "wait": 0.01})
    ids: list[str] = []

    @app.task(durable=True, bind=True)
    def work(self: Any) -> int:
        ids.append(self.request.id)
        if len(ids) == 2:
            forged = b'{"v":1,"id":"%s","task":"taskline.step","queue":"x","sent":0}\n9'
            app.require_backend().keys().set(
                f"taskline.step:{ids[0]}:x", forged % ids[0].encode(), None
            )
        value = step("x", int)
        if len(ids) == 1:
            raise OSError
        return value

    with pytest.raises(TasklineError, match="not signed"):
        finish(app, work.delay())


@pytest.mark.parametrize("number", [1, 4])
def test_a_worker_that_is_killed_between_steps(tmp_path: Path, number: int) -> None:
    kill_between_steps(f"sqlite:///{tmp_path}/kill.db", tmp_path, number)
