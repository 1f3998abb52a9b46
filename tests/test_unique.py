"""Calls that are not to meet: what the second becomes, and when a key is free again."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from claiming import advance, new_app, sender

from taskline import (
    ConfigurationError,
    KeyReused,
    Retry,
    SerializationError,
    Taskline,
    TaskRevoked,
    current_task,
)
from taskline.claims import STARTED, Claim
from taskline.errors import TransportError
from taskline.message import EXPIRED, FAILURE, PENDING, REVOKED, SUCCESS
from taskline.outcomes import outcome
from taskline.schedule import Scheduler
from taskline.testing.faults import FaultPlan, FaultyTransport
from taskline.testing.stepping import Fate, Hand, Killed
from taskline.worker import Worker, WorkerOptions


@pytest.fixture
def app() -> Iterator[Taskline]:
    with new_app() as app:
        yield app


@pytest.fixture
def ran() -> list[Any]:
    return []


@pytest.fixture
def worker(app: Taskline) -> Iterator[Hand]:
    """Made when the test asks for it, so that it knows the app's tasks."""
    made: list[Hand] = []

    class Late:
        def __getattr__(self, name: str) -> Any:
            if not made:
                made.append(Hand(app))
            return getattr(made[0], name)

    yield Late()  # type: ignore[misc]
    for each in made:
        each.close()


# Options


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"unique": "queued"}, '"until_start", "until_end" or a number of seconds'),
        ({"unique": "running"}, "concurrency=1"),
        ({"unique": 0}, "more than 0"),
        ({"unique": True}, "number of seconds"),
        ({"unique": 5, "throttle": 5}, "exclude each other"),
        ({"unique": 5, "debounce": 5}, "exclude each other"),
        ({"unique": 5, "unique_for": 5}, "goes with unique="),
        ({"unique": "until_end", "on_duplicate": "replace"}, "what runs is not replaced"),
        ({"unique": "until_end", "on_duplicate": "ignore"}, "on_duplicate='ignore'"),
        ({"unique": "until_end", "unique_by": "nobody"}, "no such argument"),
        ({"unique": "until_end", "unique_by": 5}, "a function of"),
        ({"unique": "until_end", "max_wait": 5}, "max_wait= does not go with unique="),
        ({"throttle": 5, "on_duplicate": "replace"}, "on_duplicate='replace'"),
        ({"throttle": 5, "unique_for": 5}, "does not go with throttle="),
        ({"debounce": 5, "on_duplicate": "drop"}, "does not go with debounce="),
        ({"debounce": 5, "max_wait": 4}, "not be less than debounce"),
        ({"debounce": 5, "expires": 5}, "never run"),
        ({"unique_by": "user"}, "goes with unique=, throttle= or debounce="),
        ({"on_duplicate": "drop"}, "goes with unique=, throttle= or debounce="),
        ({"unique_key": "x"}, "unknown option"),
        ({"idempotency_key": "x"}, "unknown option"),
    ],
)
def test_wrong_options_of_a_task(app: Taskline, options: Any, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):

        @app.task(**options)
        def work(user: str) -> None: ...


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"unique_key": "x"}, "goes with unique="),
        ({"unique": 5, "unique_key": ""}, "not empty"),
        ({"idempotency_key": ""}, "not empty"),
        ({"idempotency_key": "x", "unique_key": "y"}, "a key itself"),
        ({"idempotency_key": "x", "on_duplicate": "drop"}, "does not go with"),
        ({"unique_by": "x"}, "unknown option"),
        ({"debounce": 5, "countdown": 5}, "leave out eta and countdown"),
        ({"debounce": 5, "expires": 5}, "never run"),
        ({"unique": False, "max_wait": 5}, "goes with unique="),
    ],
)
def test_wrong_options_of_a_call(app: Taskline, options: Any, complaint: str) -> None:
    @app.task
    def work(user: str) -> None: ...

    with pytest.raises(ConfigurationError, match=complaint):
        work.options(**options)


def test_a_task_has_one_kind_of_key(app: Taskline) -> None:
    @app.task(unique="until_end", unique_by="user")
    def work(user: str) -> None: ...

    with pytest.raises(ConfigurationError, match="add unique=False"):
        work.options(idempotency_key="x")
    first = work.options(unique=False, idempotency_key="x").delay("ann")
    assert work.options(unique=False, idempotency_key="x").delay("ann").id == first.id
    assert work.options(throttle=5).delay("bob").duplicate is False, "in place of the task's own"
    dropped = work.options(throttle=5).delay("bob")
    assert (dropped.duplicate, dropped.state) == (True, REVOKED)
    assert not work.options(unique=False).delay("ann").duplicate
    assert not work.options(unique=False).delay("ann").duplicate


