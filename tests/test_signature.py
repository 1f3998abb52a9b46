from __future__ import annotations

import dataclasses
import enum
import functools
import logging
import os
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    Optional,
    Protocol,
    TypedDict,
    TypeVar,
    Union,
)
from uuid import UUID

import msgspec
import pydantic
import pydantic.dataclasses
import pytest

from taskline.codec import Codec
from taskline.config import Settings
from taskline.errors import ConfigurationError, InvalidArguments, SerializationError
from taskline.message import Header
from taskline.secret import Secret
from taskline.signature import TaskSignature

CODEC = Codec(Settings(accept=["json", "msgpack", "pickle"], signing_key="k"))
UTC = timezone.utc
T = TypeVar("T")
UserId = NewType("UserId", int)


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1


class Text(str):
    pass


@dataclasses.dataclass
class Line:
    sku: str
    price: Decimal
    added: datetime | None = None


@dataclasses.dataclass
class GiftLine(Line):
    note: str = ""


@dataclasses.dataclass
class Order:
    id: UUID
    lines: list[Line]
    parent: Order | None = None


class Address(TypedDict):
    street: str
    since: date


class Point(msgspec.Struct):
    x: int
    y: int = 0


class Customer(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)
    name: str = pydantic.Field(alias="fullName")
    joined: datetime
    level: Colour = Colour.RED


class Cat(pydantic.BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int = 9


class Dog(pydantic.BaseModel):
    kind: Literal["dog"] = "dog"
    tricks: set[str] = set()


@pydantic.dataclasses.dataclass
class Checked:
    at: datetime
    many: int = pydantic.Field(default=1, ge=1)


class Pair(NamedTuple):
    left: int
    right: datetime


class Plain:
    """A class of which nothing is known."""


class Closes(Protocol):
    def close(self) -> None: ...


class Page(msgspec.Struct, Generic[T]):
    items: list[T]


NOW = datetime(2024, 2, 29, 12, 30, 15, 123456, tzinfo=UTC)
ORDER = Order(
    UUID(int=7), [Line("a", Decimal("1.10"), NOW)], Order(UUID(int=8), [Line("b", Decimal(2))])
)
CUSTOMER = Customer(fullName="Ann", joined=NOW, level=Colour.BLUE)

VALUES: list[tuple[Any, Any]] = [
    (int, 3),
    (int, -(2**63)),
    (float, 1.5),
    (bool, True),
    (str, "ä"),
    (bytes, b"\x00\xff"),
    (bytearray, bytearray(b"ab")),
    (None, None),
    (datetime, NOW),
    (datetime, NOW.replace(tzinfo=None)),
    (date, NOW.date()),
    (time, time(1, 2, 3)),
    (timedelta, timedelta(days=1, seconds=2, microseconds=3)),
    (UUID, UUID(int=9)),
    (Decimal, Decimal("10.500")),
    (Colour, Colour.BLUE),
    (Level, Level.LOW),
    (Line, Line("x", Decimal("9.99"))),
    (Order, ORDER),
    (Address, {"street": "s", "since": date(2020, 1, 1)}),
    (Point, Point(1, 2)),
    (Page[datetime], Page([NOW])),
    (Customer, CUSTOMER),
    (Checked, Checked(NOW, 2)),
    (Pair, Pair(1, NOW)),
    (UserId, UserId(5)),
    (Path, Path("/a/b")),
    (PurePosixPath, PurePosixPath("a")),
    (os.PathLike, Path("a")),
    (os.PathLike[str], Path("a")),
    (Text, Text("a")),
    (list[datetime], [NOW]),
    (list, [1, "a"]),
    (dict, {"a": [1]}),
    (set[int], {1, 2}),
    (frozenset[UUID], frozenset({UUID(int=1)})),
    (set, {1}),
    (tuple[int, datetime], (1, NOW)),
    (tuple[Decimal, ...], (Decimal(1), Decimal("2.0"))),
    (tuple, (1, 2)),
    (dict[int, str], {1: "a", -2: "b"}),
    (dict[UUID, Decimal], {UUID(int=1): Decimal("1.0")}),
    (dict[date, set[int]], {date(2024, 1, 1): {1}}),
    (dict[Colour, Point], {Colour.RED: Point(1)}),
    (dict[str, list[Order]], {"a": [ORDER]}),
    (dict[str, dict[str, Customer]], {"a": {"b": CUSTOMER}}),
    (list[Customer], [CUSTOMER]),
    (list[Point | None], [None, Point(2)]),
    (Mapping[str, Decimal], {"a": Decimal(1)}),
    (Sequence[bytes], [b"a"]),
    (Iterable[int], [1, 2]),
    (deque[datetime], deque([NOW])),
    (OrderedDict[str, Decimal], OrderedDict(a=Decimal(1))),
    (defaultdict[str, Decimal], {"a": Decimal(1)}),
    (Optional[datetime], NOW),  # noqa: UP045
    (Optional[datetime], None),  # noqa: UP045
    (Customer | None, CUSTOMER),
    (Customer | None, None),
    (Union[int, str], "a"),  # noqa: UP007
    (int | str, 3),
    (int | list[datetime], [NOW]),
    (Cat | Dog, Dog(tricks={"sit"})),
    (Cat | Dog, Cat(lives=3)),
    (Customer | Dog, CUSTOMER),
    (list[Cat | Dog] | None, [Dog(), Cat()]),
    (Cat | int, 3),
    (Literal["a", 1], "a"),
    (Literal["a", 1], 1),
    (Annotated[datetime, "when"], NOW),
    (Annotated[int, msgspec.Meta(ge=0)], 3),
    (Annotated[list[Decimal], msgspec.Meta(min_length=1)], [Decimal(1)]),
    (Any, [1, {"a": None}]),
    (object, {"a": 1}),
    (T, 5),
]


def declared(hint: Any) -> Callable[..., Any]:
    """A function with one parameter, declared so."""

    def task(value: Any) -> Any:
        return value

    task.__annotations__ = {"value": hint, "return": hint}
    return task


def travel(
    function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], serializer: str
) -> tuple[Sequence[Any], dict[str, Any]]:
    """What a worker gets of a call: check, encode, open, decode, convert."""
    signature = TaskSignature(function)
    signature.check(args, kwargs)
    header = Header(v=1, id="a", task="t", queue="q", sent=1.0, serializer=serializer)
    frame = CODEC.encode(header, (args, kwargs)).frame
    return TaskSignature(function).convert(*CODEC.arguments(*CODEC.open(frame)))


