"""What a task is given beside its arguments: how it is declared, and what a call of it does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Optional

import pytest

from taskline import ConfigurationError, Depends, InvalidArguments, Secret, Taskline

if TYPE_CHECKING:
    from nowhere import Engine

events: list[str] = []


class Session:
    def __init__(self, name: str = "real") -> None:
        self.name = name


def open_session() -> Iterator[Session]:
    events.append("open session")
    yield Session()
    events.append("close session")


def until(condition: Callable[[], object]) -> None:
    by = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < by
        time.sleep(0.001)


SessionDep = Annotated[Session, Depends(open_session)]


def url() -> str:
    events.append("url")
    return "db://"


def open_pool(at: Annotated[str, Depends(url)], size: int = 4) -> Iterator[str]:
    events.append("open pool")
    yield f"{at}{size}"
    events.append("close pool")


@contextlib.contextmanager
def open_store(pool: Annotated[str, Depends(open_pool)]) -> Iterator[str]:
    events.append("open store")
    yield f"store of {pool}"
    events.append("close store")


def begin(session: SessionDep) -> Iterator[str]:
    events.append("begin")
    try:
        yield f"transaction of {session.name}"
    except ValueError:
        events.append("roll back")
        raise
    events.append("commit")


async def open_client() -> AsyncIterator[str]:
    events.append("open client")
    yield "client"
    events.append("close client")


async def a_value() -> int:
    return 42


@pytest.fixture
def app() -> Iterator[Taskline]:
    events.clear()
    with Taskline("test", broker="memory://depends", backend=None, eager=True) as app:
        yield app


def signature_of(app: Taskline, function: Callable[..., Any], **options: Any) -> str:
    return str(app.task(**options)(function).signature)


def test_they_are_no_part_of_the_calls_signature(app: Taskline) -> None:
    def by_note(order: int, session: Annotated[Session, Depends(open_session)]) -> str: ...
    def by_alias(session: SessionDep, order: int = 1) -> None: ...
    def by_default(order: int, session: Session = Depends(open_session)) -> None: ...
    def by_both(order: int, *, session: SessionDep = Depends()) -> None: ...
    def for_checkers(engine: Annotated[Engine, Depends(open_session)]) -> None: ...
    def or_none(engine: Annotated[Optional[Engine], Depends(open_session)]) -> None: ...  # noqa: UP045

    assert signature_of(app, by_note) == "(order: int) -> str"
    assert signature_of(app, by_alias) == "(order: int = 1) -> None"
    assert signature_of(app, by_default) == "(order: int) -> None"
    assert signature_of(app, by_both) == "(order: int) -> None"
    assert signature_of(app, for_checkers) == "() -> None"
    assert signature_of(app, or_none) == "() -> None"


def test_other_annotations_are_left_alone(app: Taskline) -> None:
    def plain(password: Annotated[str, Secret], engine: Engine, other: os.PathLike[str]) -> None:
        pass

    assert not app.task(plain).signature.depends


def test_callers_cannot_give_them(app: Taskline) -> None:
    @app.task
    def send(order: int, session: SessionDep, **more: int) -> str:
        return f"{order} {session.name} {more}"

    assert send.delay(1, x=2).get() == "1 real {'x': 2}"
    with pytest.raises(InvalidArguments):
        send.delay(1, session="x")
    with pytest.raises(InvalidArguments):
        send.delay(1, Session())


def test_they_are_opened_once_and_closed_in_order(app: Taskline) -> None:
    @app.task
    def keep(store: Annotated[str, Depends(open_store)], session: SessionDep, what: str) -> str:
        return f"{what} in the {store}, {session.name}"

    assert keep.delay("a").get() == "a in the store of db://4, real"
    assert keep("b") == "b in the store of db://4, real"
    assert events == ["url", "open pool", "open store", "open session"]
    app.close()
    assert events[4:] == ["close session", "close store", "close pool"]
    keep.delay("c").get()
    assert events[7:] == ["url", "open pool", "open store", "open session"]


def test_those_of_a_run_are_closed_with_it_and_see_its_failure(app: Taskline) -> None:
    TransactionDep = Annotated[str, Depends(begin, scope="task")]  # noqa: N806

    def write(fail: bool, transaction: Any, again: Any) -> str:
        if fail:
            raise ValueError("no")
        assert transaction is again
        return str(transaction)

    write.__annotations__.update(transaction=TransactionDep, again=TransactionDep)
    task = app.task(write)
    assert task.delay(False).get() == "transaction of real"
    assert task.delay(False).get() == "transaction of real"
    assert events == ["open session", "begin", "commit", "begin", "commit"]
    with pytest.raises(ValueError, match="no"):
        task.delay(True).get()
    assert events[5:] == ["begin", "roll back"]


def hushed() -> Iterator[int]:
    with contextlib.suppress(ValueError):
        yield 1


def test_a_failure_cannot_be_hidden_by_what_is_closed_after_it(app: Taskline) -> None:
    @app.task
    def fail(one: Annotated[int, Depends(hushed, scope="task")]) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail.delay().get()


def broken() -> Iterator[int]:
    raise LookupError("the database is away")
    yield


def test_the_failure_of_an_opener_is_the_tasks_and_it_is_opened_again(app: Taskline) -> None:
    tries = []

    def flaky() -> int:
        tries.append(1)
        if len(tries) < 3:
            raise LookupError("the database is away")
        return len(tries)

    @app.task(retry=2)
    def count(number: int = Depends(flaky)) -> int:
        return number

    @app.task
    def never(number: Annotated[int, Depends(broken)]) -> None: ...

    assert count.delay().get() == 3
    result = never.delay()
    with pytest.raises(LookupError, match="the database is away"):
        result.get()
    if hasattr(BaseException, "add_note"):
        assert "while broken opened" in str(result.traceback)


def test_threads_open_it_once(app: Taskline) -> None:
    opened, called, values = [], [], []
    release = threading.Event()

    def slow() -> int:
        opened.append(1)
        assert release.wait(timeout=30)
        return len(opened)

    @app.task
    def get(number: int = Depends(slow)) -> int:
        return number

    def call() -> None:
        called.append(1)
        values.append(get())

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: len(called) == 4 and opened)
    release.set()
    for thread in threads:
        thread.join(timeout=30)
    assert values == [1, 1, 1, 1]


def test_coroutines_and_generators_of_all_kinds(app: Taskline) -> None:
    @app.task
    async def fetch(
        path: str,
        client: Annotated[str, Depends(open_client)],
        number: Annotated[int, Depends(a_value)],
        store: Annotated[str, Depends(open_store)],
    ) -> str:
        return f"{client} {path} {number} {store}"

    @app.task
    def count(store: Annotated[str, Depends(open_store)], to: int) -> Iterator[str]:
        for number in range(to):
            yield f"{number} of {store}"
        events.append("counted")

    @app.task
    async def acount(client: Annotated[str, Depends(open_client)], to: int) -> AsyncIterator[str]:
        for number in range(to):
            yield f"{number} of {client}"
        events.append("counted")

    assert fetch.delay("/").get() == "client / 42 store of db://4"
    # In a loop that ends with the call, what is async is closed with it.
    assert events == ["open client", "url", "open pool", "open store", "close client"]
    assert asyncio.run(fetch("/", client="mine")) == "mine / 42 store of db://4"
    events.clear()
    assert list(count(to=2)) == ["0 of store of db://4", "1 of store of db://4"]

    async def every() -> list[str]:
        return [item async for item in acount(to=2)]

    assert asyncio.run(every()) == ["0 of client", "1 of client"]
    assert events == ["counted", "open client", "counted", "close client"]


def test_batches(app: Taskline) -> None:
    @app.task(batch=10)
    def index(numbers: list[int], session: SessionDep) -> list[str]:
        return [f"{session.name} {number}" for number in numbers]

    assert str(index.signature) == "(numbers)"
    assert index.delay(1).get() == "real 1"


def test_a_bound_task_gets_itself_first(app: Taskline) -> None:
    @app.task(bind=True)
    def name(self: Any, session: SessionDep, suffix: str) -> str:
        return f"{self.name} {session.name} {suffix}"

    assert name.delay("x").get() == f"{name.name} real x"


def test_override_and_plain_calls(app: Taskline) -> None:
    def fake() -> Iterator[Session]:
        events.append("open fake")
        yield Session("fake")
        events.append("close fake")

    @app.task
    def name(session: SessionDep) -> str:
        return session.name

    assert name.delay().get() == "real"
    with app.override(open_session, fake):
        assert name.delay().get() == "fake"
        assert name() == "fake"
        with app.override(url, lambda: "other"):
            assert name() == "fake"
    assert events == ["open session", "open fake", "open fake", "close fake", "close fake"]
    assert name() == "real"
    assert name(session=Session("mine")) == "mine"


def test_an_async_stand_in_for_a_def_is_refused(app: Taskline) -> None:
    @app.task
    def name(session: SessionDep) -> str:
        return session.name

    with app.override(open_session, a_value), pytest.raises(ConfigurationError, match="is async"):
        name()


def needs_argument(host: str) -> str:
    return host


def once(session: Annotated[str, Depends(begin, scope="task")]) -> str:
    return session


def waits(client: Annotated[str, Depends(open_client)]) -> str:
    return client


def test_what_cannot_be_opened_is_refused_where_it_is_declared(app: Taskline) -> None:
    def nobody(host: Annotated[str, Depends(needs_argument)]) -> None: ...
    def mixed(value: Annotated[str, Depends(once)]) -> None: ...
    def indirect(value: Annotated[str, Depends(waits)]) -> None: ...
    def direct(value: Annotated[str, Depends(open_client)]) -> None: ...
    async def through_def(value: Annotated[str, Depends(waits)]) -> None: ...
    def only_positional(value: SessionDep, /) -> None: ...
    def star(*values: SessionDep) -> None: ...
    def no_opener(value: Annotated[Session, Depends()]) -> None: ...
    def two(value: SessionDep = Depends(url)) -> None: ...
    def missing(value: Annotated[Session, Depends(nowhere)]) -> None: ...  # noqa: F821
    def made(value: Annotated[Session, Depends(nowhere())]) -> None: ...  # noqa: F821

    for function, message in (
        (nobody, "needs_argument opens a dependency, and nobody gives it host"),
        (mixed, 'once is opened once in a process, and its session for each task.*scope="task"'),
        (direct, "direct is a def, and open_client, which it depends on, is async"),
        (indirect, "waits is a def, and open_client, which it depends on, is async"),
        (through_def, "waits is a def, and open_client, which it depends on, is async"),
        (only_positional, "value is given by keyword"),
        (star, "values is given by keyword"),
        (no_opener, "does not say who opens it"),
        (two, "value has two openers, Depends.open_session. and Depends.url."),
        (made, "value cannot be read: .*: nowhere, which is not known here: it cannot be called"),
        (missing, "Depends.nowhere, which is not known here.: give the function that opens it"),
    ):
        with pytest.raises(ConfigurationError, match=message) as caught:
            app.task(function)
        assert "\n" not in str(caught.value)


def test_a_ring_is_refused(app: Taskline) -> None:
    def first(value: int = 0) -> int:
        return value

    def second(value: int = Depends(first)) -> int:
        return value

    first.__defaults__ = (Depends(second),)

    def task(value: int = Depends(first)) -> None: ...

    with pytest.raises(ConfigurationError, match="ring"):
        app.task(task)


@pytest.mark.parametrize(
    ("given", "message"), [((Session(),), "give the function"), (([],), "give")]
)
def test_depends_takes_a_function(given: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Depends(*given)


def test_depends_has_two_scopes() -> None:
    with pytest.raises(ConfigurationError, match="choose 'process' or 'task'"):
        Depends(url, scope="request")


def test_nothing_that_is_open_goes_through_a_fork(app: Taskline) -> None:
    @app.task
    def pid(session: SessionDep) -> str:
        return session.name

    pid()
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            events.clear()
            pid()
            os._exit(0 if events == ["open session"] else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_tasks_without_pay_nothing(app: Taskline) -> None:
    def plain(number: int) -> int:
        return number

    task = app.task(plain)
    assert task.body is plain
    assert not app.resources._values
