from __future__ import annotations

import asyncio
import functools
import pickle
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timezone
from typing import Any

import pytest

from taskline import (
    AsyncTask,
    ConfigurationError,
    InvalidArguments,
    SerializationError,
    Task,
    Taskline,
    TasklineError,
    current_task,
)
from taskline.clock import ManualClock
from taskline.message import Header, Message, new_id
from taskline.transports.base import Transport


class Recorder:
    """A transport that keeps what it is given."""

    def __init__(self) -> None:
        self.sent: list[list[Message]] = []

    def send(self, messages: list[Message]) -> None:
        self.sent.append(list(messages))

    begin_send = Transport.begin_send

    @property
    def headers(self) -> list[Header]:
        return [message.header for batch in self.sent for message in batch]


@pytest.fixture
def app() -> Taskline:
    return Taskline("shop", broker=f"memory://{new_id()}", clock=ManualClock(1000.0))


@pytest.fixture
def sent(app: Taskline) -> Recorder:
    recorder = Recorder()
    app._connections.current = recorder  # type: ignore[assignment]
    return recorder


def body(app: Taskline, message: Message) -> Any:
    return app.codec.arguments(*app.codec.open(message.frame))


# Declaring


def test_a_bare_decorator_takes_every_default(app: Taskline) -> None:
    @app.task
    def pay(order: int) -> int:
        """Take the money."""
        return order * 2

    assert isinstance(pay, Task)
    assert not pay.is_async
    assert pay.name == f"{__name__}.test_a_bare_decorator_takes_every_default.<locals>.pay"
    assert (pay.queue, pay.priority, pay.serializer) == ("default", 5, "json")
    assert (pay.ack, pay.bind, pay.policy) == ("late", False, None)
    assert (pay.timeout, pay.soft_timeout, pay.expires) == (None, None, None)
    assert pay.result_ttl == 86400
    assert (pay.__name__, pay.__doc__, pay.__wrapped__) == ("pay", "Take the money.", pay.function)
    assert pay(4) == 8
    assert app.tasks[pay.name] is pay


def test_options_and_the_apps_settings(app: Taskline) -> None:
    app.settings.queue, app.settings.timeout, app.settings.retry = "slow", 60.0, 2
    app.settings.expires = 600.0

    @app.task(
        name="pay", priority=9, soft_timeout=3, result_ttl=0, ack="early", serializer="msgpack"
    )
    def pay() -> None: ...

    assert (pay.name, pay.queue, pay.priority) == ("pay", "slow", 9)
    assert (pay.timeout, pay.soft_timeout, pay.expires, pay.result_ttl) == (60, 3, 600, 0)
    assert (pay.ack, pay.serializer) == ("early", "msgpack")
    assert pay.policy is not None


def test_in_a_script_the_app_names_the_module(app: Taskline) -> None:
    def pay() -> None: ...

    pay.__module__, pay.__qualname__ = "__main__", "pay"
    assert app.task(pay).name == "shop.pay"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"queu": "a"}, "unknown option 'queu': did you mean 'queue'"),
        ({"queue": "a,b"}, "queue='a,b'"),
        ({"priority": 11}, "priority=11"),
        ({"timeout": 0}, "timeout=0"),
        ({"timeout": 3, "soft_timeout": 4}, r"soft_timeout=4.0: must be less than timeout=3.0"),
        ({"expires": -1}, "expires=-1"),
        ({"result_ttl": "1h"}, "result_ttl='1h'"),
        ({"ack": "never"}, "ack='never': must be 'late' or 'early'"),
        ({"bind": 1}, "bind=1: must be True or False"),
        ({"serializer": "pickle"}, "serializer='pickle': accept has only json, msgpack"),
        ({"name": "a b"}, "name='a b'"),
        ({"name": ""}, "name=''"),
    ],
)
def test_a_wrong_option_is_refused_when_declared(
    app: Taskline, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigurationError, match=told):
        app.task(**options)(lambda: None)
    assert app.tasks == {}


