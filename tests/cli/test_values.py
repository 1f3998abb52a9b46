"""Words of a command line become arguments of a task."""

from __future__ import annotations

import datetime
import enum
import uuid
from typing import Any

import click
import pytest

from taskline import Taskline
from taskline.cli import values


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("1", 1),
        ("-1.5", -1.5),
        ("true", True),
        ("null", None),
        ('"1"', "1"),
        ("[1, 2]", [1, 2]),
        ('{"a": 1}', {"a": 1}),
        ("", ""),
        ("ann@example.org", "ann@example.org"),
        ("True", "True"),
        ("{oops", "{oops"),
        ("1_000", "1_000"),
        ("00", "00"),
        ("[" * 10_000, "[" * 10_000),
        ("\udcff", "\udcff"),
    ],
)
def test_a_word_is_json_or_else_text(word: str, value: Any) -> None:
    assert values.parse(word) == value


class Colour(enum.Enum):
    RED = "red"
    SEVEN = "7"


@pytest.mark.parametrize(
    ("word", "kind", "value"),
    [
        ("1", int, 1),
        ("1", str, "1"),
        ("true", str, "true"),
        ("null", str, "null"),
        ("null", str | None, None),
        ("1", int | str, 1),
        ('"quoted"', str, "quoted"),
        ("2030-01-31T12:00:00", datetime.datetime, "2030-01-31T12:00:00"),
        ("7", Colour, "7"),
        ("1", Any, 1),
        ("oops", int, "oops"),
        ("[1]", str, "[1]"),
        ('["a"]', list[str], ["a"]),
        ("1", object, 1),
    ],
)
def test_a_word_is_read_as_its_parameter_declares(word: str, kind: Any, value: Any) -> None:
    assert values.fit(word, kind) == value


def test_the_types_of_parameters() -> None:
    app = Taskline("shop", broker="memory://")

    @app.task
    def send(to: str, /, number: int, *rest: uuid.UUID, copy: bool = False, **other: float) -> None:
        """Has parameters of all kinds."""

    types = values.Types(send)
    assert [types.at(index) for index in range(4)] == [str, int, uuid.UUID, uuid.UUID]
    assert (types.of("number"), types.of("copy"), types.of("more")) == (int, bool, float)


def test_a_bound_tasks_first_parameter_is_not_an_argument() -> None:
    app = Taskline("shop", broker="memory://")

    @app.task(bind=True)
    def send(self: Any, to: str) -> None:
        """Has the task as first parameter."""

    assert values.Types(send).at(0) is str


def test_annotations_that_cannot_be_resolved_mean_any() -> None:
    app = Taskline("shop", broker="memory://")

    @app.task
    def send(to: NotThere) -> None:  # type: ignore[name-defined]  # noqa: F821
        """Has a parameter of a type that does not exist."""

    assert values.Types(send).at(0) is Any


@pytest.mark.parametrize("word", ["x", "=1", "1x=2", "a b=1", "", "--x=1"])
def test_what_is_no_pair_is_refused(word: str) -> None:
    with pytest.raises(click.BadParameter, match="is not NAME=VALUE"):
        values.pairs("--kw", (word,))


def test_pairs() -> None:
    assert values.pairs("--kw", ("a=1", "b=x=y", "c=")) == {"a": "1", "b": "x=y", "c": ""}
    with pytest.raises(click.BadParameter, match="'a' is given twice"):
        values.pairs("--kw", ("a=1", "a=2"))


def test_json_of_the_wrong_shape_is_refused() -> None:
    assert values.positional("--args", "[1, 2]") == [1, 2]
    assert values.keywords("--kwargs", '{"a": 1}') == {"a": 1}
    for option, read, text in (
        ("--args", values.positional, "[1, 2"),
        ("--kwargs", values.keywords, "a"),
        ("--args", values.positional, "[" * 10_000),
    ):
        with pytest.raises(click.BadParameter, match="is not JSON"):
            read(option, text)
    with pytest.raises(click.BadParameter, match="is not a JSON array"):
        values.positional("--args", '{"a": 1}')
    with pytest.raises(click.BadParameter, match="is not a JSON object"):
        values.keywords("--kwargs", "[1]")