# Keys


def test_calls_are_the_same_by_what_the_task_would_get(app: Taskline) -> None:
    @app.task(unique="until_end")
    def work(user: str, copies: int = 1, *, to: dict[str, int] | None = None) -> None: ...

    first = work.delay("ann")
    assert work.delay(user="ann").id == first.id
    assert work.delay("ann", 1, to=None).id == first.id
    assert work.delay("ann", 2).id != first.id
    second = work.delay("ann", to={"a": 1, "b": 2})
    assert work.delay("ann", to={"b": 2, "a": 1}).id == second.id


def test_calls_are_the_same_by_some_arguments(app: Taskline) -> None:
    @app.task(unique="until_end", unique_by=["user", "kind"])
    def work(user: str, kind: str = "a", note: object = None) -> None: ...

    first = work.delay("ann", note=7)
    assert work.delay("ann", "a", "else").id == first.id
    assert work.delay("ann", "b").id != first.id
    assert app.send_task("tests.none", unique="until_end", unique_key="x").id != first.id
    by_key = app.send_task(work.name, ("bob",), unique_key='["ann","a"]')
    assert by_key.id == first.id


def test_calls_are_the_same_by_a_function(app: Taskline) -> None:
    @app.task(unique="until_end", unique_by=lambda user, number: user.lower())
    def work(user: str, number: int) -> None: ...

    first = work.delay("Ann", 1)
    assert work.delay("ann", 2).id == first.id
    assert work.options(unique_key="ann").delay("zoe", 5).id == first.id
    assert work.options(unique_key="zoe").delay("ann", 5).id != first.id


def test_different_tasks_never_meet(app: Taskline) -> None:
    @app.task(unique="until_end")
    def one(user: str) -> None: ...

    @app.task(unique="until_end")
    def other(user: str) -> None: ...

    assert one.delay("ann").id != other.delay("ann").id


def test_what_json_does_not_carry_gives_no_key(app: Taskline) -> None:
    @app.task(unique="until_end")
    def work(what: object) -> None: ...

    with pytest.raises(SerializationError, match="unique_by="):
        work.delay(object())


def test_a_task_that_is_not_known_needs_a_key(app: Taskline) -> None:
    with pytest.raises(ConfigurationError, match="give unique_key="):
        app.send_task("elsewhere.work", (1,), unique="until_end")
    first = app.send_task("elsewhere.work", (1,), unique="until_end", unique_key="1")
    second = app.send_task("elsewhere.work", (2,), unique="until_end", unique_key="1")
    assert (second.id, second.duplicate, first.duplicate) == (first.id, True, False)


def test_a_secret_is_not_in_the_key(app: Taskline) -> None:
    @app.task(unique="until_end", unique_by="password")
    def work(password: str) -> None: ...

    with sender(app) as fate:
        work.delay("hunter2")
    assert fate.calls == ["set", "send", "swap"]
    kept = app.require_backend().keys()._room.values  # type: ignore[attr-defined]
    assert len(kept) == 1
    assert "hunter2" not in repr(kept)


# Until it begins, until it ends, for a time


@pytest.mark.parametrize("until", ["until_start", "until_end"])
def test_one_waits_at_a_time(app: Taskline, worker: Hand, ran: list[int], until: Any) -> None:
    @app.task(unique=until, unique_by="user")
    def work(user: str, number: int) -> int:
        ran.append(number)
        return number

    first = work.delay("ann", 1)
    second = work.delay("ann", 2)
    assert (second.id, second.duplicate, first.duplicate) == (first.id, True, False)
    worker.work()
    assert ran == [1]
    assert second.get(timeout=1) == 1
    assert work.delay("ann", 3).id != first.id
    worker.work()
    assert ran == [1, 3]


def test_until_start_another_may_wait_while_one_runs(app: Taskline, worker: Hand) -> None:
    inside: list[Any] = []

    @app.task(unique="until_start")
    def work() -> None:
        if not inside:
            inside.extend([work.delay(), work.delay()])

    first = work.delay()
    worker.work()
    assert inside[0].id != first.id
    assert inside[1].id == inside[0].id, "one waits already"