@pytest.mark.parametrize("serializer", ["json", "msgpack", "pickle"])
@pytest.mark.parametrize(("hint", "value"), VALUES, ids=lambda part: repr(part)[:40])
def test_annotated_values_arrive_as_declared(hint: Any, value: Any, serializer: str) -> None:
    args, kwargs = travel(declared(hint), (value,), {}, serializer)
    assert list(args) == [value]
    assert type(args[0]) in (type(value), defaultdict)
    assert kwargs == {}
    args, kwargs = travel(declared(hint), (), {"value": value}, serializer)
    assert (list(args), kwargs) == ([], {"value": value})


@pytest.mark.parametrize(("hint", "value"), VALUES, ids=lambda part: repr(part)[:40])
def test_results_arrive_as_declared(hint: Any, value: Any) -> None:
    body = msgspec.json.decode(CODEC._dumps["json"](value))
    found = TaskSignature(declared(hint)).convert_result(body)
    assert found == value
    assert type(found) in (type(value), defaultdict)


def test_a_result_that_is_not_what_was_declared_is_returned_as_it_came() -> None:
    assert TaskSignature(declared(int)).convert_result("x") == "x"
    assert TaskSignature(declared(Order)).convert_result({"id": 1}) == {"id": 1}
    assert TaskSignature(lambda: None).convert_result([1]) == [1]


FITS: list[tuple[Any, Any, Any]] = [
    (float, 3, 3.0),
    (int, True, True),
    (int, Level.LOW, 1),
    (str, Text("a"), "a"),
    (list[int], (1, 2), [1, 2]),
    (list[float], [1, 2.5], [1.0, 2.5]),
    (list[str], [Text("a")], ["a"]),
    (tuple[int, ...], [1, 2], (1, 2)),
    (set[int], [1, 1], {1}),
    (list[int], {3}, [3]),
    (list[int], range(2), [0, 1]),
    (Sequence[int], deque([1]), [1]),
    (dict[str, int], OrderedDict(a=1), {"a": 1}),
    (Line, {"sku": "a", "price": "1.5"}, Line("a", Decimal("1.5"))),
    (Line, GiftLine("a", Decimal(1), None, "hi"), Line("a", Decimal(1))),
    (list[Line], [GiftLine("a", Decimal(1))], [Line("a", Decimal(1))]),
    (Customer, {"fullName": "Ann", "joined": NOW, "level": "blue"}, CUSTOMER),
    (Customer, {"name": "Ann", "joined": NOW.isoformat(), "level": "blue"}, CUSTOMER),
    (list[Customer], ({"fullName": "Ann", "joined": NOW, "level": "blue"},), [CUSTOMER]),
    (Cat | Dog, {"kind": "dog"}, Dog()),
    (Point, {"x": 1}, Point(1)),
    (datetime, NOW.isoformat(), NOW),
    (UUID, str(UUID(int=1)), UUID(int=1)),
    (Decimal, "1.5", Decimal("1.5")),
    (Decimal, 2, Decimal(2)),
    (bytes, bytearray(b"a"), b"a"),
    (Colour, "red", Colour.RED),
    (Path, "a/b", Path("a/b")),
    (Any, {1, 2}, [1, 2]),
]