def test_what_cannot_be_a_task_is_refused(app: Taskline) -> None:
    def generator() -> Iterator[int]:
        yield 1

    async def async_generator() -> AsyncIterator[int]:
        yield 1

    class Shop:
        def pay(self) -> None: ...

        @classmethod
        def make(cls) -> None: ...

    Shop.pay.__qualname__ = "Shop.pay"
    for function, told in [
        (generator, "a generator task: the app shop has no result backend"),
        (async_generator, "a generator task: the app shop has no result backend"),
        (lambda: None, "a lambda has no name: give the task one with name="),
        (functools.partial(print, 1), "has no name: give the task one with name="),
        (Shop.pay, "is a method, and its object does not travel"),
        (Shop.__dict__["make"], "cannot be a task: decorate a def"),
        (Shop, "cannot be a task"),
        (3, "3 cannot be a task"),
    ]:
        with pytest.raises(ConfigurationError, match=told):
            app.task(function)  # type: ignore[call-overload]
    assert app.tasks == {}


def test_a_task_is_decorated_once(app: Taskline) -> None:
    @app.task(name="pay")
    def pay() -> None: ...

    with pytest.raises(ConfigurationError, match="pay is a task already"):
        app.task(pay)


def test_named_lambdas_partials_and_static_methods_are_fine(app: Taskline) -> None:
    assert app.task(name="l")(lambda x: x + 1)(2) == 3
    assert app.task(name="p")(functools.partial(int, base=2))("11") == 3

    class Shop:
        @app.task(name="s")
        @staticmethod
        def pay(order: int) -> int:
            return order

    assert Shop.pay(3) == 3


def test_a_name_is_taken_once(app: Taskline) -> None:
    @app.task(name="pay")
    def pay() -> None: ...

    with pytest.raises(ConfigurationError, match=r"the name pay is taken by .*<locals>\.pay: give"):

        @app.task(name="pay")
        def other() -> None: ...

    with pytest.raises(ConfigurationError, match="the name pay is taken"):
        app.task(name="pay")(lambda: None)
    assert app.tasks["pay"] is pay


def test_a_reloaded_module_replaces_its_tasks(app: Taskline, tmp_path: Any) -> None:
    import importlib

    sys.path.insert(0, str(tmp_path))
    try:
        (tmp_path / "reloaded_tasks.py").write_text("def f():\n    return 1\n")
        module = importlib.import_module("reloaded_tasks")
        first = app.task(module.f)
        (tmp_path / "reloaded_tasks.py").write_text("# moved\n\ndef f():\n    return 22\n")
        module = importlib.reload(module)
        second = app.task(module.f)
        assert app.tasks["reloaded_tasks.f"] is second is not first
        assert second() == 22
    finally:
        sys.path.remove(str(tmp_path))
        del sys.modules["reloaded_tasks"]


def test_one_module_that_defines_a_name_twice_is_told(app: Taskline) -> None:
    namespace: dict[str, Any] = {"__name__": __name__}
    exec("def twice(): return 1\n\ndef keep(f=twice): return f\n\ndef twice(): return 2", namespace)
    app.task(namespace["keep"]())
    with pytest.raises(ConfigurationError, match="is taken by"):
        app.task(namespace["twice"])


def test_tasks_are_pickled_by_name(app: Taskline) -> None:
    assert pickle.loads(pickle.dumps(module_task)) is module_task


def test_attributes_of_the_function_do_not_become_the_tasks(app: Taskline) -> None:
    def pay() -> None: ...

    pay.queue = "of another library"  # type: ignore[attr-defined]
    assert app.task(pay).queue == "default"


def test_async_functions_make_async_tasks(app: Taskline) -> None:
    @app.task
    async def fetch(page: int) -> int:
        return page + 1

    assert isinstance(fetch, AsyncTask)
    assert fetch.is_async
    assert asyncio.run(fetch(1)) == 2


def test_a_bound_task_gets_itself(app: Taskline) -> None:
    @app.task(bind=True)
    def who(self: Task[..., Any], order: int) -> tuple[Any, int]:
        return self, order

    assert who(3) == (who, 3)
    with pytest.raises(TasklineError, match="only known inside a running task"):
        _ = who.request


# Sending


def test_delay_sends_one_message(app: Taskline, sent: Recorder) -> None:
    @app.task(name="pay", queue="mail", priority=7)
    def pay(order: int, *, note: str = "") -> str: ...

    result = pay.delay(4, note="x")
    [[message]] = sent.sent
    assert message.header == Header(
        v=1, id=result.id, task="pay", queue="mail", sent=1000.0, priority=7
    )
    assert body(app, message) == ([4], {"note": "x"})