def test_until_end_none_waits_while_one_runs_or_is_retried(app: Taskline, worker: Hand) -> None:
    inside: list[Any] = []

    @app.task(unique="until_end", retry=3)
    def work() -> None:
        inside.append(work.delay())
        if current_task.attempt < 3:
            raise Retry(after=10)

    first = work.delay()
    worker.work()
    assert work.delay().id == first.id, "it is to be tried again"
    advance(app, 10)
    worker.work()
    advance(app, 10)
    worker.work()
    assert [each.id for each in inside] == [first.id] * 3
    assert first.state == SUCCESS
    assert work.delay().id != first.id


@pytest.mark.parametrize("until", ["until_start", "until_end"])
def test_whatever_its_end_the_key_is_free(app: Taskline, worker: Hand, until: Any) -> None:
    @app.task(unique=until)
    def work(how: str) -> None:
        raise ValueError(how)

    failed = work.delay("fail")
    expired = work.options(expires=5).delay("expire")
    revoked = work.delay("revoke")
    assert revoked.revoke() is True
    unfit = app.send_task(work.name, ("x",), unique=until, unique_key="y")
    advance(app, 5)
    worker.work()
    assert (failed.state, expired.state, unfit.state) == (FAILURE, EXPIRED, FAILURE)
    for how in ("fail", "expire", "revoke"):
        assert not work.delay(how).duplicate, how
    assert not app.send_task(work.name, ("x",), unique=until, unique_key="y").duplicate


def test_a_dead_letter_does_not_block_and_is_requeued_all_the_same(
    app: Taskline, worker: Hand, ran: list[int]
) -> None:
    @app.task(unique="until_end", unique_by="user")
    def work(user: str) -> None:
        ran.append(current_task.deliveries)
        if len(ran) == 1:
            raise ValueError(user)

    failed = work.delay("ann")
    worker.work()
    assert failed.state == FAILURE
    failed.requeue()
    worker.work()
    assert failed.state == SUCCESS
    assert len(ran) == 2


def test_for_a_time(app: Taskline, worker: Hand, ran: list[int]) -> None:
    @app.task(unique=60, unique_by="user")
    def work(user: str, number: int) -> int:
        ran.append(number)
        return number

    first = work.delay("ann", 1)
    worker.work()
    advance(app, 59)
    second = work.delay("ann", 2)
    assert (second.id, second.get(timeout=1)) == (first.id, 1)
    advance(app, 1)
    assert not work.delay("ann", 3).duplicate
    worker.work()
    assert ran == [1, 3]


def test_at_the_latest_after_unique_for(app: Taskline) -> None:
    @app.task(unique="until_end", unique_for=100)
    def work() -> None: ...

    first = work.options(countdown=1000).delay()
    advance(app, 1099)
    assert work.delay().id == first.id, "the time it is not due yet does not count"
    advance(app, 100 + 1)
    assert work.delay().id != first.id


def test_dropped(app: Taskline, worker: Hand, ran: list[int]) -> None:
    @app.task(unique="until_end", unique_by="user", on_duplicate="drop")
    def work(user: str, number: int) -> None:
        ran.append(number)

    first, second = work.delay("ann", 1), work.delay("ann", 2)
    assert second.id != first.id
    assert (second.duplicate, second.state, second.ready()) == (True, REVOKED, True)
    with pytest.raises(TaskRevoked, match=f"a duplicate of {first.id}"):
        second.get(timeout=1)
    worker.work()
    assert ran == [1]


def test_purged_messages_come_back_with_the_next_call(
    app: Taskline, worker: Hand, ran: list[int]
) -> None:
    @app.task(unique="until_end", unique_by="user")
    def work(user: str, number: int) -> None:
        ran.append(number)

    first = work.delay("ann", 1)
    assert app.transport.purge("default") == 1
    assert work.delay("ann", 2).id == first.id
    worker.work()
    assert ran == []
    advance(app, 61)
    assert work.delay("ann", 3).id == first.id
    worker.work()
    assert ran == [3]
    assert first.state == SUCCESS


# The newest wins


