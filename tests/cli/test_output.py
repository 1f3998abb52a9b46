"""What is printed, to whom, and what never is."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pytest

from taskline.cli import output


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        1.5,
        "grün\x1b[31m\n",
        [1, (2, 3), {4}],
        {"a": {"b": [None]}},
        {1: "int key", "s": 2},
        {(1, 2): "tuple key"},
        2**70,
        -(2**70),
        {"big": 2**70},
        float("nan"),
        float("inf"),
        "\ud800 lone",
        {"\ud800": 1},
        b"bytes",
        object,
        datetime.datetime(2030, 1, 31),
        ValueError("x"),
    ],
)
def test_every_value_becomes_one_line_of_json(value: Any) -> None:
    text = output.encode(value)
    json.loads(text)
    assert "\n" not in text


def test_json_keeps_what_json_has() -> None:
    value = {"id": "x", "n": 1, "f": 0.5, "l": [None, True], "s": 'ü " \n'}
    assert json.loads(output.encode(value)) == value


def test_a_value_that_holds_itself_ends() -> None:
    value: list[Any] = []
    value.append(value)
    json.loads(output.encode(value))


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert output.clean("a\x1b[2Jb\r\u202ec\n") == "a\\x1b[2Jb\\r\\u202ec\\n"
    assert output.clean("two\nlines\t", keep="\n\t") == "two\nlines\t"


def test_a_plain_table(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(["queue", "ready"], [("mail", 12), ("vi\x1bdeo", None), ("x", 3)])
    assert capsys.readouterr().out == (
        "QUEUE      READY\nmail          12\nvi\\x1bdeo      -\nx              3\n"
    )


def test_an_empty_table_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(["queue"], [], empty="nothing")
    assert capsys.readouterr().out == "nothing\n"


def test_fields(capsys: pytest.CaptureFixture[str]) -> None:
    output.fields([("id", "x"), ("state", None), ("traceback", "one\ntwo\n")])
    assert capsys.readouterr().out == "id         x\ntraceback\n    one\n    two\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0004, "0.4ms"),
        (0.25, "250ms"),
        (2.34, "2.3s"),
        (59.4, "59s"),
        (60, "1m"),
        (192, "3m 12s"),
        (7300, "2h 1m"),
        (86_400 * 3 + 5, "3d"),
        (-5, "-5.0s"),
    ],
)
def test_a_duration_for_people(seconds: float, text: str) -> None:
    assert output.span(seconds) == text


def test_a_moment_that_no_calendar_has() -> None:
    assert output.when(1e300) == "1e+300"


@pytest.mark.parametrize(
    ("spec", "shown"),
    [
        ("sqlite:///x.db", "sqlite:///x.db"),
        ("redis://me:secret@host/0", "redis://me:***@host/0"),
        (["redis://:s@a", "redis://b"], "redis://:***@a, redis://b"),
        (
            {"type": "redis", "nodes": [{"host": "h", "password": "secret"}]},
            "{'type': 'redis', 'nodes': [{'host': 'h', 'password': '***'}]}",
        ),
    ],
)
def test_an_address_has_no_password(spec: Any, shown: str) -> None:
    assert output.address(spec) == shown
