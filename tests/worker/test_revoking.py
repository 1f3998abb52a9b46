"""`app.revoke`: all messages of a task, or with a header, sent until a moment."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from workbench import Bench, spy_on, until, working

from taskline import Taskline, TaskRevoked, current_task
from taskline.backends.base import Revocation
from taskline.clock import ManualClock
from taskline.errors import ConfigurationError, NoResult
from taskline.message import VERSION, Header
from taskline.revoking import Wish, read
from taskline.worker.revoked import Revoked
from taskline.worker.watch import LOOK_EVERY


@pytest.fixture
def ran() -> list[Any]:
    return []


@pytest.fixture
def mail(app: Taskline, ran: list[Any]) -> Any:
    @app.task(name="mail")
    def mail(number: int) -> int:
        ran.append(number)
        return number

    return mail


def states(results: Any) -> list[str]:
    return [result.state for result in results]


def test_all_of_a_task_that_were_sent_before(app: Taskline, mail: Any, ran: list[Any]) -> None:
    @app.task
    def other() -> None:
        ran.append("other")

    before = mail.map(range(3))
    kept = other.delay()
    app.revoke(task="mail")
    after = mail.map(range(3, 6))
    Bench(app).drain()
    assert states(before) == ["REVOKED"] * 3
    assert sorted(map(str, ran)) == ["3", "4", "5", "other"]
    assert states([kept, *after]) == ["SUCCESS"] * 4
    with pytest.raises(TaskRevoked):
        before[0].get(timeout=0)


def test_workers_that_start_later_heed_it_and_those_that_are_there(
    app: Taskline, mail: Any, ran: list[Any]
) -> None:
    first = Bench(app, name="first")
    first.turn()
    later = mail.options(countdown=0.3).delay(1)
    now = mail.delay(2)
    app.revoke(task=mail)
    first.drain()
    assert now.state == "REVOKED"
    second = Bench(app, name="second")
    until(lambda: (second.turn(), later.ready())[1])
    assert later.state == "REVOKED"
    assert not ran


def test_by_header(app: Taskline, mail: Any, ran: list[Any]) -> None:
    for number, tenant in enumerate([7, 8, "7", None, True, 1, [1, {"a": 2}]]):
        mail.options(headers={"tenant": tenant, "x": number}).delay(number)
    mail.delay(99)
    app.revoke(headers={"tenant": 7})
    app.revoke(headers={"tenant": 1})
    app.revoke(headers={"tenant": [1, {"a": 2}]})
    app.revoke(headers={"tenant": None, "x": 99})
    Bench(app).drain()
    assert sorted(ran) == [1, 2, 3, 4, 99]


def test_both_must_hold(app: Taskline, mail: Any, ran: list[Any]) -> None:
    @app.task(name="sms")
    def sms(number: int) -> None:
        ran.append(number)

    for task in (mail, sms):
        for tenant in (7, 8):
            task.options(headers={"tenant": tenant}).delay(tenant + (10 if task is sms else 0))
    app.revoke(task="mail", headers={"tenant": 7})
    Bench(app).drain()
    assert sorted(ran) == [8, 17, 18]


def test_a_moment_in_the_past(make_memory_app: Any, ran: list[Any]) -> None:
    clock = ManualClock()
    app: Taskline = make_memory_app(clock=clock)

    @app.task(name="note")
    def note(number: int) -> None:
        ran.append(number)

    start = clock.time()
    for number in range(10):
        clock.advance(1.0)
        note.delay(number)
    app.revoke(task="note", before=start + 4.5)
    app.revoke(task="note", before=start + 2.5)  # takes nothing back
    Bench(app).drain()
    assert ran == [4, 5, 6, 7, 8, 9]


def test_retries_keep_the_moment_of_their_sending(app: Taskline, ran: list[Any]) -> None:
    @app.task(name="fails", retry={"max": 5, "wait": 0.05})
    def fails() -> None:
        ran.append(1)
        raise ValueError("no")

    result = fails.delay()
    bench = Bench(app)
    until(lambda: (bench.turn(), bench.work(), ran)[2])
    app.revoke(task="fails")
    until(lambda: (bench.turn(), bench.work(), result.ready())[2])
    assert result.state == "REVOKED"
    assert len(ran) <= 2


def test_a_dead_letter_that_is_sent_again_afterwards_runs(app: Taskline, ran: list[Any]) -> None:
    @app.task(name="fails")
    def fails() -> int:
        ran.append(1)
        if len(ran) == 1:
            raise ValueError("a bug")
        return 7

    result = fails.delay()
    bench = Bench(app)
    bench.drain()
    app.revoke(task="fails")
    app.dead.requeue([result.id])
    bench.drain()
    assert result.get(timeout=0) == 7


@pytest.mark.parametrize("header", [False, True])
def test_those_that_run_are_stopped_with_terminate(app: Taskline, header: bool) -> None:
    running = threading.Semaphore(0)
    seen: list[bool] = []

    @app.task(name="long")
    def long() -> None:
        try:
            running.release()
            while True:
                threading.Event().wait(0.005)
        finally:
            seen.append(current_task.cancelled)

    @app.task(name="bystander")
    def bystander() -> str:
        running.release()
        while not seen:
            threading.Event().wait(0.005)
        return "went on"

    with working(app, threads=2):
        victim = long.options(headers={"tenant": 7}).delay()
        other = bystander.delay()
        for _ in range(2):
            assert running.acquire(timeout=30)
        if header:
            app.revoke(headers={"tenant": 7}, terminate=True)
        else:
            app.revoke(task="long", terminate=True)
        with pytest.raises(TaskRevoked):
            victim.get(timeout=30)
        assert other.get(timeout=30) == "went on"
    assert seen == [True]


def test_without_terminate_what_runs_goes_on(app: Taskline, mail: Any) -> None:
    bench = Bench(app)
    result = mail.delay(1)
    bench.turn()
    assert bench.begin() is not None
    app.revoke(task="mail")
    app.clock.sleep(0.001)
    bench.io._watch._next_look = 0.0
    bench.turn()
    bench.finish()
    bench.drain()
    assert result.get(timeout=0) == 1


def test_what_waits_in_the_worker_is_dropped(app: Taskline, mail: Any, ran: list[Any]) -> None:
    bench = Bench(app)
    bench.io._prefetch.observe([0.0001] * 100)
    results = mail.map(range(5))
    bench.turn()
    assert bench.begin() is not None
    assert bench.waiting == 4
    app.revoke(task="mail")
    bench.io._watch._next_look = 0.0
    bench.turn()
    bench.finish()
    bench.drain()
    assert states(results) == ["SUCCESS"] + ["REVOKED"] * 4
    assert ran == [0]


def test_a_running_batch_is_stopped_when_all_of_it_is_meant(memory_app: Taskline) -> None:
    app = memory_app
    running = threading.Event()
    ends: list[str] = []

    @app.task(name="bulk", batch=2, batch_wait=30)
    def bulk(items: list[int]) -> None:
        running.set()
        try:
            while len(ends) < sum(items):
                threading.Event().wait(0.005)
        except BaseException as error:
            ends.append(type(error).__name__)
            raise

    with working(app) as worker:
        first, second = (
            bulk.options(headers={"tenant": tenant}).delay(10) for tenant in ("a", "b")
        )
        assert running.wait(30)
        app.revoke(headers={"tenant": "a"}, terminate=True)
        until(lambda: len(worker.io._watch.revoked) == 1)
        assert not ends
        app.revoke(task="bulk", terminate=True)
        until(lambda: ends)
        for result in (first, second):
            with pytest.raises(TaskRevoked):
                result.get(timeout=30)
    assert ends == ["TaskRevoked"]


def test_a_step_of_a_workflow_ends_it(app: Taskline, mail: Any, ran: list[Any]) -> None:
    result = (mail.s(1) | mail.s()).delay()
    app.revoke(task="mail")
    bench = Bench(app)
    until(lambda: (bench.turn(), bench.work(), result.ready())[2])
    assert result.state == "REVOKED"
    assert not ran


def test_what_is_wrong_is_refused(app: Taskline, mail: Any) -> None:
    for wrong in ({}, {"headers": {}}, {"terminate": True}):
        with pytest.raises(ConfigurationError, match="Give task=, headers=, or both"):
            app.revoke(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="task='': must be a string"):
        app.revoke(task="")
    with pytest.raises(ConfigurationError, match="must map names to JSON values"):
        app.revoke(headers={7: 7})  # type: ignore[dict-item]
    with pytest.raises(ConfigurationError, match="must be JSON values"):
        app.revoke(headers={"a": object()})
    with pytest.raises(ConfigurationError, match="before='now': must be a datetime or Unix"):
        app.revoke(task="mail", before="now")  # type: ignore[arg-type]
    bare = Taskline("bare", broker="memory://bare", backend=None)
    with pytest.raises(NoResult, match="has no result backend"):
        bare.revoke(task="mail")


def test_what_a_newer_version_wishes_is_said_and_left(
    app: Taskline, mail: Any, ran: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    app.require_backend().revoke([Revocation('all {"until":3}')], 60.0)
    mail.delay(1)
    Bench(app).drain()
    assert ran == [1]
    assert "a revocation is not understood" in caplog.text


names = st.sampled_from(["a", "b"])
values = st.sampled_from([1, True, "1", None])
some_headers = st.dictionaries(names, values)


@given(
    wishes=st.lists(st.tuples(st.integers(1, 9), st.sampled_from(["", "x", "y"]), some_headers)),
    task=st.sampled_from(["x", "y"]),
    sent=st.integers(0, 10),
    headers=some_headers,
)
def test_what_is_known_is_what_was_wished(
    wishes: list[tuple[int, str, dict[str, Any]]], task: str, sent: int, headers: dict[str, Any]
) -> None:
    header = Header(VERSION, "id", task, "default", float(sent), headers=headers)
    revoked = Revoked()
    for before, name, wanted in wishes:
        written = Wish(float(before), name, wanted).written()
        assert read(written) == Wish(float(before), name, wanted)
        revoked.learn([Revocation(written)])
    expected = any(
        0 < sent <= before
        and name in ("", task)
        and all(repr(headers.get(key, "none")) == repr(value) for key, value in wanted.items())
        for before, name, wanted in wishes
    )
    assert revoked.concerns(header) == expected
    assert bool(revoked) == bool(wishes)


def test_a_worker_looks_twice_a_second_while_something_runs(make_memory_app: Any) -> None:
    """So that what runs is stopped within a second."""
    app = make_memory_app()

    @app.task(name="long")
    def long() -> None: ...

    transport, _ = spy_on(app)
    bench = Bench(app, slots=2)
    bench.io._prefetch.stuck(60.0)
    long.delay()
    bench.turn()
    transport.calls.clear()
    bench.io.step(0.01)
    assert bench.begin() is not None
    bench.io.step(60.0)
    waits = [args[3] for name, args in transport.calls if name == "receive"]
    assert waits
    assert 0 < waits[-1] <= LOOK_EVERY
    looks = [name for name, _ in transport.calls].count("revoked")
    bench.io.step(60.0)
    assert [name for name, _ in transport.calls].count("revoked") > looks
    bench.finish()
    bench.drain()