def test_replaced(app: Taskline, worker: Hand, ran: list[int]) -> None:
    @app.task(unique="until_start", unique_by="user", on_duplicate="replace")
    def work(user: str, number: int) -> int:
        ran.append(number)
        return number

    results = [work.delay("ann", number) for number in range(4)]
    assert [each.state for each in results] == [REVOKED] * 3 + [PENDING]
    worker.work()
    assert ran == [3]
    assert results[3].get(timeout=1) == 3
    with pytest.raises(TaskRevoked, match=f"a later call took its place, {results[1].id}"):
        results[0].get(timeout=1)
    work.delay("ann", 5)
    worker.work()
    assert ran == [3, 5]


def test_what_has_begun_is_not_replaced(app: Taskline, worker: Hand, ran: list[int]) -> None:
    @app.task(unique="until_start", unique_by="user", on_duplicate="replace")
    def work(user: str, number: int) -> None:
        ran.append(number)
        if number == 1:
            work.delay("ann", 2)
            work.delay("ann", 3)

    first = work.delay("ann", 1)
    worker.work()
    assert ran == [1, 3]
    assert first.state == SUCCESS


def test_a_worker_runs_none_that_was_replaced(app: Taskline, ran: list[int]) -> None:
    """Where a broker cannot delete: the worker sees it."""

    @app.task(unique="until_start", unique_by="user", on_duplicate="replace")
    def work(user: str, number: int) -> None:
        ran.append(number)

    transport = app.transport
    transport.delete = lambda ids: []  # type: ignore[method-assign]
    results = [work.delay("ann", number) for number in range(3)]
    worker = Hand(app)
    worker.work()
    worker.close()
    assert ran == [2]
    assert [each.state for each in results] == [REVOKED, REVOKED, SUCCESS]


def test_debounced(app: Taskline, worker: Hand, ran: list[int]) -> None:
    @app.task(debounce=10, unique_by="document")
    def index(document: str, version: int) -> int:
        ran.append(version)
        return version

    for version in range(5):
        last = index.delay("a", version)
        index.delay("b", version)
        worker.work()
        advance(app, 9)
    assert ran == []
    assert [each.ready for each in app.transport.stats()] == [0]
    assert [each.delayed for each in app.transport.stats()] == [2]
    advance(app, 1)
    worker.work()
    assert ran == [4, 4]
    assert last.get(timeout=1) == 4
    index.delay("a", 7)
    worker.work()
    assert ran == [4, 4]
    advance(app, 10)
    worker.work()
    assert ran == [4, 4, 7]


def test_debounced_at_most_so_long(app: Taskline, worker: Hand, ran: list[float]) -> None:
    began = app.clock.time()

    @app.task(debounce=10, max_wait=25, unique_by="document")
    def index(document: str, version: int) -> None:
        ran.append(app.clock.time() - began)

    for version in range(50):
        index.delay("a", version)
        worker.work()
        advance(app, 1)
        worker.work()
    advance(app, 100)
    worker.work()
    assert ran[:1] == [25]
    assert len(ran) == 3 or ran[1] <= 26 + 25


def test_throttled(app: Taskline, worker: Hand, ran: list[float]) -> None:
    began = app.clock.time()

    @app.task(throttle=10, unique_by="user")
    def remind(user: str, number: int) -> None:
        ran.append(app.clock.time() - began)

    for number in range(30):
        remind.delay("ann", number)
        worker.work()
        advance(app, 1)
    assert ran == [0, 10, 20]


# Idempotency keys


def test_an_idempotency_key(app: Taskline, worker: Hand, ran: list[int]) -> None:
    @app.task
    def pay(order: int) -> int:
        ran.append(order)
        return order

    first = pay.options(idempotency_key="order-42").delay(42)
    second = pay.apply_async((42,), idempotency_key="order-42")
    assert (second.id, second.duplicate) == (first.id, True)
    worker.work()
    third = app.send_task(pay.name, (42,), idempotency_key="order-42")
    assert third.get(timeout=1) == 42
    assert ran == [42]
    with pytest.raises(KeyReused, match=f"other arguments, {first.id}"):
        pay.options(idempotency_key="order-42").delay(43)
    assert not pay.options(idempotency_key="order-43").delay(43).duplicate
    advance(app, 86_400)
    assert not pay.options(idempotency_key="order-42").delay(43).duplicate


