"""Batch tasks: one run for many messages, each with an end of its own."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from workbench import Bench, until, working

from integration.batches import poison_a_batch
from taskline import (
    ConfigurationError,
    InvalidArguments,
    Middleware,
    Reject,
    Retry,
    SoftTimeout,
    Taskline,
    TasklineError,
    TaskRejected,
    TaskTimeout,
    current_task,
)
from taskline.worker.execute import Job
from taskline.worker.slots import AsyncSlots


def test_many_messages_are_one_run(app: Taskline) -> None:
    runs: list[list[int]] = []

    @app.task(batch=10, batch_wait=0.05)
    def double(numbers: list[int]) -> list[int]:
        runs.append(numbers)
        return [2 * each for each in numbers]

    results = double.map(range(25))
    with working(app, schedule=False):
        assert results.get(timeout=20) == [2 * each for each in range(25)]
    assert sorted(each for run in runs for each in run) == list(range(25))
    assert max(map(len, runs)) == 10
    assert len(runs) <= 5


def test_a_batch_that_does_not_fill_begins_after_its_wait(app: Taskline) -> None:
    @app.task(batch=100, batch_wait=0.05)
    def count(numbers: list[int]) -> list[int]:
        return [len(numbers)] * len(numbers)

    with working(app, schedule=False):
        assert count.delay(1).get(timeout=20) == 1
        with app.batch() as results:
            for number in range(5):
                count.delay(number)
        assert results.get(timeout=20) == [5] * 5


def test_it_waits_no_longer_when_it_is_full(app: Taskline) -> None:
    @app.task(batch=3, batch_wait=60)
    def count(numbers: list[int]) -> list[int]:
        return [len(numbers)] * len(numbers)

    results = count.map(range(6))
    with working(app, schedule=False):
        assert results.get(timeout=20) == [3] * 6


def test_each_call_has_its_own_end(app: Taskline) -> None:
    seen: list[tuple[int, int]] = []

    @app.task(batch=10, retry={"max": 3, "wait": 0.01, "for": [OSError]})
    def work(numbers: list[int]) -> list[Any]:
        ends: list[Any] = []
        for number, request in zip(numbers, current_task.batch, strict=True):
            seen.append((number, request.attempt))
            if number == 1 and request.attempt < 3:
                ends.append(OSError("again"))
            elif number == 2:
                ends.append(ValueError("never"))
            elif number == 3:
                ends.append(Reject("not this one"))
            elif number == 4 and request.attempt < 2:
                ends.append(Retry(after=0.01))
            else:
                ends.append(f"ok {number}")
        return ends

    results = work.map(range(5))
    with working(app, schedule=False):
        assert [results[each].get(timeout=20) for each in (0, 1, 4)] == ["ok 0", "ok 1", "ok 4"]
        with pytest.raises(ValueError, match="never"):
            results[2].get(timeout=20)
        with pytest.raises(TaskRejected, match="not this one"):
            results[3].get(timeout=20)
    attempts = {number: sum(each == number for each, _ in seen) for number in range(5)}
    assert attempts == {0: 1, 1: 3, 2: 1, 3: 1, 4: 2}
    assert {letter.id for letter in app.transport.dead_letters()} == {results[2].id, results[3].id}


def test_what_the_whole_raises_is_the_failure_of_each(app: Taskline) -> None:
    tries: list[int] = []

    @app.task(batch=5, retry={"max": 1, "wait": 0.01})
    def work(numbers: list[int]) -> list[int]:
        tries.append(len(numbers))
        if sum(tries) <= 5:
            raise OSError("all of them")
        return numbers

    results = work.map(range(5))
    with working(app, schedule=False):
        assert results.get(timeout=20) == list(range(5))


@pytest.mark.parametrize("answer", [[1], "no list", [1, 2, 3]])
def test_a_wrong_answer_fails_all(memory_app: Taskline, answer: Any) -> None:
    @memory_app.task(name="work", batch=2, batch_wait=10)
    def work(numbers: list[int]) -> list[int]:
        found: list[int] = answer
        return found

    results = work.map(range(2))
    with working(memory_app, schedule=False):
        for result in results:
            with pytest.raises(TasklineError, match=r"the batch task work returned .* for 2 calls"):
                result.get(timeout=20)


def test_none_is_a_none_for_each_and_items_are_typed(app: Taskline) -> None:
    kept: list[tuple[str, int]] = []

    @app.task(batch=4)
    def keep(pairs: list[tuple[str, int]]) -> None:
        kept.extend(pairs)

    with pytest.raises(InvalidArguments):
        keep.delay(("a", "b"))  # type: ignore[arg-type]
    results = keep.map([("a", 1), ("b", 2)])
    with working(app, schedule=False):
        assert results.get(timeout=20) == [None, None]
    assert sorted(kept) == [("a", 1), ("b", 2)]


def test_coroutines_are_batches_too(app: Taskline) -> None:
    @app.task(batch=10)
    async def double(numbers: list[int]) -> list[int]:
        await asyncio.sleep(0)
        assert len(current_task.batch) == len(numbers)
        return [2 * each for each in numbers]

    @app.task
    def plain(number: int) -> int:
        return number

    results, others = double.map(range(35)), plain.map(range(10))
    with working(app, schedule=False):
        assert results.get(timeout=20) == [2 * each for each in range(35)]
        assert others.get(timeout=20) == list(range(10))


def test_a_batch_of_a_coroutine_may_tidy_up_at_its_soft_limit(app: Taskline) -> None:
    # A machine that stands still lets it pass before the code has begun: that is another attempt.
    @app.task(batch=10, soft_timeout=0.1, retry={"max": 30, "wait": 0.05})
    async def double(numbers: list[int]) -> list[str]:
        try:
            await asyncio.sleep(3600)
        except SoftTimeout:
            return ["in time"] * len(numbers)
        return []

    results = double.map(range(3))
    with working(app, schedule=False):
        assert results.get(timeout=20) == ["in time"] * 3


def test_a_batch_of_a_coroutine_ends_at_a_soft_limit_that_passes_before_its_code_begins(
    app: Taskline, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed, runs = threading.Event(), []
    interrupt = AsyncSlots.interrupt

    def told(slots: AsyncSlots, job: Job) -> None:
        interrupt(slots, job)
        passed.set()

    class Slow(Middleware):
        def before_run(self, request: Any) -> None:
            assert passed.wait(20)

    monkeypatch.setattr(AsyncSlots, "interrupt", told)
    app.use(Slow())

    @app.task(batch=10, soft_timeout=0.05)
    async def double(numbers: list[int]) -> list[int]:
        runs.append(numbers)
        return numbers

    results = double.map(range(3))
    with working(app, schedule=False):
        with pytest.raises(SoftTimeout):
            results.get(timeout=20)
        assert [result.state for result in results] == ["FAILURE"] * 3
    assert runs == []


def test_other_tasks_of_the_queue_go_on(app: Taskline) -> None:
    @app.task(batch=50, batch_wait=0.3)
    def slow(numbers: list[int]) -> list[int]:
        return numbers

    @app.task
    def quick(number: int) -> int:
        return number

    with working(app, schedule=False):
        waiting = slow.delay(1)
        assert quick.map(range(200)).get(timeout=20) == list(range(200))
        assert waiting.get(timeout=20) == 1


def test_plain_calls_and_eager_ones_are_a_batch_of_one(memory_app: Taskline) -> None:
    def work(self: Any, numbers: list[int]) -> list[Any]:
        return [ValueError("no") if number < 0 else number + 1 for number in numbers]

    task = memory_app.task(batch=5, bind=True)(work)
    assert task(1) == 2
    with pytest.raises(ValueError, match="no"):
        task(-1)
    eager = Taskline("eager", broker="memory://", backend="memory://", eager=True)
    assert eager.task(batch=5, bind=True)(work).delay(1).get() == 2


def test_expired_and_revoked_calls_are_left_out(app: Taskline) -> None:
    ran: list[int] = []

    @app.task(batch=3, batch_wait=30)
    def work(numbers: list[int]) -> None:
        ran.extend(numbers)

    results = work.map(range(2))
    with working(app, schedule=False) as worker:
        gather = worker.io._gather
        assert gather is not None
        # One that is revoked before the worker has looked at it would have no part in the batch.
        until(lambda: gather.room([work]) == 1)
        results[0].revoke()
        work.delay(2)
        results[1].get(timeout=20)
        until(lambda: results[0].state == "REVOKED")
    assert sorted(ran) == [1, 2]


def test_a_time_limit_ends_all_of_the_batch(app: Taskline) -> None:
    @app.task(batch=3, batch_wait=5, timeout=0.2)
    def work(numbers: list[int]) -> None:
        until(lambda: False)

    results = work.map(range(3))
    with working(app, schedule=False):
        for result in results:
            with pytest.raises(TaskTimeout):
                result.get(timeout=20)


def test_what_is_stopped_is_handed_back(app: Taskline) -> None:
    begun, release = threading.Event(), threading.Event()

    @app.task(batch=4, batch_wait=0.01)
    def work(numbers: list[int]) -> list[int]:
        begun.set()
        release.wait(20)
        return numbers

    results = work.map(range(4))
    try:
        with working(app, schedule=False):
            assert begun.wait(20)
    finally:
        release.set()
    (stats,) = app.transport.stats(["default"])
    assert (stats.ready, stats.leased) == (4, 0)
    with working(app, schedule=False):
        assert results.get(timeout=20) == list(range(4))


def test_what_gathers_is_handed_back_too(app: Taskline) -> None:
    @app.task(batch=100, batch_wait=60)
    def work(numbers: list[int]) -> None: ...

    work.map(range(5))
    with working(app, schedule=False):
        until(lambda: app.transport.stats(["default"])[0].leased == 5)
    (stats,) = app.transport.stats(["default"])
    assert (stats.ready, stats.leased) == (5, 0)


def test_leases_are_renewed_while_a_batch_runs(make_app: Any) -> None:
    app, runs = make_app(lease=1.0), list[int]()

    @app.task(batch=3, batch_wait=5)
    def work(numbers: list[int]) -> list[int]:
        runs.append(len(numbers))
        time.sleep(2.4)
        return numbers

    results = work.map(range(3))
    with working(app, schedule=False), working(app, schedule=False):
        assert results.get(timeout=20) == [0, 1, 2]
    assert runs == [3]


def test_a_suspect_runs_alone(make_memory_app: Any) -> None:
    app, runs = make_memory_app(), list[list[int]]()

    @app.task(batch=3, batch_wait=0)
    def work(numbers: list[int]) -> list[int]:
        runs.append(numbers)
        return numbers

    work.map(range(3))
    victim = Bench(app, name="victim")
    victim.turn()
    victim.turn()
    job = victim.begin()
    assert job is not None
    assert [each.header.id for each in job.members if each.header] == [
        each.delivery.id for each in job.members
    ]
    app.open_transport().recover("victim", [each.delivery.id for each in job.members])
    with working(app, schedule=False):
        until(lambda: sum(map(len, runs)) == 3)
    assert sorted(runs) == [[0], [1], [2]]


@pytest.mark.parametrize(
    ("options", "function", "says"),
    [
        ({"batch": 0}, lambda items: None, "batch=0: must be a whole number from 1"),
        ({"batch": 5, "ack": "early"}, lambda items: None, "exclude each other"),
        ({"batch": 5, "durable": True}, lambda items: None, "neither for generators nor for"),
        ({"batch": 5}, lambda a, b: None, "a batch task takes one argument"),
        ({"batch": 5, "batch_wait": -1}, lambda items: None, "batch_wait=-1"),
        ({"batch_wait": 1}, lambda items: None, "batch_wait= goes with batch="),
    ],
)
def test_what_is_refused(memory_app: Taskline, options: Any, function: Any, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        memory_app.task(name="x", **options)(function)


def test_one_that_kills_its_worker_takes_no_other_with_it(tmp_path: Path) -> None:
    poison_a_batch(f"sqlite:///{tmp_path}/batches.db", tmp_path)
