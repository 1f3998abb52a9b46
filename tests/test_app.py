from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from oneshot import work

import taskline
from taskline import ConfigurationError, NoResult, Taskline, TransportError
from taskline.message import Message, new_id
from taskline.transports.memory import MemoryTransport


@pytest.fixture
def app() -> Iterator[Taskline]:
    name = f"memory://{new_id()}"
    with Taskline("shop", broker=name, backend=name) as app:
        yield app


# Settings


def test_settings_from_arguments_environment_and_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKLINE_QUEUE", "env")
    monkeypatch.setenv("TASKLINE_LEASE", "12")
    app = Taskline("shop", broker=["memory://a"], queue="argument")
    assert app.settings.queue == "argument"
    assert app.settings.lease == 12
    assert app.settings.broker == ["memory://a"]
    assert app.settings.backend is None


def test_no_backend_can_be_asked_for_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKLINE_BACKEND", "memory://x")
    assert Taskline("shop").settings.backend == "memory://x"
    assert Taskline("shop", backend=None).settings.backend is None


def test_unknown_settings_are_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match="unknown setting 'retri': did you mean 'retry'"):
        Taskline("shop", retri=3)
    with pytest.raises(ConfigurationError, match="name='my shop'"):
        Taskline("my shop")


def test_from_a_mapping_and_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = Taskline.from_config({"name": "shop", "broker": "memory://a", "queue": "q"}, lease=9)
    assert (app.name, app.settings.queue, app.settings.lease) == ("shop", "q", 9)
    file = tmp_path / "shop.toml"
    file.write_text('name = "shop"\nqueue = "file"\npriority = 3\n')
    monkeypatch.setenv("TASKLINE_QUEUE", "env")
    app = Taskline.from_config(file, name="other")
    assert (app.name, app.settings.queue, app.settings.priority) == ("other", "env", 3)
    with pytest.raises(ConfigurationError, match="the app has no name"):
        Taskline.from_config({})


# Connections


def test_connections_open_at_first_use_and_stay(app: Taskline) -> None:
    wrong = Taskline("shop", broker="nonsense://x", backend="nonsense://x")
    with pytest.raises(ConfigurationError):
        _ = wrong.transport
    with pytest.raises(ConfigurationError):
        _ = wrong.backend
    assert app.transport is app.transport
    assert app.backend is app.backend
    assert app.waiters is app.waiters
    other = app.open_transport()
    assert other is not app.transport
    other.close()


def test_after_close_they_open_anew() -> None:
    name = f"memory://{new_id()}"
    app = Taskline("shop", broker=name, backend=name)
    with app:
        first, backend, waiters = app.transport, app.backend, app.waiters
    app.close()
    assert app.transport is not first
    assert app.backend is not backend
    assert app.waiters is not waiters
    app.close()