def test_how_long_an_idempotency_key_is_known() -> None:
    with new_app(idempotency_ttl=10) as app:

        @app.task
        def pay(order: int) -> None: ...

        first = pay.options(idempotency_key="a").delay(1)
        longer = pay.options(idempotency_key="b", unique_for=20).delay(1)
        advance(app, 10)
        assert pay.options(idempotency_key="a").delay(1).id != first.id
        assert pay.options(idempotency_key="b").delay(1).id == longer.id


def test_a_failed_task_keeps_its_idempotency_key(app: Taskline, worker: Hand) -> None:
    @app.task
    def pay() -> None:
        raise ValueError

    first = pay.options(idempotency_key="a").delay()
    worker.work()
    assert pay.options(idempotency_key="a").delay().state == FAILURE
    assert first.state == FAILURE


def test_a_send_that_failed_is_tried_again_under_the_same_id(app: Taskline) -> None:
    """Whether the message was stored or not: a caller who does not know sends it again."""

    @app.task
    def pay(order: int) -> None: ...

    for kind in ("before", "after"):
        inner = app.transport
        plan = FaultPlan.exactly({("send", 1): kind})  # type: ignore[dict-item]
        app._connections.current = FaultyTransport(inner, plan)
        key = f"order-{kind}"
        with pytest.raises(TransportError, match="planned"):
            pay.options(idempotency_key=key).delay(1)
        again = pay.options(idempotency_key=key).delay(1)
        app._connections.current = inner
        assert [each.id for each in inner.peek("default")].count(again.id) == 1
    assert len(app.transport.peek("default")) == 2


# The ways to send


def test_in_a_batch(app: Taskline, worker: Hand, ran: list[str]) -> None:
    @app.task(unique="until_end")
    def work(user: str) -> str:
        ran.append(user)
        return user

    @app.task(debounce=1, unique_by="user")
    def later(user: str, number: int) -> int:
        ran.append(f"{user}{number}")
        return number

    before = work.delay("ann")
    with app.batch() as results:
        ann, bob, again = work.delay("ann"), work.delay("bob"), work.delay("bob")
        with app.batch():
            some = [later.delay("zoe", number) for number in range(3)]
        with sender(app) as fate:
            pass
        assert fate.calls == [], "nothing happens within the block"
    assert (ann.id, ann.duplicate) == (before.id, True)
    assert (again.id, again.duplicate, bob.duplicate) == (bob.id, True, False)
    assert results.ids == [before.id, bob.id, bob.id, *(each.id for each in some)]
    worker.work()
    advance(app, 1)
    worker.work()
    assert ran == ["ann", "bob", "zoe2"]
    assert [each.state for each in some] == [REVOKED, REVOKED, SUCCESS]


def test_a_batch_that_raises_takes_no_keys(app: Taskline) -> None:
    @app.task(unique="until_end")
    def work() -> None: ...

    def both() -> None:
        with app.batch():
            work.delay()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        both()
    assert not work.delay().duplicate


def test_mapped(app: Taskline, worker: Hand, ran: list[int]) -> None:
    @app.task(unique="until_end")
    def work(number: int) -> int:
        ran.append(number)
        return number

    results = work.map([1, 2, 1, 3, 2])
    assert [each.duplicate for each in results] == [False, False, True, False, True]
    worker.work()
    assert results.get(timeout=1) == [1, 2, 1, 3, 2]
    assert sorted(ran) == [1, 2, 3]


def test_from_a_coroutine(app: Taskline) -> None:
    @app.task(unique="until_end")
    def work(number: int) -> None: ...

    async def both() -> None:
        first, second = await work.adelay(1), await work.adelay(1)
        assert (second.id, second.duplicate) == (first.id, True)

    asyncio.run(both())


def test_coroutines_and_batch_tasks(app: Taskline) -> None:
    ran: list[Any] = []

    @app.task(unique="until_end", unique_by="number")
    async def alone(number: int, note: str = "") -> None:
        ran.append(number)

    @app.task(unique="until_start", batch=10, batch_wait=0.01, on_duplicate="replace")
    def together(items: list[int]) -> None:
        ran.append(items)

    with Taskline("real", broker=app.settings.broker, backend=app.settings.backend) as real:
        real.tasks = app.tasks
        for task in app.tasks.values():
            task.app = real
        assert alone.delay(1).id == alone.delay(1, "again").id
        replaced, kept, other = together.delay(1), together.delay(1), together.delay(2)
        worker = Worker(real, WorkerOptions(threads=1, async_slots=1))
        worker.start()
        try:
            kept.get(timeout=30)
            other.get(timeout=30)
            real.AsyncResult(replaced.id)
            assert replaced.state == REVOKED
            assert alone.delay(5).get(timeout=30) is None
        finally:
            worker.stop(5)
    assert ran.count(1) == 1
    assert sorted(item for items in ran if isinstance(items, list) for item in items) == [1, 2]


