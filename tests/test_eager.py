from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pytest

from taskline import (
    ConfigurationError,
    Ignore,
    InvalidArguments,
    Reject,
    Retry,
    SerializationError,
    Task,
    TaskFailed,
    Taskline,
    TaskRejected,
    current_task,
)


@pytest.fixture
def app() -> Taskline:
    return Taskline("shop", broker="nonsense://nowhere", eager=True)


@dataclass
class Order:
    id: int
    due: datetime


def test_delay_runs_here_and_gives_a_finished_result(app: Taskline) -> None:
    @app.task(name="double")
    def double(number: int) -> int:
        return 2 * number

    result = double.delay(4)
    assert (result.state, result.result, result.get()) == ("SUCCESS", 8, 8)
    assert result.ready()
    assert result.successful()
    assert app.AsyncResult(result.id).get() == 8
    assert double.map([1, 2]).get() == [2, 4]
    assert asyncio.run(_call(double)) == 10
    with app.batch() as results:
        double.delay(1)
        double.map([2, 3])
    assert results.get() == [2, 4, 6]


async def _call(task: Task[[int], int]) -> int:
    result = await task.adelay(5)
    return await result.aget()


def test_values_travel_as_bytes_in_both_directions(app: Taskline) -> None:
    @app.task(name="postpone")
    def postpone(order: Order, *notes: str) -> Order:
        assert isinstance(order, Order)
        return Order(order.id, order.due.replace(year=2031))

    given = Order(1, datetime(2030, 1, 1))
    back = postpone.delay(given).get()
    assert back == Order(1, datetime(2031, 1, 1))
    with pytest.raises(InvalidArguments):
        postpone.delay("order")  # type: ignore[arg-type]


def test_a_failure_is_in_the_result(app: Taskline) -> None:
    @app.task(name="fail")
    def fail() -> None:
        raise KeyError("k")

    result = fail.delay()
    assert result.failed()
    assert isinstance(result.result, KeyError)
    assert isinstance(result.get(propagate=False), KeyError)
    assert "raise KeyError" in (result.traceback or "")
    with pytest.raises(KeyError, match="k"):
        result.get()


def test_system_exit_is_a_failure_and_a_keyboard_interrupt_is_not(app: Taskline) -> None:
    @app.task(name="leave")
    def leave(error: str) -> None:
        raise {"exit": SystemExit(3), "ctrl-c": KeyboardInterrupt()}[error]

    with pytest.raises(TaskFailed, match=r"builtins\.SystemExit: 3"):
        leave.delay("exit").get()
    with pytest.raises(KeyboardInterrupt):
        leave.delay("ctrl-c")


def test_retries_follow_at_once(app: Taskline) -> None:
    seen: list[tuple[int, int]] = []

    @app.task(name="flaky", retry=3)
    def flaky() -> int:
        seen.append((current_task.attempt, current_task.deliveries))
        if len(seen) < 3:
            raise OSError("busy")
        return len(seen)

    result = flaky.delay()
    assert result.get() == 3
    assert seen == [(1, 1), (2, 2), (3, 3)]
    assert result.info["errors"] == ["OSError: busy", "OSError: busy"]
    assert result.info["attempt"] == 3


def test_a_policy_ends_and_the_last_error_stays(app: Taskline) -> None:
    runs: list[int] = []

    @app.task(name="flaky", retry={"max": 2, "never": [KeyError]})
    def flaky(kind: str) -> int:
        runs.append(1)
        raise {"os": OSError(len(runs)), "key": KeyError("no")}[kind]

    with pytest.raises(OSError, match="3"):
        flaky.delay("os").get()
    assert len(runs) == 3
    with pytest.raises(KeyError):
        flaky.delay("key").get()
    assert len(runs) == 4
    with pytest.raises(OSError, match="5"):
        flaky.options(retry=0).delay("os").get()
    assert len(runs) == 5


def test_retry_reject_and_ignore(app: Taskline) -> None:
    runs: list[int] = []

    @app.task(name="asks")
    def asks(what: str) -> int:
        runs.append(1)
        if what == "retry":
            raise Retry("not yet", after=3600)
        if what == "reject":
            raise Reject("the order is void")
        raise Ignore

    assert asks.delay("ignore").get() is None
    with pytest.raises(TaskRejected, match="the order is void"):
        asks.delay("reject").get()
    assert len(runs) == 2
    with pytest.raises(Retry, match="not yet"):
        asks.delay("retry").get()
    assert len(runs) == 2 + 4


def test_a_policy_may_judge_results(app: Taskline) -> None:
    import tenacity

    runs: list[int] = []

    @app.task(name="poll", retry=tenacity.retry_if_result(lambda value: value < 3))
    def poll() -> int:
        runs.append(1)
        return len(runs)

    assert poll.delay().get() == 3


def test_a_policy_that_fails_ends_the_task(app: Taskline) -> None:
    import tenacity

    @app.task(name="broken", retry=tenacity.retry_if_exception(lambda error: 1 / 0))  # type: ignore[arg-type, return-value]
    def broken() -> None:
        raise OSError("busy")

    with pytest.raises(ConfigurationError, match="retry policy"):
        broken.delay().get()


def test_async_tasks_with_and_without_a_running_loop(app: Taskline) -> None:
    @app.task(name="add")
    async def add(a: int, b: int) -> int:
        await asyncio.sleep(0)
        assert current_task.name == "add"
        return a + b

    @app.task(name="fail")
    async def fail() -> None:
        raise KeyError("k")

    async def main() -> int:
        with pytest.raises(KeyError):
            fail.delay().get()
        return add.delay(1, 2).get()

    assert add.delay(1, 2).get() == 3
    assert asyncio.run(main()) == 3


def test_a_bound_task_reads_its_request(app: Taskline) -> None:
    @app.task(name="who", bind=True)
    def who(self: Task[..., Any]) -> list[Any]:
        return [self.name, self.request.id, self.request.headers, self.request.parent]

    @app.task(name="outer")
    def outer() -> list[Any]:
        return [current_task.id, who.delay().get()]

    assert who.options(headers={"a": 1}, task_id="x").delay().get() == ["who", "x", {"a": 1}, None]
    own, inner = outer.delay().get()
    assert inner[3] == own
    assert not current_task


def test_a_result_that_does_not_fit_is_a_failure_that_says_so(app: Taskline) -> None:
    @app.task(name="odd")
    def odd() -> object:
        return object()

    result = odd.delay()
    with pytest.raises(SerializationError, match=r"builtins\.object.*serializer=") as refused:
        result.get()
    assert "odd" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_unknown_task_fails_as_it_would_at_a_worker(app: Taskline) -> None:
    result = app.send_task("far.away")
    assert result.failed()
    with pytest.raises(Exception, match=r"no task 'far\.away'"):
        result.get()