def test_wrong_arguments_are_refused_with_the_signature(app: Taskline, sent: Recorder) -> None:
    @app.task(name="pay")
    def pay(order: int, *, note: str = "") -> str: ...

    for call in (
        lambda: pay.delay("4"),  # type: ignore[arg-type]
        lambda: pay.delay(),  # type: ignore[call-arg]
        lambda: pay.delay(1, 2),  # type: ignore[call-arg]
        lambda: pay.delay(1, nope=3),  # type: ignore[call-arg]
        lambda: pay.options(queue="q").delay("4"),  # type: ignore[arg-type]
        lambda: pay.apply_async(["4"]),
        lambda: app.send_task("pay", ["4"]),
    ):
        with pytest.raises(InvalidArguments, match=r"\(order: int, \*, note: str = ''\) -> str"):
            call()
    assert sent.sent == []


def test_what_cannot_be_encoded_is_refused(app: Taskline, sent: Recorder) -> None:
    @app.task(name="pay")
    def pay(order: Any) -> None: ...

    with pytest.raises(SerializationError, match="pay: cannot be written as json"):
        pay.delay(object())
    assert sent.sent == []


def test_options_are_checked_at_once_and_typed_as_delay(app: Taskline, sent: Recorder) -> None:
    @app.task(name="pay")
    def pay(order: int) -> None: ...

    with pytest.raises(ConfigurationError, match="priority=12"):
        pay.options(priority=12)
    later = pay.options(countdown=60, headers={"tenant": "x"}).options(queue="slow", retry=3)
    later.delay(1)
    later.delay(2)
    first, second = sent.headers
    assert (first.eta, first.queue, first.headers) == (1060.0, "slow", {"tenant": "x"})
    assert first.retry is not None
    assert first.id != second.id
    assert pay.queue == "default"


def test_apply_async_takes_every_option(app: Taskline, sent: Recorder) -> None:
    @app.task(name="pay")
    def pay(order: int, note: str = "") -> None: ...

    result = pay.apply_async(
        [1],
        {"note": "n"},
        eta=datetime(2030, 1, 1, tzinfo=timezone.utc),
        expires=datetime(2031, 1, 1, tzinfo=timezone.utc),
        queue="slow",
        priority=1,
        task_id="mine",
        headers={"a": 1},
        timeout=9,
        soft_timeout=8,
        result_ttl=7,
        serializer="msgpack",
    )
    [[message]] = sent.sent
    assert result.id == "mine"
    assert message.header == Header(
        v=1,
        id="mine",
        task="pay",
        queue="slow",
        sent=1000.0,
        serializer="msgpack",
        priority=1,
        eta=1893456000.0,
        expires=1924992000.0,
        timeout=9.0,
        soft_timeout=8.0,
        result_ttl=7.0,
        headers={"a": 1},
    )
    assert body(app, message) == ([1], {"note": "n"})


def test_a_tasks_own_expiry_and_result_ttl_travel(app: Taskline, sent: Recorder) -> None:
    @app.task(name="pay", expires=30, result_ttl=5, timeout=7)
    def pay() -> None: ...

    pay.delay()
    [header] = sent.headers
    assert (header.expires, header.result_ttl) == (1030.0, 5.0)
    assert header.timeout is None  # the worker has the task, and knows it


def test_send_task_needs_no_code(app: Taskline, sent: Recorder) -> None:
    app.settings.expires = 60.0
    result = app.send_task("far.away", (1,), {"x": 2}, queue="q", countdown=5)
    [header] = sent.headers
    assert (header.id, header.task, header.queue) == (result.id, "far.away", "q")
    assert (header.eta, header.expires) == (1005.0, 1060.0)
    with pytest.raises(ConfigurationError, match="task name=''"):
        app.send_task("")
    with pytest.raises(ConfigurationError, match="unknown option 'queu'"):
        app.send_task("far.away", queu="q")  # type: ignore[call-arg]


def test_send_task_keeps_what_the_task_declares(app: Taskline, sent: Recorder) -> None:
    @app.task(name="pay", queue="mail", priority=2)
    def pay() -> None: ...

    app.send_task("pay")
    [header] = sent.headers
    assert (header.queue, header.priority) == ("mail", 2)