def test_not_within_a_transaction(tmp_path: Path) -> None:
    with new_app(f"sqlite:///{tmp_path}/shop.db") as app:

        @app.task(unique="until_end")
        def work() -> None: ...

        app.transport.ping()
        connection = sqlite3.connect(tmp_path / "shop.db")
        connection.execute("BEGIN")
        with (
            pytest.raises(ConfigurationError, match="send it after the commit"),
            app.batch(connection=connection),
        ):
            work.delay()
        connection.rollback()
        connection.close()
        assert not work.delay().duplicate, "no key was taken"


def test_not_as_a_step_of_a_workflow(app: Taskline) -> None:
    @app.task(unique="until_end")
    def work(number: int) -> int:
        return number

    for make in (work.s, work.si, work.options(unique_for=5).s):
        with pytest.raises(ConfigurationError, match=r"options\(unique=False\)"):
            make(1)
    result = work.options(unique=False).s(1).delay()
    hand = Hand(app)
    hand.work()
    hand.close()
    assert result.get(timeout=1) == 1


def test_a_schedule_does_not_send_while_the_last_one_waits(
    app: Taskline, worker: Hand, ran: list[float]
) -> None:
    @app.periodic(every=10)
    @app.task(unique="until_end", on_duplicate="drop")
    def beat() -> None:
        ran.append(app.clock.time())

    scheduler = Scheduler(app)
    scheduler.step()
    for _ in range(5):
        advance(app, 10)
        scheduler.step()
    assert [each.ready for each in app.transport.stats()] == [1]
    worker.work()
    assert len(ran) == 1
    assert not app.schedules.run(beat.name).duplicate
    assert app.schedules.run(beat.name).duplicate
    scheduler.close()


def test_in_eager_mode(ran: list[int]) -> None:
    with new_app(eager=True) as app:

        @app.task
        def pay(order: int) -> int:
            ran.append(order)
            return order

        @app.task(unique="until_end")
        def work() -> None:
            ran.append(0)

        @app.task(throttle=10)
        def remind() -> None:
            ran.append(-1)

        first = pay.options(idempotency_key="a").delay(1)
        second = pay.options(idempotency_key="a").delay(1)
        assert (second.id, second.duplicate, second.get()) == (first.id, True, 1)
        with pytest.raises(KeyReused):
            pay.options(idempotency_key="a").delay(2)
        work.delay()
        work.delay()
        assert [remind.delay().state for _ in range(2)] == [SUCCESS, REVOKED]
        advance(app, 10)
        remind.delay()
        assert ran == [1, 0, 0, -1, -1]


# Where no keys can be kept


def test_no_place_for_keys() -> None:
    with Taskline("shop", broker="memory://nowhere") as app:

        @app.task
        def pay(order: int) -> None: ...

        with pytest.raises(ConfigurationError, match="has no result backend"):
            pay.options(idempotency_key="a").delay(1)
        Worker(app)

        @app.task(unique="until_end")
        def work() -> None: ...

        with pytest.raises(ConfigurationError, match="has no result backend"):
            work.delay()
        with pytest.raises(ConfigurationError, match="has no result backend"):
            Worker(app)
        assert not app.transport.peek("default")


def test_a_worker_without_a_backend_does_not_run_them() -> None:
    with new_app() as app, Taskline("shop", broker=app.settings.broker, clock=app.clock) as bare:

        @bare.task(name="pay")
        def pay(order: int) -> None:
            raise AssertionError

        app.send_task("pay", (1,), idempotency_key="a")
        hand = Hand(bare)
        hand.work()
        hand.close()
        (letter,) = app.dead.find()
        assert "has no result backend" in letter.reason


def test_not_in_celerys_messages() -> None:
    with (
        Taskline(
            "shop",
            broker="kombu+memory://",
            backend="memory://celery",
            protocol="celery",
        ) as app,
        pytest.raises(ConfigurationError, match="Celery's messages"),
    ):
        app.send_task("pay", (1,), idempotency_key="a")