@pytest.mark.parametrize(("hint", "given", "arrives"), FITS, ids=lambda part: repr(part)[:40])
def test_whatever_arrives_as_declared_may_be_given(hint: Any, given: Any, arrives: Any) -> None:
    args, _ = travel(declared(hint), (given,), {}, "json")
    assert args[0] == arrives
    assert type(args[0]) is type(arrives)


MISFITS: list[tuple[Any, Any, str]] = [
    (int, "1", "Expected `int`, got `str`"),
    (int, 1.0, "Expected `int`, got `float`"),
    (int, None, "Expected `int`, got `null`"),
    (str, 1, "Expected `str`, got `int`"),
    (str, b"a", "Expected `str`, got `bytes`"),
    (bytes, "YWJj", "Expected `bytes`, got `str`"),
    (list[bytes], ["YWJj"], "Expected `bytes`, got `str`"),
    (list[str], [b"a"], "Expected `str`, got `bytes`"),
    (bool, 1, "Expected `bool`, got `int`"),
    (float, "1", "Expected `float`, got `str`"),
    (datetime, 5, "Expected `datetime`, got `int`"),
    (datetime, "soon", "Invalid RFC3339"),
    (date, NOW, "Expected `date`, got `datetime`"),
    (UUID, "x", "Invalid UUID"),
    (Decimal, "x", "Invalid decimal"),
    (Colour, "green", "Invalid enum value"),
    (Literal["a"], "b", "Invalid enum value"),
    (list[int], [1, "2"], "`$[1]`"),
    (list[int], "12", "Expected `array`, got `str`"),
    (dict[int, int], {"a": 1}, "Expected `int`, got `str`"),
    (tuple[int, int], [1], "length 2"),
    (Line, {"sku": "a"}, "missing required field `price`"),
    (Line, Point(1), "Expected `object`, got `Point`"),
    (Order, {"id": 1, "lines": []}, "`$.id`"),
    (Customer, {"fullName": 1, "joined": NOW}, "fullName"),
    (list[Customer], [1], "Customer"),
    (Cat | Dog, 5, "validation error"),
    (Annotated[int, msgspec.Meta(ge=0)], -1, ">= 0"),
    (int | None, "a", "Expected `int | null`"),
    (Plain, {"a": 1}, "Expected `Plain`, got `dict`"),
    (Checked, {"at": NOW, "many": 0}, "greater than or equal to 1"),
    (Callable[[int], int], 3, "Expected `Callable`, got `int`"),
]


@pytest.mark.parametrize(("hint", "value", "says"), MISFITS, ids=lambda part: repr(part)[:40])
def test_what_does_not_fit_is_refused_at_the_call(hint: Any, value: Any, says: str) -> None:
    signature = TaskSignature(declared(hint))
    with pytest.raises(InvalidArguments) as caught:
        signature.check((value,), {})
    message = str(caught.value)
    assert message.startswith(f"task{signature}: value = {value!r}"[:60])
    assert says in message
    assert "\n" not in message
    assert caught.value.__cause__ is None
    assert isinstance(caught.value, TypeError)
    with pytest.raises(InvalidArguments, match=r"^task\("):
        signature.check((), {"value": value})


@pytest.mark.parametrize(
    ("hint", "value"),
    [(int, "1"), (datetime, "soon"), (Order, {}), (Customer, {}), (list[int], [None]), (str, 1)],
)
def test_what_cannot_be_converted_is_refused_on_arrival(hint: Any, value: Any) -> None:
    signature = TaskSignature(declared(hint))
    for args, kwargs in (([value], {}), ([], {"value": value})):
        with pytest.raises(InvalidArguments, match=r"^task\(.*: value = "):
            signature.convert(args, kwargs)