def test_threads_that_open_at_once_share_one(monkeypatch: pytest.MonkeyPatch) -> None:
    app = Taskline("shop", broker="memory://race")
    both = threading.Barrier(2, timeout=30)
    opened: list[MemoryTransport] = []
    closed: list[MemoryTransport] = []

    def slow_open() -> MemoryTransport:
        both.wait()
        transport = MemoryTransport("race")
        opened.append(transport)
        transport.close = lambda: closed.append(transport)  # type: ignore[method-assign]
        return transport

    monkeypatch.setattr(app._connections, "new_transport", slow_open)
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(app.transport)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found[0] is found[1]
    assert len(opened) == 2
    assert closed == [each for each in opened if each is not found[0]]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_opens_its_own(app: Taskline) -> None:
    transport, backend, waiters = app.transport, app.backend, app.waiters
    pid = os.fork()
    if pid == 0:
        new = (
            app.transport is not transport
            and app.backend is not backend
            and app.waiters is not waiters
        )
        os._exit(0 if new else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert app.transport is transport


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_both_sides_of_a_fork_send_and_read(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/shop.db"
    with Taskline("shop", broker=url, backend=url) as app:
        double = app.task(name="double")(lambda number: 2 * number)
        before = double.delay(1)
        assert before.state == "PENDING"
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                double.options(task_id="child").delay(2)
                work(app)
                status = 0 if before.get(timeout=30) == 2 else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert before.get(timeout=30) == 2
        assert app.AsyncResult("child").get(timeout=30) == 4
        assert double.delay(3).state == "PENDING"


def test_without_a_backend_reading_says_what_to_do() -> None:
    app = Taskline("shop", broker=f"memory://{new_id()}")

    @app.task
    def pay() -> None: ...

    result = pay.delay()
    for read in (
        lambda: result.get(timeout=1),
        lambda: result.state,
        lambda: result.forget(),
        lambda: result.revoke(),
        lambda: app.waiters,
    ):
        with pytest.raises(NoResult, match=r'no result backend: .*backend="sqlite:///'):
            read()


# Batches


def test_a_batch_leaves_in_one_call_when_the_block_ends(app: Taskline) -> None:
    @app.task(name="double")
    def double(number: int) -> int:
        return 2 * number

    with app.batch() as results:
        single = double.delay(1)
        double.map([2, 3])
        app.send_task("double", [4])
        assert app.transport.peek("default") == []
    assert [header.id for header in app.transport.peek("default")] == results.ids
    assert results[0] == single
    work(app)
    assert results.get(timeout=5) == [2, 4, 6, 8]


def test_a_batch_is_sent_in_thousands(app: Taskline, monkeypatch: pytest.MonkeyPatch) -> None:
    @app.task(name="double")
    def double(number: int) -> int: ...

    sizes: list[int] = []
    monkeypatch.setattr(app.transport, "send", lambda messages: sizes.append(len(messages)))
    with app.batch() as results:
        double.map(range(1500))
        for number in range(1000):
            double.delay(number)
    assert sizes == [1000, 1000, 500]
    assert len(results) == 2500


def test_a_block_that_raises_sends_nothing(app: Taskline) -> None:
    @app.task(name="double")
    def double(number: int) -> int: ...

    with suppress(ZeroDivisionError), app.batch() as results:
        double.delay(1)
        raise ZeroDivisionError
    assert app.transport.peek("default") == []
    assert len(results) == 0
    double.delay(2)
    assert len(app.transport.peek("default")) == 1


def test_nested_batches_leave_with_the_outer_one(
    app: Taskline, monkeypatch: pytest.MonkeyPatch
) -> None:
    @app.task(name="double")
    def double(number: int) -> int: ...

    sizes: list[int] = []
    monkeypatch.setattr(app.transport, "send", lambda messages: sizes.append(len(messages)))
    with app.batch() as outer:
        double.delay(1)
        with app.batch() as inner:
            double.delay(2)
        with suppress(ZeroDivisionError), app.batch():
            double.delay(3)
            raise ZeroDivisionError
        double.delay(4)
        assert sizes == []
    assert sizes == [3]
    assert outer.ids[1:2] == inner.ids


def test_a_batch_may_be_used_again_and_keeps_what_was_sent(
    app: Taskline, monkeypatch: pytest.MonkeyPatch
) -> None:
    @app.task(name="double")
    def double(number: int) -> int: ...

    batch = app.batch()
    with batch as first:
        double.delay(1)
    with batch as second:
        double.delay(2)
    assert len(first) == len(second) == 1

    def full(messages: list[Message]) -> None:
        if len(messages) < 1000:
            raise TransportError("disk full", retryable=False)

    monkeypatch.setattr(app.transport, "send", full)
    with pytest.raises(TransportError), app.batch() as results:
        double.map(range(1500))
    assert len(results) == 1000


def test_batches_of_two_apps_do_not_mix(app: Taskline) -> None:
    other = Taskline("other", broker=f"memory://{new_id()}")

    @app.task(name="double")
    def double(number: int) -> int: ...

    with app.batch() as mine, other.batch() as others:
        double.delay(1)
        other.send_task("x")
        assert app.transport.peek("default") == other.transport.peek("default") == []
    assert len(mine) == len(others) == 1
    assert len(app.transport.peek("default")) == len(other.transport.peek("default")) == 1


def test_other_threads_are_not_in_the_batch(app: Taskline) -> None:
    @app.task(name="double")
    def double(number: int) -> int: ...

    with app.batch() as results:
        thread = threading.Thread(target=double.delay, args=(1,))
        thread.start()
        thread.join(30)
        assert len(app.transport.peek("default")) == 1
    assert len(results) == 0


# Code that travels

KEY = {"accept": ["json", "cloudpickle"], "signing_key": "secret"}


def test_submit_sends_a_closure() -> None:
    name = f"memory://{new_id()}"
    app = Taskline("shop", broker=name, backend=name, **KEY)
    factor = 3

    async def coroutine(number: int) -> int:
        return number + factor

    result = app.submit(lambda number, *, plus: number * factor + plus, 5, plus=1)
    other = app.submit(coroutine, 1)
    unencodable = app.submit(lambda: {1, 2})
    work(app)
    assert result.get(timeout=5) == 16
    assert other.get(timeout=5) == 4
    assert unencodable.get(timeout=5) == {1, 2}


def test_submit_needs_cloudpickle_and_says_so(app: Taskline) -> None:
    with pytest.raises(ConfigurationError, match=r"accept=\['json', 'msgpack', 'cloudpickle'\]"):
        app.submit(print)
    with pytest.raises(ConfigurationError, match="signing_key"):
        Taskline("shop", accept=["json", "cloudpickle"])


# The package


def test_everything_public_is_there() -> None:
    assert all(hasattr(taskline, name) for name in taskline.__all__)
    assert taskline.__version__ == "0.1.0"


def test_importing_taskline_loads_nothing_heavy() -> None:
    heavy = {
        "asyncio",
        "click",
        "cloudpickle",
        "concurrent.futures",
        "ctypes",
        "dataclasses",
        "difflib",
        "hashlib",
        "http",
        "importlib.metadata",
        "kombu",
        "logging",
        "multiprocessing",
        "pickle",
        "pydantic",
        "rich",
        "socket",
        "sqlite3",
        "ssl",
        "subprocess",
        "tempfile",
        "tenacity",
        "tomllib",
        "unittest",
        "yaml",
    }
    code = (
        "import sys, msgspec; before = set(sys.modules); import taskline; "
        "print(*set(sys.modules) - before)"
    )
    root = Path(taskline.__file__).parents[1]
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True
    ).stdout.split()
    assert "taskline.app" in loaded
    assert heavy & set(loaded) == set()