# What it costs


def test_round_trips(app: Taskline) -> None:
    @app.task
    def plain() -> None: ...

    @app.task(unique="until_end")
    def work() -> None: ...

    @app.task(debounce=5)
    def later() -> None: ...

    def calls(task: Any) -> list[str]:
        with sender(app) as fate:
            task.delay()
        return fate.calls

    assert calls(plain) == ["send"]
    assert calls(work) == ["set", "send", "swap"]
    assert calls(work) == ["set", "get", "fetch"]
    assert calls(plain.options(idempotency_key="a")) == ["set", "send", "swap"]
    assert calls(plain.options(idempotency_key="a")) == ["set", "get"]
    assert calls(later) == ["get", "send", "swap"]
    assert calls(later) == ["get", "send", "swap", "store", "delete"]


# Who dies


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("until", ["until_start", "until_end", 60.0, "key"])
def test_a_sender_dies_between_any_two_calls(until: Any, copies: bool, moment: str) -> None:
    """Whatever the second call is told about: it is there, and it runs."""
    number = 0
    while True:
        number += 1
        with new_app() as app:
            runs: list[int] = []

            @app.task
            def work(user: str) -> None:
                runs.append(1)  # noqa: B023

            options: Any = {"idempotency_key": "x"} if until == "key" else {"unique": until}
            calls = work.options(**options)
            if copies:
                app._connections.current = Forgetful(app.open_transport(), app)
            with sender(app, number, moment) as fate:
                try:
                    calls.delay("ann")
                except Killed:
                    pass
                else:
                    assert number > 3
                    return
            second = calls.delay("ann")
            hand = Hand(app)
            hand.work()
            assert second.state == SUCCESS, fate.calls
            assert len(runs) == 1, fate.calls
            hand.close()


class Forgetful(FaultyTransport):
    """Says that it would store a message twice; time passes when it is waited for."""

    def __init__(self, inner: Any, app: Taskline) -> None:
        super().__init__(inner, FaultPlan.exactly({}))
        self.capabilities = msgspec.structs.replace(inner.capabilities, idempotent=False)
        app.clock.sleep = lambda seconds: advance(app, seconds)  # type: ignore[method-assign]


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize(
    "options", [{"debounce": 5.0}, {"unique": "until_start", "on_duplicate": "replace"}]
)
def test_a_sender_of_the_newest_dies(options: Any, moment: str) -> None:
    """What was accepted before it, or after it, runs; that of the dead one may run too."""
    number = 0
    while True:
        number += 1
        with new_app() as app:
            runs: list[int] = []

            @app.task(**options, unique_by="user")
            def work(user: str, number: int) -> None:
                runs.append(number)  # noqa: B023

            first = work.delay("ann", 1)
            died = False
            with sender(app, number, moment) as fate:
                try:
                    work.delay("ann", 2)
                except Killed:
                    died = True
            if not died:
                assert number > 5
                return
            hand = Hand(app)
            hand.work()
            advance(app, 5)
            hand.work()
            # Then it was sent, and the key does not tell.
            between = len(fate.calls) == (3 if moment == "before" else 2)
            assert runs in ([[1], [2], [1, 2]] if between else [[1], [2]])
            assert first.state == (SUCCESS if 1 in runs else REVOKED)
            before = len(runs)
            work.delay("ann", 3)
            hand.work()
            advance(app, 5)
            hand.work()
            assert runs[-1] == 3
            assert len(runs) == before + 1
            hand.close()


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("until", ["until_start", "until_end"])
def test_a_worker_dies(app: Taskline, until: Any, number: int, moment: str) -> None:
    runs: list[str] = []

    @app.task(unique=until)
    def work(user: str) -> None:
        runs.append(current_task.id)

    first = work.delay("ann")
    victim = Hand(app, "victim", fate=Fate(number, moment))
    try:
        victim.work()
    except Killed:
        victim.bury()
    second = work.delay("ann")
    other = Hand(app, "other")
    other.work()
    other.close()
    assert first.state == second.state == SUCCESS
    assert not work.delay("ann").duplicate


