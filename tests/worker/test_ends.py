"""Every way in which a run can end: what the caller sees, and what stays in the broker."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from workbench import until, working

from taskline import Taskline
from taskline.errors import (
    Ignore,
    InvalidArguments,
    MessageRefused,
    NoResult,
    Reject,
    Retry,
    SerializationError,
    TaskExpired,
    TaskFailed,
    TaskPoisoned,
    TaskRejected,
    UnknownTask,
)
from taskline.message import FAILURE, RETRY, STARTED, SUCCESS, DeadLetter, Header, Message, new_id


def in_broker(app: Taskline) -> int:
    """How many messages the broker still has, dead letters aside."""
    counts = app.transport.stats()
    return sum((each.ready or 0) + (each.delayed or 0) + (each.leased or 0) for each in counts)


def only_letter(app: Taskline) -> DeadLetter:
    [letter] = until(lambda: app.transport.dead_letters())
    return letter


def send_raw(app: Taskline, frame: bytes, **header: Any) -> str:
    """Put bytes into the broker that no app of ours would write."""
    head = Header(1, new_id(), "raw", app.settings.queue, app.now(), **header)
    app.transport.send([Message(head, frame)])
    return head.id


def test_success(app: Taskline) -> None:
    @app.task
    def double(number: int) -> int:
        return 2 * number

    with working(app, name="bench"):
        result = double.delay(21)
        assert result.get(timeout=30) == 42
        until(lambda: not in_broker(app))
    info = result.info
    assert (info["state"], info["worker"], info["attempt"]) == (SUCCESS, "bench", 1)
    assert info["deliveries"] == 1
    assert info["started"] <= info["finished"]
    assert app.transport.dead_letters() == []


def test_an_exception_is_raised_at_the_caller_and_its_message_is_a_dead_letter(
    app: Taskline,
) -> None:
    @app.task
    def fail(secret: str, *, times: int) -> None:
        raise KeyError(f"no {secret}")

    with working(app, name="bench"):
        result = fail.delay("door", times=3)
        with pytest.raises(KeyError, match="no door") as caught:
            result.get(timeout=30)
        letter = only_letter(app)
    assert "no {secret}" in str(caught.value.__cause__)
    assert result.state == FAILURE
    assert letter.id == result.id
    assert (letter.task, letter.queue) == (fail.name, "default")
    assert (letter.worker, letter.attempt, letter.deliveries) == ("bench", 1, 1)
    assert letter.reason == "KeyError: 'no door'"
    assert 'raise KeyError(f"no {secret}")' in letter.traceback
    assert "taskline/worker" not in letter.traceback, "our own frames are of no use to anybody"
    header, body = app.codec.open(letter.frame)
    assert list(app.codec.arguments(header, body)) == [["door"], {"times": 3}]
    assert in_broker(app) == 0


def test_a_requeued_dead_letter_runs_again(app: Taskline) -> None:
    broken = [True]

    @app.task
    def mended() -> str:
        if broken:
            raise ValueError("not yet")
        return "done"

    with working(app):
        result = mended.delay()
        with pytest.raises(ValueError, match="not yet"):
            result.get(timeout=30)
        until(lambda: app.transport.dead_letter(result.id))
        broken.clear()
        result.requeue()
        assert result.get(timeout=30) == "done"
        assert result.info["deliveries"] == 2
    assert app.transport.dead_letters() == []


def test_system_exit_is_the_tasks_failure_and_not_the_workers_end(app: Taskline) -> None:
    @app.task(retry=3)
    def leave() -> None:
        sys.exit(7)

    @app.task
    def stay() -> str:
        return "here"

    with working(app):
        with pytest.raises(TaskFailed, match="SystemExit"):
            leave.delay().get(timeout=30)
        assert stay.delay().get(timeout=30) == "here"
        assert only_letter(app).reason == "SystemExit: 7"


@pytest.mark.parametrize("kind", [KeyboardInterrupt, GeneratorExit])
def test_other_exceptions_that_end_programs_end_no_worker(
    memory_app: Taskline, kind: type[BaseException]
) -> None:
    app = memory_app

    @app.task
    def leave() -> None:
        raise kind("out")

    with working(app):
        for _ in range(2):
            with pytest.raises(TaskFailed, match=kind.__name__):
                leave.delay().get(timeout=30)


def test_reject(app: Taskline) -> None:
    @app.task(retry=5)
    def refuse() -> None:
        raise Reject("wrong customer")

    with working(app):
        with pytest.raises(TaskRejected, match="wrong customer"):
            refuse.delay().get(timeout=30)
        letter = only_letter(app)
    assert (letter.reason, letter.attempt) == ("wrong customer", 1)


def test_ignore_is_a_success_without_a_value(app: Taskline) -> None:
    @app.task
    def skip() -> int:
        raise Ignore

    with working(app):
        result = skip.delay()
        assert result.get(timeout=30) is None
        until(lambda: not in_broker(app))
    assert result.state == SUCCESS
    assert app.transport.dead_letters() == []


def test_a_result_that_cannot_be_written_fails_and_says_what_to_do(app: Taskline) -> None:
    @app.task(retry=3)
    def odd() -> Any:
        return object()

    with working(app):
        with pytest.raises(SerializationError, match=r"a builtins.object, does not fit.*plain"):
            odd.delay().get(timeout=30)
        letter = only_letter(app)
    assert "does not fit" in letter.reason
    assert letter.attempt == 1, "it would not fit the next time either"


def test_a_result_larger_than_messages_may_be_fails(make_app: Any) -> None:
    app = make_app(max_message_size=4000)

    @app.task
    def long() -> str:
        return "x" * 5000

    with working(app), pytest.raises(SerializationError, match="max_message_size = 4000"):
        long.delay().get(timeout=30)


def test_a_result_larger_than_the_backend_stores_fails(
    app: Taskline, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = app.require_backend()
    monkeypatch.setattr(type(backend), "largest", 4000)

    @app.task
    def long(size: int) -> str:
        return "x" * size

    with working(app):
        large, small = long.delay(5000), long.delay(3000)
        with pytest.raises(SerializationError, match="stores 4000: put it into GridFS or other"):
            large.get(timeout=30)
        assert small.get(timeout=30) == "x" * 3000


def test_a_failure_larger_than_messages_may_be_is_still_told(make_memory_app: Any) -> None:
    app = make_memory_app(max_message_size=1500)

    @app.task
    def loud() -> None:
        raise ValueError("x" * 5000)

    with working(app):
        with pytest.raises(ValueError, match="xxxx"):
            loud.delay().get(timeout=30)
        assert only_letter(app).reason.startswith("ValueError: xxx")


def test_an_end_that_cannot_be_told_at_all_is_an_end(make_memory_app: Any) -> None:
    app = make_memory_app(max_message_size=300)

    @app.task(name="t")
    def loud() -> None:
        raise ValueError("x" * 5000)

    @app.task(name="a")
    def after() -> str:
        return "still here"

    with working(app):
        loud.delay()
        assert after.delay().get(timeout=30) == "still here"
        assert only_letter(app).reason.startswith("ValueError: xxx")


def test_a_retry_whose_message_grows_too_large_is_a_failure(make_memory_app: Any) -> None:
    app = make_memory_app(max_message_size=900)

    @app.task(retry={"max": 9, "wait": 0})
    def loud(text: str) -> None:
        raise ValueError("x" * 150)

    @app.task
    def after() -> str:
        return "still here"

    with working(app):
        with pytest.raises((ValueError, SerializationError)):
            loud.delay("y" * 300).get(timeout=30)
        assert after.delay().get(timeout=30) == "still here"
        assert only_letter(app).task == loud.name


def test_an_exception_that_cannot_be_shown_harms_nobody(memory_app: Taskline) -> None:
    app = memory_app

    class Hostile(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

        __repr__ = __str__

    @app.task
    def fail() -> None:
        raise Hostile("x")

    @app.task
    def after() -> str:
        return "still here"

    with working(app):
        result = fail.delay()
        with pytest.raises(TaskFailed, match="Hostile"):
            result.get(timeout=30)
        assert after.delay().get(timeout=30) == "still here"
        assert "Hostile" in only_letter(app).reason


def test_arguments_that_do_not_fit_on_arrival_are_a_dead_letter_at_once(app: Taskline) -> None:
    @app.task(name="pay", retry=3)
    def pay(amount: int) -> None:
        raise AssertionError("must not run")

    sender = Taskline("elsewhere", broker=app.settings.broker, backend=app.settings.backend)
    with sender, working(app):
        too_many = sender.send_task("pay", (1, 2, 3))
        with pytest.raises(InvalidArguments, match="amount"):
            too_many.get(timeout=30)
        wrong = sender.send_task("pay", ("much",))
        with pytest.raises(InvalidArguments, match="amount"):
            wrong.get(timeout=30)
        letters = until(lambda: len(found := app.transport.dead_letters()) == 2 and found)
    assert isinstance(letters, list)
    assert {letter.id for letter in letters} == {too_many.id, wrong.id}
    assert all(letter.attempt == 1 and not letter.traceback for letter in letters)


def test_invalid_arguments_raised_by_the_task_itself_are_its_failure(memory_app: Taskline) -> None:
    app = memory_app

    @app.task
    def inner(number: int) -> None: ...

    @app.task(retry={"max": 1, "wait": 0})
    def outer() -> None:
        inner.delay("text")  # type: ignore[arg-type]

    with working(app):
        result = outer.delay()
        with pytest.raises(InvalidArguments):
            result.get(timeout=30)
        assert result.info["attempt"] == 2, "the policy decides, as for any exception"
        assert "inner.delay" in only_letter(app).traceback


def test_an_unknown_task_is_a_dead_letter_that_says_what_to_do(app: Taskline) -> None:
    with working(app):
        result = app.send_task("shop.nowhere", (1,))
        with pytest.raises(UnknownTask, match=r"no task 'shop.nowhere' is registered.*import"):
            result.get(timeout=30)
        letter = only_letter(app)
    assert letter.task == "shop.nowhere"
    assert "include" in letter.reason


@pytest.mark.parametrize(
    "frame",
    [b"", b"\n", b"\x00\xff" * 40, b"{}\n[]", b'{"v":1', b"[" * 5000, b"~0123\nx", b'{"v":99}\n'],
)
def test_bytes_that_are_no_message_are_kept_as_they_came(app: Taskline, frame: bytes) -> None:
    @app.task
    def after() -> str:
        return "still here"

    with working(app):
        key = send_raw(app, frame)
        letter = only_letter(app)
        assert after.delay().get(timeout=30) == "still here"
    assert (letter.id, letter.frame) == (key, frame)
    assert letter.reason
    assert "\n" not in letter.reason
    assert app.AsyncResult(key).state == FAILURE, "who waits for it hears of it"


@pytest.mark.parametrize("accept", [["json"], ["msgpack"]])
def test_a_serializer_that_is_not_accepted_is_refused_unread(
    make_memory_app: Any, accept: list[str]
) -> None:
    app = make_memory_app(accept=accept, serializer=accept[0])
    frame = b'{"v":1,"id":"x","task":"t","queue":"default","sent":1.0,"serializer":"pickle"}\nabc'
    with working(app):
        key = send_raw(app, frame)
        letter = only_letter(app)
        with pytest.raises(MessageRefused, match="'pickle' is not accepted"):
            app.AsyncResult(key).get(timeout=30)
    assert "'pickle' is not accepted" in letter.reason
    assert letter.frame == frame


def test_a_body_that_is_no_call_is_a_dead_letter(memory_app: Taskline) -> None:
    app = memory_app

    @app.task(name="t")
    def t() -> None: ...

    frame = b'{"v":1,"id":"x","task":"t","queue":"default","sent":1.0}\n{"a": 1}'
    with working(app):
        app.transport.send([Message(Header(1, "x", "t", "default", app.now()), frame)])
        assert "[arguments, keyword arguments]" in only_letter(app).reason


def test_a_message_with_the_id_of_another_task_cannot_touch_its_outcome(app: Taskline) -> None:
    @app.task(name="t")
    def t() -> str:
        return "mine"

    with working(app):
        result = t.delay()
        assert result.get(timeout=30) == "mine"
        frame = b'{"v":1,"id":"%b","task":"t","queue":"default","sent":9e9}\n[[],{}]'
        key = send_raw(app, frame % result.id.encode())
        letter = only_letter(app)
        with pytest.raises(MessageRefused, match="was stored as"):
            app.AsyncResult(key).get(timeout=30)
    assert (letter.id, result.id in letter.reason) == (key, True)
    assert app.AsyncResult(result.id).get(timeout=30) == "mine"


def test_expired_before_it_was_started(app: Taskline) -> None:
    @app.task
    def late() -> None:
        raise AssertionError("must not run")

    result = late.options(expires=0.001).delay()
    until(lambda: app.now() > result._header.expires)  # type: ignore[union-attr,operator]
    with working(app):
        with pytest.raises(TaskExpired, match="not started before it expired"):
            result.get(timeout=30)
        until(lambda: not in_broker(app))
    assert app.transport.dead_letters() == []


def test_retries_until_it_works(app: Taskline) -> None:
    seen: list[tuple[int, int]] = []

    @app.task(retry={"max": 5, "wait": 0}, bind=True)
    def flaky(task: Any) -> str:
        seen.append((task.request.attempt, task.request.deliveries))
        if len(seen) < 3:
            raise OSError("down")
        return "up"

    with working(app):
        result = flaky.delay()
        assert result.get(timeout=30) == "up"
        until(lambda: not in_broker(app))
    assert seen == [(1, 1), (2, 2), (3, 3)]
    assert result.info["errors"] == ["OSError: down", "OSError: down"]
    assert app.transport.dead_letters() == []


def test_retries_end_in_the_dead_letters(app: Taskline) -> None:
    @app.task(retry={"max": 2, "wait": 0})
    def never() -> None:
        raise OSError("down")

    with working(app):
        result = never.delay()
        with pytest.raises(OSError, match="down"):
            result.get(timeout=30)
        letter = only_letter(app)
    assert (letter.attempt, letter.deliveries) == (3, 3)
    assert result.info["errors"] == ["OSError: down"] * 3


def test_a_waiting_retry_shows_its_state(app: Taskline) -> None:
    @app.task(retry={"max": 3, "wait": 3600})
    def patient() -> None:
        raise OSError("down")

    with working(app):
        result = patient.delay()
        before = app.now()
        until(lambda: result.state == RETRY)
        info = result.info
    assert info["attempt"] == 1
    assert info["errors"] == ["OSError: down"]
    assert info["error"]["type"] == "builtins.OSError"
    assert "Traceback" in (result.traceback or "")
    assert before + 3590 < info["retry_at"] < before + 3610
    [stored] = app.transport.peek("default")
    assert stored.state == "delayed", "the broker waits, not the worker"
    assert stored.due == pytest.approx(info["retry_at"])
    header, _ = app.codec.open(stored.frame)
    assert (header.attempt, header.errors) == (2, ["OSError: down"])
    assert header.waited == 3600


def test_retry_after_names_its_own_wait(app: Taskline) -> None:
    @app.task(retry={"max": 3, "wait": 0})
    def busy() -> None:
        raise Retry("come back", after=500)

    with working(app):
        result = busy.delay()
        until(lambda: result.state == RETRY)
    assert result.info["retry_at"] == pytest.approx(app.now() + 500, abs=60)


def test_a_task_without_a_policy_may_ask_for_three_retries(app: Taskline) -> None:
    runs: list[int] = []

    @app.task
    def again() -> None:
        runs.append(1)
        raise Retry("once more", after=0)

    with working(app):
        result = again.delay()
        with pytest.raises(Retry, match="once more"):
            result.get(timeout=30)
    assert len(runs) == 4


def test_retry_always_goes_beyond_the_policy(memory_app: Taskline) -> None:
    app = memory_app
    runs: list[int] = []

    @app.task(retry={"max": 1, "wait": 0})
    def again() -> int:
        runs.append(1)
        if len(runs) < 8:
            raise Retry(after=0, always=True)
        return len(runs)

    with working(app):
        assert again.delay().get(timeout=30) == 8


def test_a_policy_may_judge_results(app: Taskline) -> None:
    import tenacity

    runs: list[int] = []

    @app.task(retry=(tenacity.retry_if_result(lambda value: value < 3), tenacity.wait_none()))
    def count() -> int:
        runs.append(1)
        return len(runs)

    with working(app):
        result = count.delay()
        assert result.get(timeout=30) == 3
    assert "does not accept the result 2" in result.info["errors"][-1]


def test_a_call_may_bring_its_own_policy(app: Taskline) -> None:
    runs: list[str] = []

    @app.task(retry={"max": 9, "wait": 0})
    def fail(name: str) -> None:
        runs.append(name)
        raise OSError(name)

    with working(app):
        for name, policy in (("once", 0), ("twice", {"max": 1, "wait": 0})):
            with pytest.raises(OSError, match=name):
                fail.options(retry=policy).delay(name).get(timeout=30)
    assert runs == ["once", "twice", "twice"]


def test_a_policy_that_fails_is_told_with_the_task_it_judged(memory_app: Taskline) -> None:
    app = memory_app

    def broken(state: Any) -> bool:
        raise RuntimeError("the policy's own mistake")

    @app.task(retry={"retry": broken, "max": 3})
    def fail() -> None:
        raise OSError("down")

    with working(app):
        with pytest.raises(Exception, match="the policy's own mistake"):
            fail.delay().get(timeout=30)
        assert "retry policy" in only_letter(app).reason


def test_options_of_a_call_reach_the_task(app: Taskline) -> None:
    @app.task(bind=True, queue="one")
    def tell(task: Any, number: int = 0) -> list[Any]:
        request = task.request
        return [number, request.id, request.queue, request.priority, request.headers]

    @app.task(queue="two")
    def other() -> None: ...

    with working(app):
        result = tell.apply_async(
            (5,), queue="two", priority=8, task_id="my-own", headers={"tenant": "a"}
        )
        assert result.get(timeout=30) == [5, "my-own", "two", 8, {"tenant": "a"}]


def test_a_deadline_is_known_to_the_task(app: Taskline) -> None:
    @app.task(bind=True)
    def tell(task: Any) -> Any:
        return task.request.deadline

    with working(app):
        before = app.now()
        assert before + 40 < tell.options(timeout=50).delay().get(timeout=30) < app.now() + 51
        assert tell.delay().get(timeout=30) is None


def test_no_result_is_kept_with_a_ttl_of_nothing(app: Taskline) -> None:
    runs: list[int] = []

    @app.task(result_ttl=0)
    def quiet() -> int:
        runs.append(1)
        return 1

    with working(app):
        result = quiet.delay()
        until(lambda: runs and not in_broker(app))
    assert app.require_backend().fetch([result.id]) == {}
    with pytest.raises(NoResult, match="result_ttl=0"):
        result.get(timeout=1)


def test_without_a_backend_tasks_run_and_fail_all_the_same(make_app: Any) -> None:
    app = make_app(backend=None)
    runs: list[int] = []

    @app.task
    def run() -> Any:
        runs.append(1)
        return object()  # nobody writes it down

    @app.task
    def fail() -> None:
        raise ValueError("bad")

    with working(app):
        run.delay()
        fail.delay()
        letter = only_letter(app)
        until(lambda: not in_broker(app))
    assert runs == [1]
    assert letter.reason == "ValueError: bad"


def test_a_long_run_shows_that_it_has_started(app: Taskline) -> None:
    go: list[int] = []

    @app.task
    def slow() -> str:
        until(lambda: go)
        return "done"

    with working(app, grace=30, name="bench"):
        result = slow.delay()
        until(lambda: result.state == STARTED)
        assert result.info["worker"] == "bench"
        go.append(1)
        assert result.get(timeout=30) == "done"


def test_poison_is_told_with_its_reason(app: Taskline) -> None:
    @app.task
    def deadly() -> None:
        raise AssertionError("must not run")

    result = deadly.delay()
    for _ in range(2):
        [delivery] = app.transport.receive(["default"], 1, 60.0, 0.0, "dead-worker")
        assert app.transport.recover("dead-worker", [delivery.id]) == 1
    with working(app, max_deliveries=2):
        with pytest.raises(TaskPoisoned, match="died or lost its lease 2 times"):
            result.get(timeout=30)
        letter = only_letter(app)
    assert "max_deliveries=2" in letter.reason
    assert letter.deliveries == 3
