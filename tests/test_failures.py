from __future__ import annotations

import builtins
import sys
import types

import msgspec
import pytest

from taskline.errors import TaskFailed, TaskTimeout
from taskline.failures import RemoteTraceback, encode_error, error_line, rebuild_error


class Plain(Exception):
    pass


class Fussy(Exception):
    """Wants arguments that no one who rebuilds it could know."""

    def __init__(self, order: int, *, hint: str) -> None:
        super().__init__(f"order {order}: {hint}")
        self.order = order
        self.hint = hint


class Unfit(Exception):
    """Carries what does not travel, and shows it."""

    def __init__(self, connection: object) -> None:
        super().__init__(connection)
        self.connection = connection

    def __str__(self) -> str:
        return f"lost {self.connection!r}"


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Outer:
    class Inner(Exception):
        pass


def travel(error: BaseException) -> Exception:
    try:
        raise error
    except BaseException as raised:
        described = encode_error(raised)
    return rebuild_error(msgspec.json.decode(msgspec.json.encode(described)))


@pytest.mark.parametrize(
    "error", [Plain("no"), ValueError("bad", 3), KeyError("k"), Outer.Inner("deep"), Plain()]
)
def test_type_arguments_and_text_arrive(error: Exception) -> None:
    back = travel(error)
    assert type(back) is type(error)
    assert back.args == error.args
    assert str(back) == str(error)


def test_os_errors_keep_their_number() -> None:
    back = travel(FileNotFoundError(2, "No such file", "/x"))
    assert type(back) is FileNotFoundError
    assert (back.errno, str(back)) == (2, "[Errno 2] No such file: '/x'")


def test_init_is_never_run_and_attributes_arrive() -> None:
    back = travel(Fussy(7, hint="paid twice"))
    assert type(back) is Fussy
    assert (back.order, back.hint, str(back)) == (7, "paid twice", "order 7: paid twice")


def test_what_does_not_travel_is_left_out_and_the_text_stays() -> None:
    back = travel(Unfit(sys.stdin))
    assert isinstance(back, Unfit)
    assert str(back) == f"lost {sys.stdin!r}"
    assert not hasattr(back, "connection")


def test_an_exception_without_a_text_travels() -> None:
    described = encode_error(Mute())
    assert "RuntimeError" in described["message"]
    assert isinstance(rebuild_error(described), Mute)


def test_the_remote_traceback_is_the_cause_and_shows_the_chain() -> None:
    try:
        try:
            raise KeyError("inner")
        except KeyError as inner:
            raise Plain("outer") from inner
    except Plain as error:
        described = encode_error(error)
    back = rebuild_error(described)
    assert isinstance(back.__cause__, RemoteTraceback)
    text = str(back.__cause__)
    assert "KeyError: 'inner'" in text
    assert "The above exception was the direct cause" in text
    assert "Plain: outer" in text
    assert "test_failures.py" in text


def test_a_class_that_nobody_imported_becomes_task_failed() -> None:
    module = types.ModuleType("far_away")
    exec("class Lost(Exception): pass", module.__dict__)
    sys.modules["far_away"] = module
    try:
        described = encode_error(module.Lost("gone"))
        assert type(rebuild_error(described)) is module.Lost
    finally:
        del sys.modules["far_away"]
    back = rebuild_error(described)
    assert type(back) is TaskFailed
    assert str(back) == "far_away.Lost: gone"
    assert back.exception_type == "far_away.Lost"
    assert "Lost: gone" in back.remote_traceback
    assert "far_away" not in sys.modules


@pytest.mark.parametrize(
    "name",
    ["os.system", "builtins.eval", "builtins.int", "subprocess.Popen", "nowhere", "", "a..b", "."],
)
def test_nothing_but_exceptions_is_made_from_a_name(name: str) -> None:
    back = rebuild_error({"type": name, "message": "m", "args": ["echo pwned"]})
    assert type(back) is TaskFailed


def test_what_would_end_the_caller_becomes_task_failed() -> None:
    for error in (SystemExit(3), KeyboardInterrupt(), GeneratorExit()):
        back = travel(error)
        assert type(back) is TaskFailed
        assert back.exception_type == f"builtins.{type(error).__name__}"


def test_our_own_errors_travel() -> None:
    back = travel(TaskTimeout("ran longer than 3 s", exception_type="x", remote_traceback="y"))
    assert type(back) is TaskTimeout
    assert back.exception_type == "x"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="groups came with 3.11")
def test_groups_arrive_with_their_members() -> None:
    group = builtins.ExceptionGroup  # type: ignore[attr-defined, unused-ignore]
    back = travel(group("both", [Plain("a"), group("in", [KeyError("b")])]))
    assert type(back) is group
    assert str(back) == "both (2 sub-exceptions)"
    first, second = back.exceptions
    assert type(first) is Plain
    assert isinstance(second, group)
    assert type(second.exceptions[0]) is KeyError


def test_notes_travel() -> None:
    error = Plain("no")
    error.__notes__ = ["look at the shelf"]  # add_note came with 3.11
    assert travel(error).__notes__ == ["look at the shelf"]


def test_large_and_strange_texts_are_bounded_and_encodable() -> None:
    described = encode_error(Plain("x" * 10_000_000 + "\ud800"))
    assert len(msgspec.json.encode(described)) < 400_000
    assert isinstance(rebuild_error(described), Plain)


@pytest.mark.parametrize(
    "described",
    [
        {},
        {"type": 3, "message": 4, "traceback": 5},
        {"type": "builtins.UnicodeDecodeError", "message": "m", "args": []},
        {"type": "builtins.ExceptionGroup", "message": "m", "args": [], "exceptions": []},
        {"type": "builtins.ValueError", "message": "m", "args": "x", "attrs": [1]},
        {"type": "builtins.ValueError", "message": "m", "exceptions": [3, {}]},
        {"type": "builtins.OSError", "message": "m", "attrs": {"__class__": "x"}},
    ],
)
def test_a_hostile_description_gives_some_exception(described: dict[str, object]) -> None:
    assert isinstance(rebuild_error(described), Exception)


def test_the_line_of_an_attempt() -> None:
    assert error_line(Plain("one\ntwo")) == "Plain: one"
    assert error_line(Plain()) == "Plain"
    assert len(error_line(Plain("x" * 999))) == 200