# --- parameters of every kind


def everything(
    a: int, /, b: datetime, c: int = 0, *more: Decimal, d: UUID, e: str = "e", **rest: date
) -> None: ...


def test_every_kind_of_parameter_is_converted() -> None:
    args = (1, NOW, 2, Decimal(3), Decimal(4))
    kwargs = {"d": UUID(int=1), "e": "f", "x": date(2024, 1, 1), "a": date(2024, 1, 2)}
    assert travel(everything, args, kwargs, "json") == (list(args), kwargs)


def by_name(a: int, *, b: int = 0) -> None: ...


def no_more(a: int, b: int = 0, /) -> None: ...


def nothing() -> None: ...


CALLS: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = [
    (everything, (), {}),
    (everything, (1,), {}),
    (everything, (1,), {"b": NOW}),
    (everything, (1, NOW), {}),
    (everything, (1, NOW), {"d": UUID(int=1)}),
    (everything, (1,), {"b": NOW, "d": UUID(int=1)}),
    (everything, (1, NOW), {"b": NOW, "d": UUID(int=1)}),
    (everything, (), {"a": date(2024, 1, 1), "b": NOW, "d": UUID(int=1)}),
    (everything, (1, NOW, 2, Decimal(1)), {"d": UUID(int=1), "c": 3}),
    (by_name, (), {}),
    (by_name, (1,), {}),
    (by_name, (1, 2), {}),
    (by_name, (), {"a": 1}),
    (by_name, (), {"b": 1}),
    (by_name, (1,), {"a": 1}),
    (by_name, (1,), {"c": 1}),
    (by_name, (1,), {"b": 1}),
    (no_more, (), {}),
    (no_more, (1,), {}),
    (no_more, (1, 2), {}),
    (no_more, (1, 2, 3), {}),
    (no_more, (1,), {"b": 1}),
    (no_more, (), {"a": 1}),
    (nothing, (), {}),
    (nothing, (1,), {}),
    (nothing, (), {"a": 1}),
]


