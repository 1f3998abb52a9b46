from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import pytest
from oneshot import work

from taskline import (
    NoResult,
    Reject,
    ResultTimeout,
    Retry,
    TaskExpired,
    TaskFailed,
    Taskline,
    TaskRejected,
    TaskRevoked,
    TransportError,
)
from taskline.clock import ManualClock
from taskline.failures import RemoteTraceback
from taskline.message import EXPIRED, REVOKED, STARTED, Header, new_id
from taskline.outcomes import outcome

LIMIT = 30.0


@pytest.fixture(params=["memory", "sqlite"])
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Taskline]:
    url = f"memory://{new_id()}" if request.param == "memory" else f"sqlite:///{tmp_path}/shop.db"
    with Taskline("shop", broker=url, backend=url) as app:
        yield app


def store(app: Taskline, id: str, state: str, **known: object) -> None:
    header = Header(v=1, id=id, task="pay", queue="default", sent=app.now())
    made = outcome(app.codec, header, state, deliveries=1, ttl=60.0, **known)  # type: ignore[arg-type]
    app.require_backend().store([made])


class Declined(Exception):
    pass


def test_from_pending_to_success(app: Taskline) -> None:
    @app.task(name="pay")
    def pay(order: int) -> int:
        return order * 2

    result = pay.delay(4)
    assert (result.state, result.result, result.traceback) == ("PENDING", None, None)
    assert not result.ready()
    assert result.info["state"] == "PENDING"
    work(app)
    assert result.get(timeout=LIMIT) == 8
    assert (result.state, result.result, result.traceback) == ("SUCCESS", 8, None)
    assert (result.ready(), result.successful(), result.failed()) == (True, True, False)
    info = result.info
    assert (info["worker"], info["attempt"], info["deliveries"]) == ("oneshot", 1, 1)
    assert info["task"] == "pay"
    assert app.AsyncResult(result.id).get(timeout=LIMIT) == 8


def test_failure_raises_the_exception_with_its_remote_traceback(app: Taskline) -> None:
    @app.task(name="pay")
    def pay(order: int) -> int:
        raise Declined("no cover", order)

    result = pay.delay(4)
    work(app)
    with pytest.raises(Declined) as raised:
        result.get(timeout=LIMIT)
    assert raised.value.args == ("no cover", 4)
    assert isinstance(raised.value.__cause__, RemoteTraceback)
    assert 'raise Declined("no cover", order)' in str(raised.value.__cause__)
    assert isinstance(result.get(propagate=False), Declined)
    assert isinstance(result.result, Declined)
    assert (result.state, result.failed(), result.successful()) == ("FAILURE", True, False)
    assert result.info["errors"] == ["Declined: ('no cover', 4)"]


def test_values_arrive_as_declared(app: Taskline) -> None:
    @dataclass
    class Receipt:
        id: UUID
        at: datetime
        sums: dict[int, Decimal]

    receipt = Receipt(UUID(int=5), datetime(2030, 1, 2), {1: Decimal("1.50")})

    @app.task(name="pay")
    def pay() -> list[Receipt]:
        return [receipt]

    pay.function.__annotations__["return"] = list[Receipt]  # a local class has no global name

    result = pay.delay()
    work(app)
    assert result.get(timeout=LIMIT) == [receipt]
    assert app.AsyncResult(result.id).result == [receipt]


def test_get_is_woken_by_the_outcome(app: Taskline) -> None:
    @app.task(name="pay")
    def pay(order: int) -> int:
        return order

    results = pay.map(range(20))
    with ThreadPoolExecutor(20) as pool:
        futures = [pool.submit(result.get, LIMIT) for result in results]
        work(app)
        assert [future.result(LIMIT) for future in futures] == list(range(20))


def test_aget_many_at_once(app: Taskline) -> None:
    @app.task(name="pay")
    def pay(order: int) -> int:
        return order

    async def main() -> list[int]:
        results = [await pay.adelay(order) for order in range(50)]
        waiting = [asyncio.create_task(result.aget(LIMIT)) for result in results]
        await asyncio.to_thread(work, app)
        found = await asyncio.gather(*waiting)
        assert await results[0].aget() == 0
        return found

    assert asyncio.run(main()) == list(range(50))


def test_a_timeout_names_task_state_time_and_a_hint() -> None:
    clock = ManualClock(1000.0)
    name = f"memory://{new_id()}"
    app = Taskline("shop", broker=name, backend=name, clock=clock)

    @app.task(name="pay", queue="mail")
    def pay() -> None: ...

    pending, delayed = pay.delay(), pay.options(countdown=60).delay()
    for result, told in [
        (pending, f"task pay {pending.id} is still PENDING after 0 seconds: does a worker serve"),
        (pending, "queue 'mail'"),
        (delayed, "it is due in 60.0 s"),
        (app.AsyncResult("x"), "task x is still PENDING"),
    ]:
        with pytest.raises(ResultTimeout, match=told):
            result.get(timeout=0)
    assert issubclass(ResultTimeout, TimeoutError)
    store(app, pending.id, STARTED, started=990.0, worker="host-1")
    with pytest.raises(ResultTimeout, match=r"still STARTED .* it runs for 10.0 s on host-1"):
        pending.get(timeout=0)
    with pytest.raises(ResultTimeout, match="STARTED"):
        asyncio.run(pending.aget(timeout=0))


