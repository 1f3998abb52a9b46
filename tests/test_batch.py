"""Many messages where a transport can have several sends under way: nothing is told too soon."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from uuid import RFC_4122, UUID

import pytest

from taskline import Middleware, Taskline, batch
from taskline.errors import InvalidArguments, TransportError
from taskline.message import Header, Message, new_id


class Line:
    """In the place of a transport's `begin_send`: the answers come when they are waited for."""

    def __init__(self) -> None:
        self.begun: list[Sequence[Message]] = []
        self.answered: list[Sequence[Message]] = []
        self.most = 0
        """Bytes under way at once."""
        self.refuses: set[int] = set()
        """Which calls, counted from 0."""

    def begin_send(self, messages: Sequence[Message]) -> Callable[[], None]:
        number = len(self.begun)
        self.begun.append(messages)
        answered = {id(each) for each in self.answered}
        under_way = [each for each in self.begun if id(each) not in answered]
        self.most = max(self.most, sum(len(m.frame) for each in under_way for m in each))

        def wait() -> None:
            self.answered.append(messages)
            if number in self.refuses:
                raise TransportError(f"call {number} is refused")

        return wait


@pytest.fixture
def line() -> Line:
    return Line()


@pytest.fixture
def app(line: Line, monkeypatch: pytest.MonkeyPatch) -> Iterator[Taskline]:
    app = Taskline("shop", broker=f"memory://{new_id()}")
    monkeypatch.setattr(app.transport, "begin_send", line.begin_send)
    yield app
    app.close()


@pytest.fixture
def double(app: Taskline) -> Any:
    @app.task(name="double")
    def double(number: int) -> int: ...

    return double


def ids(chunks: Sequence[Sequence[Message]]) -> list[str]:
    return [each.header.id for chunk in chunks for each in chunk]


def test_several_calls_are_under_way_and_all_are_waited_for(double: Any, line: Line) -> None:
    results = double.map(range(4500))
    assert [len(each) for each in line.begun] == [1000] * 4 + [500]
    assert line.most > 4 * sum(len(each.frame) for each in line.begun[0])
    assert ids(line.answered) == results.ids


def test_what_a_batch_has_sent_is_known_when_it_is_stored(app: Taskline, double: Any) -> None:
    def begin_send(messages: Sequence[Message]) -> Callable[[], None]:
        seen.append(len(results))
        return lambda: seen.append(len(results))

    seen: list[int] = []
    app.transport.begin_send = begin_send  # type: ignore[method-assign]
    with app.batch() as results:
        for number in range(2500):
            double.delay(number)
    assert seen == [0, 0, 0, 0, 1000, 2000]
    assert len(results) == 2500


@pytest.mark.parametrize("size", [10, 5000])
def test_memory_is_bounded(double: Any, app: Taskline, line: Line, size: int) -> None:
    """Whatever the size of a message, and however many there are."""

    @app.task(name="print")
    def printed(text: str) -> None: ...

    printed.map("x" * size for _ in range(30_000))
    assert len(line.begun) == len(line.answered) == 30
    assert line.most <= batch.AHEAD + sum(len(each.frame) for each in line.begun[0])


@pytest.mark.parametrize("refused", range(5))
def test_one_call_that_is_refused(app: Taskline, double: Any, line: Line, refused: int) -> None:
    """Then `results` has what was stored, and what was under way is no more."""
    line.refuses = {refused}
    with pytest.raises(TransportError, match=f"call {refused} is refused"), app.batch() as results:
        double.map(range(5000))
    assert line.answered == line.begun
    assert results.ids == ids([each for n, each in enumerate(line.begun) if n != refused])


def test_the_first_refusal_is_told(double: Any, line: Line) -> None:
    line.refuses = {1, 3}
    with pytest.raises(TransportError, match="call 1 is refused"):
        double.map(range(5000))
    assert line.answered == line.begun


def test_nothing_more_is_sent_when_one_was_refused(
    double: Any, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "AHEAD", 0)
    line.refuses = {1}
    with pytest.raises(TransportError):
        double.map(range(5000))
    assert len(line.begun) == 2


def test_the_thousands_before_a_wrong_item_have_been_sent(double: Any, line: Line) -> None:
    with pytest.raises(InvalidArguments, match="item 2500"):
        double.map("wrong" if number == 2500 else number for number in range(5000))
    assert [len(each) for each in line.answered] == [1000, 1000]


def test_hooks_are_told_when_it_is_stored(app: Taskline, double: Any, line: Line) -> None:
    told: list[tuple[int, int]] = []

    class Telling(Middleware):
        def after_send(self, headers: Sequence[Header]) -> None:
            told.append((len(headers), len(line.answered)))

    app.use(Telling())
    double.map(range(2500))
    assert told == [(1000, 1), (1000, 2), (500, 3)]


# What is in them


def test_a_message_that_waits_costs_the_garbage_collector_nothing(app: Taskline) -> None:
    @app.task(name="double")
    def double(number: int) -> int: ...

    message = double._message((1,), {})
    assert not gc.is_tracked(message)
    assert not gc.is_tracked(message.header)


def test_ids_are_uuids_of_version_7_that_differ() -> None:
    made = [new_id() for _ in range(2000)]
    assert len(set(made)) == 2000
    for each in made:
        found = UUID(each)
        assert (found.hex, found.version, found.variant) == (each, 7, RFC_4122)
    assert len({each[12:] for each in made}) == 2000, "random in all but the time"
    assert made[0][:12] <= made[-1][:12]


@pytest.mark.skipif(not hasattr(os, "fork") or sys.platform == "darwin", reason="forks")
def test_a_child_does_not_make_the_ids_of_its_parent() -> None:
    new_id()  # so that there are random digits left
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writing, "".join(new_id() for _ in range(100)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, encoding="ascii") as pipe:
        theirs = pipe.read()
    os.waitpid(child, 0)
    ours = {new_id()[12:] for _ in range(100)}
    assert len(theirs) == 3200
    assert not ours & {theirs[n + 12 : n + 32] for n in range(0, 3200, 32)}