@pytest.mark.parametrize(("function", "args", "kwargs"), CALLS)
def test_arity_and_names_are_those_of_python(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    signature = TaskSignature(function)
    try:
        function(*args, **kwargs)
    except TypeError:
        for side in (signature.check, signature.convert):
            with pytest.raises(InvalidArguments) as caught:
                side(args, kwargs)
            assert str(caught.value).startswith(f"{function.__name__}{signature}: ")
    else:
        signature.check(args, kwargs)
        assert signature.convert(args, kwargs) in ((args, kwargs), (list(args), kwargs))


def test_messages_about_arity() -> None:
    def send_receipt(order_id: int, to: str, *, copy: bool = False) -> str: ...

    signature = TaskSignature(send_receipt)
    shown = "send_receipt(order_id: int, to: str, *, copy: bool = False) -> str: "
    for args, kwargs, says in (
        ((1,), {}, "missing a required argument: 'to'"),
        ((1, "a", 2), {}, "too many positional arguments"),
        ((1, "a"), {"cc": 1}, "got an unexpected keyword argument 'cc'"),
    ):
        with pytest.raises(InvalidArguments) as caught:
            signature.check(args, kwargs)
        assert str(caught.value) == shown + says


def test_messages_about_variable_parameters_name_them() -> None:
    with pytest.raises(InvalidArguments, match=r"\*more = 'x': Invalid decimal"):
        TaskSignature(everything).check((1, NOW, 2, "x"), {"d": UUID(int=1)})
    with pytest.raises(InvalidArguments, match="when = 5: Expected `date`"):
        TaskSignature(everything).check((1, NOW), {"d": UUID(int=1), "when": 5})


def test_long_values_are_cut_short() -> None:
    with pytest.raises(InvalidArguments) as caught:
        TaskSignature(declared(int)).check(("x" * 10_000,), {})
    assert len(str(caught.value)) < 500


def test_defaults_are_left_to_the_function() -> None:
    def task(a: int, at: datetime = NOW) -> None: ...

    assert travel(task, (1,), {}, "json") == ([1], {})


def test_a_default_of_none_allows_none() -> None:
    def task(at: datetime = None) -> None: ...  # type: ignore[assignment]  # noqa: RUF013

    assert travel(task, (None,), {}, "json") == ([None], {})
    assert travel(task, (NOW,), {}, "json") == ([NOW], {})


def test_unannotated_parameters_take_anything() -> None:
    def task(a, b=1, *c, **d):  # type: ignore[no-untyped-def]
        ...

    assert travel(task, (1, "a", [2]), {"e": {"f": 1}}, "json") == ([1, "a", [2]], {"e": {"f": 1}})


def test_a_bound_task_does_not_count_its_first_parameter() -> None:
    def task(self: Any, order_id: int, at: datetime) -> None: ...

    signature = TaskSignature(task, bind=True)
    assert str(signature) == "(order_id: int, at: datetime) -> None"
    signature.check((1, NOW), {})
    assert signature.convert([1, NOW.isoformat()], {}) == ([1, NOW], {})
    with pytest.raises(InvalidArguments, match="too many positional"):
        signature.check((object(), 1, NOW), {})


def test_binding_needs_a_parameter() -> None:
    def task(*, a: int) -> None: ...

    for function in (task, nothing):
        with pytest.raises(ConfigurationError, match="bind=True"):
            TaskSignature(function, bind=True)
    TaskSignature(lambda *args: None, bind=True).check((1, 2), {})


def test_the_arguments_that_were_given_are_not_changed() -> None:
    args, kwargs = [NOW.isoformat()], {"value": NOW.isoformat()}
    signature = TaskSignature(declared(datetime))
    assert signature.convert(args, {})[0] == [NOW]
    assert signature.convert([], kwargs)[1] == {"value": NOW}
    assert args == [NOW.isoformat()]
    assert kwargs == {"value": NOW.isoformat()}


# --- how it reads


def test_it_reads_as_it_was_written() -> None:
    assert str(TaskSignature(by_name)) == "(a: int, *, b: int = 0) -> None"
    assert str(TaskSignature(no_more)) == "(a: int, b: int = 0, /) -> None"
    assert str(TaskSignature(everything)).startswith("(a: int, /, b: datetime, c: int = 0, *more")
    assert (
        str(TaskSignature(declared(datetime))) == "(value: datetime.datetime) -> datetime.datetime"
    )
    assert str(TaskSignature(lambda a, b=1: None)) == "(a, b=1)"


def test_doc_is_the_first_line() -> None:
    def task() -> None:
        """Do it.

        At length.
        """

    assert TaskSignature(task).doc == "Do it."
    assert TaskSignature(nothing).doc == ""


# --- annotations that need care


def test_annotations_may_name_what_is_defined_later() -> None:
    signature = TaskSignature(uses_later)
    assert signature.convert([{"x": 5}], {}) == ([Later(5)], {})


def uses_later(value: Later) -> None: ...


class Later(msgspec.Struct):
    x: int


def test_what_cannot_be_resolved_passes_as_it_comes(caplog: pytest.LogCaptureFixture) -> None:
    def task(a: Nowhere, b: datetime) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    signature = TaskSignature(task)
    with caplog.at_level(logging.WARNING, logger="taskline"):
        for _ in range(2):
            signature.check(("x", NOW), {})
            assert signature.convert(["x", NOW.isoformat()], {}) == (["x", NOW], {})
    assert len(caplog.records) == 1
    said = caplog.records[0].getMessage()
    assert "parameter a cannot be used" in said
    assert "'Nowhere' is not defined" in said


@pytest.mark.parametrize("hint", [Line | Order, str | UUID, Closes | int, "nowhere"])
def test_what_cannot_be_converted_passes_as_it_comes(
    hint: Any, caplog: pytest.LogCaptureFixture
) -> None:
    signature = TaskSignature(declared(hint))
    signature.check(([1],), {})
    assert signature.convert([[1]], {}) == ([[1]], {})
    assert "pass as they come" in caplog.text


def test_protocols_and_unknown_classes() -> None:
    class Stream:
        def close(self) -> None: ...

    TaskSignature(declared(Closes)).check((Stream(),), {})
    TaskSignature(declared(list[Closes])).check(([Stream()],), {})
    TaskSignature(declared(Plain)).check((Plain(),), {})
    TaskSignature(declared(Callable[[int], int])).check((len,), {})
    TaskSignature(declared(type[int])).check((int,), {})


def test_an_unknown_class_travels_by_pickle_alone() -> None:
    args, _ = travel(declared(Plain), (Plain(),), {}, "pickle")
    assert type(args[0]) is Plain
    with pytest.raises(SerializationError, match=r"Plain is not plain data"):
        travel(declared(Plain), (Plain(),), {}, "json")


def test_type_aliases() -> None:
    if sys.version_info < (3, 12):
        pytest.skip("the type statement came with Python 3.12")
    scope: dict[str, Any] = {}
    exec("from datetime import datetime\ntype When = datetime", scope)
    assert travel(declared(scope["When"]), (NOW,), {}, "json") == ([NOW], {})


def test_an_error_in_a_types_own_code_is_a_refusal() -> None:
    class Even(msgspec.Struct):
        n: int

        def __post_init__(self) -> None:
            if self.n % 2:
                raise ZeroDivisionError("odd")

    signature = TaskSignature(declared(Even))
    assert signature.convert([{"n": 2}], {}) == ([Even(2)], {})
    with pytest.raises(InvalidArguments, match="odd"):
        signature.convert([{"n": 1}], {})


def test_deep_nesting_is_a_refusal() -> None:
    value: Any = 1
    for _ in range(100_000):
        value = [value]
    with pytest.raises(InvalidArguments):
        TaskSignature(declared(list[int])).convert([value], {})


# --- callables that are not plain functions


def test_wrapped_partial_and_callable_objects() -> None:
    def inner(value: datetime, times: int = 1) -> None: ...

    @functools.wraps(inner)
    def outer(*args: Any, **kwargs: Any) -> None: ...

    class Object:
        def __call__(self, value: datetime) -> None: ...

    for function in (outer, functools.partial(inner, times=2), Object(), Later):
        converted, _ = TaskSignature(function).convert(
            [NOW.isoformat() if function is not Later else 1], {}
        )
        assert converted in ([NOW], [1])


def test_built_in_functions_check_for_themselves() -> None:
    TaskSignature(print).check((1, "a"), {"end": ""})
    TaskSignature(max).check((1, 2), {})
    TaskSignature(dict).check((), {"a": 1})


def test_async_functions() -> None:
    async def task(value: datetime) -> datetime:
        return value

    signature = TaskSignature(task)
    assert signature.convert([NOW.isoformat()], {}) == ([NOW], {})
    assert signature.convert_result(NOW.isoformat()) == NOW


# Secrets


def _login(
    user: str, password: Annotated[str, Secret], *codes: Annotated[int, Secret()]
) -> None: ...


def _hide(user: str, **rest: Annotated[int, Secret]) -> None: ...


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "shown"),
    [
        (_login, ("ann", "hunter2"), {}, "'ann', '***'"),
        (_login, ("ann",), {"password": "hunter2"}, "'ann', password='***'"),
        (_login, ("ann", "hunter2", 17, 18), {}, "'ann', '***', '***', '***'"),
        (_hide, ("ann",), {"pin": 1234}, "'ann', pin='***'"),
        (_hide, (), {"user": "ann", "pin": 1234}, "user='ann', pin='***'"),
    ],
)
def test_secrets_are_not_shown(function: Any, args: Any, kwargs: Any, shown: str) -> None:
    assert TaskSignature(function).shown(args, kwargs) == shown