def test_a_timeout_within_a_task_tells_that_it_keeps_a_slot(app: Taskline) -> None:
    @app.task(name="outer")
    def outer() -> int:
        return inner.delay().get(timeout=0)

    @app.task(name="inner", queue="elsewhere")
    def inner() -> int:
        return 1

    result = outer.delay()
    work(app)
    with pytest.raises(ResultTimeout, match="The task that waits for it here keeps a slot"):
        result.get(timeout=LIMIT)


def test_a_waiting_get_gives_up_when_its_clock_says_so() -> None:
    clock = ManualClock(1000.0)
    name = f"memory://{new_id()}"
    app = Taskline("shop", broker=name, backend=name, clock=clock)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(app.AsyncResult("x").get, 5.0)
        clock.advance(4.0)
        assert not future.done()
        clock.advance(2.0)
        # The thread may have begun to wait after the first step.
        clock.advance(10.0)
        with pytest.raises(ResultTimeout, match="after 5 seconds"):
            future.result(LIMIT)


def test_retry_is_visible_until_the_end() -> None:
    clock = ManualClock(1000.0)
    name = f"memory://{new_id()}"
    app = Taskline("shop", broker=name, backend=name, clock=clock)
    runs: list[int] = []

    @app.task(name="flaky", retry={"max": 3, "wait": 30})
    def flaky() -> int:
        runs.append(1)
        if len(runs) < 2:
            raise OSError("busy")
        return len(runs)

    result = flaky.delay()
    work(app)
    info = result.info
    assert (info["state"], info["retry_at"], info["attempt"]) == ("RETRY", 1030.0, 1)
    assert info["errors"] == ["OSError: busy"]
    assert "raise OSError" in (result.traceback or "")
    assert result.result is None
    with pytest.raises(ResultTimeout, match=r"attempt 1 ended with OSError: busy; .* in 30.0 s"):
        result.get(timeout=0)
    assert work(app) == 0
    clock.advance(31)
    assert work(app) == 1
    assert result.get(timeout=0) == 2
    assert result.info["errors"] == ["OSError: busy"]


def test_reject_and_retry_without_a_policy(app: Taskline) -> None:
    @app.task(name="asks")
    def asks(what: str) -> None:
        raise Reject("void") if what == "reject" else Retry("later", after=60)

    rejected, retried = asks.delay("reject"), asks.delay("retry")
    work(app)
    with pytest.raises(TaskRejected, match="void"):
        rejected.get(timeout=LIMIT)
    assert retried.state == "RETRY"


def test_revoked_and_expired_raise_their_own_errors(app: Taskline) -> None:
    store(app, "r", REVOKED)
    store(app, "e", EXPIRED)
    with pytest.raises(TaskRevoked, match="task pay r was revoked"):
        app.AsyncResult("r").get()
    with pytest.raises(TaskExpired, match="task pay e was not started before it expired"):
        app.AsyncResult("e").get()
    assert isinstance(app.AsyncResult("e").get(propagate=False), TaskExpired)
    assert app.AsyncResult("r").result is None


def test_an_exception_of_a_class_that_is_not_here(app: Taskline) -> None:
    error = {"type": "far.Away", "message": "m", "traceback": "trace"}
    store(app, "f", "FAILURE", error=error)
    with pytest.raises(TaskFailed, match=r"far\.Away: m") as raised:
        app.AsyncResult("f").get()
    assert raised.value.remote_traceback == "trace"


def test_forget(app: Taskline) -> None:
    @app.task(name="pay")
    def pay() -> int:
        return 1

    result = pay.delay()
    work(app)
    assert result.get(timeout=LIMIT) == 1
    result.forget()
    assert result.state == "PENDING"


def test_revoking_what_waits_removes_it_and_ends_it(app: Taskline) -> None:
    ran: list[int] = []

    @app.task(name="pay")
    def pay() -> None:
        ran.append(1)

    for result in (pay.delay(), pay.options(countdown=60).delay(), app.AsyncResult(pay.delay().id)):
        assert result.revoke() is True
        assert result.state == "REVOKED"
        with pytest.raises(TaskRevoked):
            result.get(timeout=LIMIT)
    work(app)
    assert ran == []
    _, revocations = app.require_backend().revoked(0)
    assert len(revocations) == 3