def test_a_task_sent_by_a_task_knows_its_parent_and_root(app: Taskline, sent: Recorder) -> None:
    from taskline.context import Request, activate, deactivate

    @app.task(name="pay")
    def pay() -> None: ...

    first = Header(v=1, id="first", task="t", queue="q", sent=1.0)
    token = activate(Request(first))
    pay.delay()
    deactivate(token)
    [header] = sent.headers
    assert (header.parent, header.root) == ("first", "first")
    token = activate(Request(header))
    pay.delay()
    deactivate(token)
    grandchild = sent.headers[1]
    assert (grandchild.parent, grandchild.root) == (header.id, "first")
    pay.delay()
    assert (sent.headers[2].parent, sent.headers[2].root) == (None, None)
    assert not current_task


def test_adelay(app: Taskline, sent: Recorder) -> None:
    @app.task(name="pay")
    async def pay(order: int) -> int: ...

    result = asyncio.run(_await(pay.adelay(1)))
    [header] = sent.headers
    assert header.id == result.id
    with pytest.raises(InvalidArguments):
        asyncio.run(_await(pay.adelay("1")))  # type: ignore[arg-type]


async def _await(awaitable: Any) -> Any:
    return await awaitable


# Many


def test_map_sends_a_thousand_at_a_time_and_takes_no_more(app: Taskline, sent: Recorder) -> None:
    @app.task(name="pay")
    def pay(order: int) -> None: ...

    taken = 0

    def orders() -> Iterator[int]:
        nonlocal taken
        for order in range(2500):
            assert taken - sum(map(len, sent.sent)) < 1000
            taken += 1
            yield order

    results = pay.map(orders())
    assert [len(batch) for batch in sent.sent] == [1000, 1000, 500]
    assert results.ids == [header.id for header in sent.headers]
    assert len(results) == len(set(results.ids)) == 2500
    assert [body(app, message)[0] for message in sent.sent[2][:2]] == [[2000], [2001]]


def test_map_of_nothing_sends_nothing(app: Taskline, sent: Recorder) -> None:
    @app.task(name="pay")
    def pay(order: int) -> None: ...

    assert len(pay.map([])) == 0
    assert sent.sent == []


def test_map_takes_options_and_names_the_wrong_item(app: Taskline, sent: Recorder) -> None:
    @app.task(name="pay")
    def pay(order: int) -> None: ...

    pay.options(queue="slow", countdown=5).map([1, 2])
    assert [(h.queue, h.eta) for h in sent.headers] == [("slow", 1005.0)] * 2
    with pytest.raises(InvalidArguments, match="item 2: pay"):
        pay.map([1, 2, "three"])  # type: ignore[list-item]
    with pytest.raises(ConfigurationError, match="task_id names one task"):
        pay.options(task_id="mine").map([1, 2])


def test_map_names_the_item_that_cannot_be_encoded(app: Taskline, sent: Recorder) -> None:
    @app.task(name="pay")
    def pay(order: Any) -> None: ...

    with pytest.raises(SerializationError, match="item 1: pay: cannot be written"):
        pay.map([1, object()])


def test_starmap_takes_several_arguments(app: Taskline, sent: Recorder) -> None:
    @app.task(name="pay")
    def pay(order: int, note: str) -> None: ...

    pay.starmap([(1, "a"), [2, "b"]])
    assert [body(app, message)[0] for message in sent.sent[0]] == [[1, "a"], [2, "b"]]


# Cost


def test_delay_passes_at_most_twenty_calls_in_six_files(app: Taskline) -> None:
    """From `task.delay(1)` to the transport's `send`: what users pay before the driver."""
    app = Taskline("shop", broker="memory://")
    sent = Recorder()
    app._connections.current = sent  # type: ignore[assignment]

    @app.task(name="pay")
    def pay(order: int, note: str = "") -> None: ...

    pay.delay(1)
    calls: list[tuple[str, str]] = []

    def profile(frame: Any, event: str, arg: Any) -> None:
        if event == "call":
            calls.append((frame.f_code.co_filename, frame.f_code.co_name))

    sys.setprofile(profile)
    pay.delay(1)
    sys.setprofile(None)
    before = calls[: [name for _, name in calls].index("send", 1 + _index(calls, "app.py", "send"))]
    assert len(before) <= 20, before
    files = {path for path, _ in before}
    assert len(files) <= 6, files
    assert all("taskline" in path for path in files)


def _index(calls: list[tuple[str, str]], file: str, name: str) -> int:
    return next(i for i, (path, each) in enumerate(calls) if path.endswith(file) and each == name)


module_app = Taskline("module", broker="memory://module")


@module_app.task
def module_task() -> None: ...