@pytest.mark.parametrize(
    ("function", "args", "kwargs"),
    [
        (_login, ("ann", 4711), {}),
        (_login, ("ann",), {"password": 4711}),
        (_login, ("ann", "x", "4711x"), {}),
        (_hide, ("ann",), {"pin": "4711x"}),
    ],
)
def test_errors_do_not_show_secrets(function: Any, args: Any, kwargs: Any) -> None:
    signature = TaskSignature(function)
    for refuse in (signature.check, signature.convert):
        with pytest.raises(InvalidArguments, match=r"= \*\*\*: it does not fit") as error:
            refuse(args, kwargs)
        assert "4711" not in str(error.value)


def test_a_secret_is_converted_like_any_other_value() -> None:
    def at(when: Annotated[datetime, Secret]) -> None: ...

    args, _ = TaskSignature(at).convert(["2026-01-31T12:00:00+00:00"], {})
    assert args[0] == datetime(2026, 1, 31, 12, tzinfo=timezone.utc)


def test_a_secret_is_shown_as_the_code_has_it() -> None:
    def log_in(password): ...  # type: ignore[no-untyped-def]

    log_in.__annotations__["password"] = Annotated[str, Secret]
    assert str(TaskSignature(log_in)) == "(password: Annotated[str, Secret])"


def test_a_mark_that_cannot_be_resolved_hides_all_the_same() -> None:
    def log_in(user: str, password: str) -> None: ...

    log_in.__annotations__["password"] = "Annotated[Nowhere, Secret]"
    assert TaskSignature(log_in).shown(["ann", "hunter2"], {}) == "'ann', '***'"