def test_revoking_what_waits_for_a_further_attempt(app: Taskline) -> None:
    @app.task(name="pay", retry={"max": 3, "wait": 60})
    def pay() -> None:
        raise OSError

    result = pay.delay()
    work(app)
    assert result.state == "RETRY"
    assert app.AsyncResult(result.id).revoke() is True
    assert result.state == "REVOKED"


def test_revoking_what_runs_tells_the_workers(app: Taskline) -> None:
    @app.task(name="pay")
    def pay() -> None: ...

    result = pay.delay()
    [delivery] = app.transport.receive(["default"], 1, 30.0, 0.0, "worker")
    assert result.revoke(terminate=True) is False
    assert result.state == "PENDING"
    _, [revocation] = app.require_backend().revoked(0)
    assert (revocation.id, revocation.terminate) == (result.id, True)
    app.transport.ack([delivery])


def test_revoking_what_is_over_changes_nothing(app: Taskline) -> None:
    @app.task(name="pay")
    def pay() -> int:
        return 1

    result = pay.delay()
    work(app)
    assert result.revoke() is False
    assert result.get(timeout=LIMIT) == 1
    assert app.require_backend().revoked(0)[1] == []


def test_requeue_runs_a_failed_task_again(app: Taskline) -> None:
    fail = True

    @app.task(name="pay", retry={"max": 1, "wait": 0})
    def pay(order: int) -> int:
        if fail:
            raise Declined("no")
        return order

    result = pay.delay(4)
    work(app)
    work(app)
    assert result.failed()
    fail = False
    result.requeue()
    assert result.state == "PENDING"
    [stored] = app.transport.peek("default")
    header, _ = app.codec.open(stored.frame)
    assert (header.attempt, header.waited, header.first_run, header.eta) == (1, 0, None, None)
    assert header.errors == ["Declined: no"]
    work(app)
    assert result.get(timeout=LIMIT) == 4
    assert result.info["deliveries"] == 3
    with pytest.raises(NoResult, match="not among the dead letters"):
        result.requeue()


def test_a_task_that_keeps_no_result_says_so_at_once(app: Taskline) -> None:
    @app.task(name="pay", result_ttl=0)
    def pay() -> None: ...

    with pytest.raises(NoResult, match="task pay has result_ttl=0"):
        pay.delay().get()


def test_an_app_that_keeps_no_results_says_so_at_once(app: Taskline) -> None:
    app.settings.result_ttl = 0
    pay = app.task(name="pay")(lambda: None)
    with pytest.raises(NoResult, match="task pay has result_ttl=0"):
        pay.delay().get()
    with pytest.raises(NoResult, match="task pay has result_ttl=0"):
        pay.map([]).get() or pay.starmap([()]).get()


def test_a_lost_backend_is_not_a_timeout(app: Taskline, monkeypatch: pytest.MonkeyPatch) -> None:
    from taskline.errors import BackendError

    def lost(*args: object) -> None:
        raise BackendError("refuses", retryable=False)

    monkeypatch.setattr(app.backend, "wait", lost)
    with pytest.raises(TransportError, match="refuses"):
        app.AsyncResult("x").get(timeout=LIMIT)


def test_results_are_equal_by_id(app: Taskline) -> None:
    assert app.AsyncResult("a") == app.AsyncResult("a") != app.AsyncResult("b")
    assert len({app.AsyncResult("a"), app.AsyncResult("a")}) == 1
    assert repr(app.AsyncResult("a")) == "<AsyncResult a>"


# Sets


def test_a_set_gives_values_in_the_order_of_the_calls(app: Taskline) -> None:
    @app.task(name="pay")
    def pay(order: int) -> int:
        return order * 2

    results = pay.map(range(2500))
    assert (results.completed(), results.ready(), len(results)) == (0, False, 2500)
    assert work(app) == 1000
    assert results.completed() == 1000
    with pytest.raises(ResultTimeout, match=r"1500 of 2500 tasks are not final after 0 seconds"):
        results.get(timeout=0)
    work(app)
    work(app)
    assert results.get(timeout=LIMIT) == [order * 2 for order in range(2500)]
    assert asyncio.run(results.aget(timeout=LIMIT))[:2] == [0, 2]
    assert results.ready()
    assert results[3].get() == 6
    assert [result.id for result in results] == results.ids


def test_a_set_raises_the_first_failure_in_order(app: Taskline) -> None:
    @app.task(name="pay")
    def pay(order: int) -> int:
        if order % 2:
            raise Declined(order)
        return order

    results = pay.map([0, 1, 2, 3])
    work(app)
    with pytest.raises(Declined, match="1"):
        results.get(timeout=LIMIT)


def test_a_set_without_a_backend(app: Taskline) -> None:
    bare = Taskline("shop", broker=f"memory://{new_id()}")
    bare_task = bare.task(name="pay")(lambda order: order)
    with pytest.raises(NoResult):
        bare_task.map([1]).get()