@pytest.mark.parametrize("called_again", [False, True])
def test_what_ended_before_its_receipt_does_not_run_beside_the_next(
    app: Taskline, ran: list[str], called_again: bool
) -> None:
    @app.task(unique="until_end")
    def work(user: str) -> None:
        ran.append(current_task.id)

    first = work.delay("ann")
    (delivery,) = app.transport.receive(["default"], 1, 30.0, 0.0, "victim")
    header, _ = app.codec.open(delivery.frame)
    keys = app.require_backend().keys()
    assert header.unique is not None
    begun = Claim(first.id, STARTED, app.now(), turn=1, sent=header.sent)
    keys.set(header.unique.key, begun.written(), 60.0)
    done = outcome(app.codec, header, SUCCESS, None, deliveries=1, finished=app.now(), ttl=60.0)
    app.require_backend().store([done])
    app.transport.recover("victim", {first.id})
    again = [work.delay("ann") for _ in range(called_again)]
    assert not any(each.duplicate for each in again)
    other = Hand(app, "other")
    other.work()
    other.close()
    assert ran == [each.id for each in again]
    assert first.state == SUCCESS
    assert not work.delay("ann").duplicate


def test_an_id_of_ones_own_may_be_used_again(app: Taskline, worker: Hand, ran: list[int]) -> None:
    @app.task(throttle=10)
    def work() -> None:
        ran.append(1)

    for _ in range(2):
        assert not work.options(task_id="mine").delay().duplicate
        worker.work()
        advance(app, 10)
    assert len(ran) == 2


@pytest.mark.parametrize("until", ["until_start", "until_end", 60.0])
def test_a_sender_that_slept_repeats_nothing(app: Taskline, until: Any, ran: list[int]) -> None:
    """It took the key, another sent its message, that was run, and then it goes on."""

    @app.task(unique=until)
    def work(user: str) -> None:
        ran.append(1)

    hand = Hand(app)
    inner, seen = app.transport, []

    class Sleepy(FaultyTransport):
        def send(self, messages: Any) -> None:
            app._connections.current = inner
            seen.append(work.delay("ann"))
            hand.work()
            inner.send(messages)

    app._connections.current = Sleepy(inner, FaultPlan.exactly({}))
    first = work.delay("ann")
    hand.work()
    hand.close()
    assert seen[0].id == first.id
    assert first.state == SUCCESS
    assert ran == [1]


@pytest.mark.parametrize("until", ["until_start", "until_end"])
def test_a_key_is_freed_though_no_result_is_kept(
    app: Taskline, worker: Hand, until: Any, ran: list[Any]
) -> None:
    @app.task(unique=until, unique_by="user", result_ttl=0)
    def work(user: str, wait: float = 0.0) -> None:
        ran.append(user)
        if wait:
            advance(app, wait)
            work.delay(user)

    work.delay("ann")
    worker.work()
    assert not work.delay("ann").duplicate
    worker.work()
    work.delay("bob", 61.0)
    worker.work()
    worker.work()
    assert not work.delay("bob").duplicate, "also when another has made sure of it meanwhile"


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("number", range(1, 6))
@pytest.mark.parametrize("options", [{"debounce": 5.0}, {"unique": "until_start"}])
def test_workers_and_others_between_any_two_calls(
    app: Taskline, ran: list[int], options: Any, number: int, moment: str
) -> None:
    """What a sender is told of runs, and what is called last runs last."""
    more = {} if "debounce" in options else {"on_duplicate": "replace"}

    @app.task(**options, **more, unique_by="user")
    def work(user: str, number: int) -> None:
        ran.append(number)

    hand = Hand(app)

    def drain() -> None:
        hand.work()
        advance(app, 5)
        hand.work()

    for meanwhile in (drain, lambda: work.delay("ann", 1) and None):
        ran.clear()
        first = work.delay("ann", 1)
        own = app._connections.current, app._connections._backend
        with sender(app, number, moment, lambda: aside(app, own, meanwhile)):  # noqa: B023
            second = work.delay("ann", 2)
        drain()
        assert first.ready()
        assert second.ready()
        assert ran[-1] == 2 or meanwhile is not drain
        third = work.delay("ann", 3)
        drain()
        assert ran[-1] == 3
        assert third.state == SUCCESS
    hand.close()


def aside(app: Taskline, own: Any, what: Any) -> None:
    """Do it with the connections of others than the sender that is disturbed."""
    connections = app._connections
    wrapped = connections.current, connections._backend
    connections.current, connections._backend = own
    what()
    connections.current, connections._backend = wrapped
