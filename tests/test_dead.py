from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from oneshot import work

from taskline import SerializationError, Taskline, current_task
from taskline.clock import ManualClock
from taskline.message import DeadLetter, Message, new_id


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1000.0)


@pytest.fixture(params=["memory", "sqlite"])
def app(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> Iterator[Taskline]:
    url = f"memory://{new_id()}" if request.param == "memory" else f"sqlite:///{tmp_path}/shop.db"
    with Taskline("shop", broker=url, backend=url, clock=clock) as app:

        @app.task(name="pay")
        def pay(order: int, note: str = "") -> int:
            raise OSError("busy")

        @app.task(name="ship", queue="post")
        def ship(order: int) -> int:
            raise OSError("closed")

        yield app


def bury(app: Taskline, frame: bytes, id: str) -> DeadLetter:
    """Put bytes that are no message among the dead letters."""
    app.send_task("pay", [1], task_id=id)
    [delivery] = app.transport.receive(["default"], 1, 30.0, 0.0, "x")
    letter = DeadLetter(id=id, queue="default", reason="no message", at=app.now(), frame=frame)
    app.transport.bury([(delivery, letter)])
    return letter


def test_find_filters(app: Taskline, clock: ManualClock) -> None:
    app.send_task("pay", [1])
    app.send_task("ship", [2])
    work(app, "default", "post")
    clock.advance(100)
    app.send_task("pay", [3])
    work(app)
    assert len(list(app.dead.find())) == 3
    assert [letter.task for letter in app.dead.find(queue="post")] == ["ship"]
    assert len(list(app.dead.find(task="pay"))) == 2
    assert len(list(app.dead.find(reason="FAIL"))) == 3
    assert list(app.dead.find(reason="poison")) == []
    assert len(list(app.dead.find(since=1050.0))) == 1
    assert len(list(app.dead.find(before=1050.0))) == 2
    assert list(app.dead.find(since=1050.0, task="ship")) == []


def test_many_are_found_requeued_and_purged_while_they_are_read(app: Taskline) -> None:
    app.tasks["pay"].map(range(450))
    work(app)
    assert len(list(app.dead.find())) == 450
    sent = app.dead.requeue(app.dead.find())
    assert len(sent) == len(set(sent)) == 450
    assert list(app.dead.find()) == []
    assert work(app) == 450
    assert app.dead.purge(app.dead.find()) == 450
    assert app.dead.purge(app.dead.find()) == 0


def test_requeue_takes_ids_and_letters(app: Taskline) -> None:
    first, second = app.send_task("pay", [1]), app.send_task("pay", [2])
    work(app)
    assert app.dead.requeue([first.id, "nowhere"]) == [first.id]
    [letter] = app.dead.find()
    assert app.dead.requeue([letter]) == [second.id]
    assert app.dead.requeue([letter]) == []


def test_a_requeued_task_waits_anew_and_its_new_outcome_stays(app: Taskline) -> None:
    result = app.send_task("pay", [1])
    work(app)
    assert result.failed()
    app.dead.requeue(app.dead.find())
    again = app.AsyncResult(result.id)
    assert again.state == "PENDING"
    work(app)
    assert again.failed()
    assert again.info["deliveries"] == 2


def test_a_run_that_was_faster_than_the_requeue_keeps_its_outcome(
    app: Taskline, monkeypatch: pytest.MonkeyPatch
) -> None:
    @app.task(name="heal")
    def heal() -> str:
        if current_task.deliveries == 1:
            raise OSError("busy")
        return "well"

    result = heal.delay()
    work(app)
    real = app.transport.requeue

    def requeue(messages: Sequence[Message]) -> list[str]:
        sent = real(messages)
        work(app)
        return sent

    monkeypatch.setattr(app.transport, "requeue", requeue)
    app.dead.requeue(app.dead.find())
    assert app.AsyncResult(result.id).get(timeout=0) == "well"


def test_letters_that_come_while_others_are_read_repeat_none(app: Taskline) -> None:
    pay = app.tasks["pay"]
    pay.map(range(250))
    work(app)
    seen: list[str] = []
    for letter in app.dead.find():
        seen.append(letter.id)
        if len(seen) == 50:
            pay.map(range(7))
            work(app)
    assert len(seen) == len(set(seen)) == 250


def test_an_expiry_that_has_passed_does_not_hinder(app: Taskline, clock: ManualClock) -> None:
    app.send_task("pay", [1], expires=50)
    app.send_task("pay", [2], expires=500)
    work(app)
    clock.advance(100)
    app.dead.requeue(app.dead.find())
    kept = [app.codec.open(each.frame)[0].expires for each in app.transport.peek("default")]
    assert sorted(kept, key=str) == [1500.0, None]


def test_describe_shows_the_call(app: Taskline) -> None:
    result = app.send_task("pay", [1], {"note": "n"}, headers={"tenant": "x"})
    work(app)
    [letter] = app.dead.find()
    shown = app.dead.describe(letter)
    assert (shown["id"], shown["task"], shown["queue"]) == (result.id, "pay", "default")
    assert (shown["args"], shown["kwargs"]) == ([1], {"note": "n"})
    assert (shown["headers"], shown["sent"]) == ({"tenant": "x"}, 1000.0)
    assert shown["reason"] == "failed"
    assert shown["size"] == len(letter.frame)
    assert "frame" not in shown
    assert "unreadable" not in shown


def test_what_cannot_be_read_stays_and_says_why(app: Taskline) -> None:
    letter = bury(app, b"\xffnonsense", "bad")
    shown = app.dead.describe(letter)
    assert "not a Taskline message" in shown["unreadable"]
    assert "args" not in shown
    assert app.dead.requeue(app.dead.find()) == []
    assert len(list(app.dead.find())) == 1
    assert app.dead.purge(["bad"]) == 1


def test_to_requeue_what_cannot_be_read_by_its_result_tells_why(app: Taskline) -> None:
    bury(app, b"\xffnonsense", "bad")
    with pytest.raises(SerializationError, match="not a Taskline message"):
        app.AsyncResult("bad").requeue()


def test_a_changed_body_shape_is_unreadable_too(app: Taskline) -> None:
    letter = bury(app, b'{"v":1,"id":"b","task":"t","queue":"q","sent":1}\n{"a":1}', "odd")
    assert "[arguments, keyword arguments]" in app.dead.describe(letter)["unreadable"]
