"""Middleware: what is called, when, in which order, and what its failures do."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest

from taskline import (
    ConfigurationError,
    Ignore,
    Middleware,
    Reject,
    Retry,
    Taskline,
    TaskRejected,
    current_task,
)
from taskline.hooks import EVENTS, Hooks


class Diary(Middleware):
    """Notes every call that its class overrides."""

    def __init__(self, name: str, notes: list[Any]) -> None:
        self.name = name
        self.notes = notes


def noting(name: str, notes: list[Any], *events: str) -> Middleware:
    """A middleware that notes (name, event, arguments) for some events."""

    def note(event: str) -> Callable[..., None]:
        return lambda self, *args: notes.append((name, event, *args))

    return type("Noting", (Middleware,), {event: note(event) for event in events})()  # type: ignore[no-any-return]


@pytest.fixture
def app() -> Taskline:
    return Taskline("hooks", broker="memory://", eager=True)


def test_all_events_are_known() -> None:
    assert set(EVENTS) == {
        *("before_send", "after_send", "before_receive", "after_receive", "starvation"),
        *("before_run", "after_run", "success", "failure", "retry", "timeout", "dead_letter"),
        *("worker_start", "worker_stop", "process_start", "process_stop"),
    }


def test_befores_and_starts_go_inwards_and_all_others_outwards() -> None:
    notes: list[Any] = []
    hooks = Hooks([noting("outer", notes, *EVENTS), noting("inner", notes, *EVENTS)])
    for event in EVENTS:
        hooks.call(event)
        order = [name for name, _ in notes]
        inwards = event.startswith("before") or event.endswith("start")
        assert order == (["outer", "inner"] if inwards else ["inner", "outer"]), event
        notes.clear()


def test_what_nobody_overrides_is_empty() -> None:
    hooks = Hooks([noting("a", [], "success")])
    assert [event for event in EVENTS if hooks[event]] == ["success"]
    assert (hooks.of_runs, hooks.of_sends, hooks.of_receives) == (True, False, False)
    assert not Hooks([Middleware()]).of_runs


def test_without_middleware_tasks_have_no_hooks(app: Taskline) -> None:
    @app.task
    def plain() -> None: ...

    assert plain.hooks is None
    app.use(noting("a", [], "after_send"))
    assert plain.hooks is None, "sending is not running"
    app.use(noting("b", [], "success"))
    assert plain.hooks is not None


def test_a_task_has_its_own_inside_the_apps(app: Taskline) -> None:
    notes: list[Any] = []
    own = noting("own", notes, "before_run", "after_run")

    @app.task(middleware=[own])
    def work() -> None:
        notes.append("work")

    @app.task
    def other() -> None: ...

    app.use(noting("app", notes, "before_run", "after_run"))
    work.delay()
    events = [note if isinstance(note, str) else note[:2] for note in notes]
    assert events == [
        *[("app", "before_run"), ("own", "before_run"), "work"],
        *[("own", "after_run"), ("app", "after_run")],
    ]
    notes.clear()
    other.delay()
    assert {note[0] for note in notes} == {"app"}


def test_before_send_may_add_headers_and_refuse(app: Taskline) -> None:
    class Stamp(Middleware):
        def before_send(self, header: Any, args: Any, kwargs: Any) -> None:
            if args == ("forbidden",):
                raise ValueError("not this one")
            header.headers["tenant"] = "acme"
            header.trace = {"traceparent": "00-1-2-01"}

    app.use(Stamp())

    @app.task
    def tell(word: str) -> Any:
        return current_task.headers

    assert tell.delay("word").get() == {"tenant": "acme"}
    assert tell.options(headers={"a": 1}).delay("x").get() == {"a": 1, "tenant": "acme"}
    with pytest.raises(ValueError, match="not this one"):
        tell.delay("forbidden")


def test_after_send_is_told_of_what_is_stored_and_of_no_more() -> None:
    sent: list[list[str]] = []

    class Count(Middleware):
        def after_send(self, headers: Any) -> None:
            sent.append([header.id for header in headers])

    with Taskline("sends", broker="memory://test-hooks-sends") as app:
        app.use(Count())

        @app.task
        def work(number: int) -> None: ...

        first = work.delay(1)
        assert sent == [[first.id]]
        with app.batch() as results:
            work.delay(2)
            work.delay(3)
            assert len(sent) == 1, "a batch is sent at its end"
        assert sent[1] == [result.id for result in results]
        app.transport.close()
        app.transport.send = _refuse  # type: ignore[method-assign]
        with pytest.raises(OSError, match="no broker"):
            work.delay(4)
        assert len(sent) == 2


def _refuse(messages: Any) -> None:
    raise OSError("no broker")


def test_coroutines_are_run_to_their_end(app: Taskline) -> None:
    notes: list[Any] = []

    class Async(Middleware):
        async def before_run(self, request: Any) -> None:
            await asyncio.sleep(0)
            notes.append(("before", request.id, current_task.id))

        async def success(self, request: Any, value: Any) -> None:
            await asyncio.sleep(0)
            notes.append(("success", current_task.id, value))

    app.use(Async())

    @app.task
    def work() -> int:
        return 7

    sent = work.delay().id
    assert notes == [("before", sent, sent), ("success", sent, 7)]
    notes.clear()

    async def main() -> str:
        return (await work.adelay()).id

    sent = asyncio.run(main())
    assert notes == [("before", sent, sent), ("success", sent, 7)]


@pytest.mark.parametrize(
    ("raised", "expected"),
    [(Ignore(), None), (Reject("no"), TaskRejected), (OSError("x"), OSError)],
)
def test_what_before_run_raises_is_the_tasks(
    app: Taskline, raised: Exception, expected: Any
) -> None:
    runs: list[int] = []

    class Gate(Middleware):
        def before_run(self, request: Any) -> None:
            raise raised

    app.use(Gate())

    @app.task
    def work() -> int:
        runs.append(1)
        return 1

    result = work.delay()
    if expected is None:
        assert result.get() is None
    else:
        with pytest.raises(expected):
            result.get()
    assert runs == []


def test_what_others_raise_is_logged_and_changes_nothing(
    app: Taskline, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Middleware):
        def after_run(self, request: Any, error: Any) -> None:
            raise RuntimeError("broken diary")

    notes: list[Any] = []
    app.use(noting("a", notes, "after_run", "success"), Broken())

    @app.task
    def work() -> int:
        return 1

    with caplog.at_level(logging.ERROR, "taskline.hooks"):
        assert work.delay().get() == 1
    assert [note[1] for note in notes] == ["after_run", "success"]
    assert "Broken.after_run failed" in caplog.text
    assert "broken diary" in caplog.text


def test_how_a_run_ended(app: Taskline) -> None:
    notes: list[Any] = []
    app.use(noting("", notes, "after_run", "success", "failure", "retry"))

    @app.task(retry={"max": 1, "wait": 5})
    def work(how: str) -> str:
        if how == "again" and current_task.attempt == 1:
            raise Retry("later", after=3)
        if how == "never":
            raise KeyError(how)
        return how

    work.delay("again")
    assert [note[1] for note in notes] == ["after_run", "retry", "after_run", "success"]
    assert notes[1][4] == 3
    notes.clear()
    work.delay("never")
    assert [note[1] for note in notes] == ["after_run", "retry", "after_run", "failure"]
    assert isinstance(notes[3][3], KeyError)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Diary, "is a class: give an object of it, Diary()"),
        ("log", "'log' is no middleware: inherit from taskline.Middleware"),
    ],
)
def test_what_is_no_middleware_is_refused(app: Taskline, given: Any, message: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        app.use(given)
    assert message in str(error.value)
    with pytest.raises(ConfigurationError):
        app.task(middleware=[given])(lambda: None)


def test_a_method_that_cannot_be_called_is_refused(app: Taskline) -> None:
    class Narrow(Middleware):
        def after_run(self, request: Any) -> None: ...  # type: ignore[override]

    with pytest.raises(
        ConfigurationError, match=r"Narrow.after_run is called with \(request, error"
    ):
        app.use(Narrow())


def test_a_method_with_almost_the_name_of_an_event_is_told_of(
    app: Taskline, caplog: pytest.LogCaptureFixture
) -> None:
    class Metrics(Middleware):
        def on_success(self, request: Any, value: Any) -> None: ...

        def failure(self, request: Any, error: BaseException) -> None: ...

        def failures(self) -> int:
            return 0

        def table(self) -> None: ...

    app.use(Metrics())
    [record] = caplog.records
    assert record.getMessage().endswith(
        "Metrics.on_success is never called: there is no such event; did you mean success?"
    )
