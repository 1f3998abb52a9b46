from __future__ import annotations

import enum
import json
import math
import subprocess
import sys
from collections import ChainMap, OrderedDict, UserString, deque
from datetime import datetime, timezone
from decimal import Decimal
from importlib.metadata import EntryPoint
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any
from uuid import UUID

import msgspec
import pydantic
import pytest
from kombu.serialization import registry as kombu_registry

import taskline
from taskline import serializers
from taskline.errors import ConfigurationError
from taskline.serializers import Serializer


class Text(str):
    pass


class Number(int):
    pass


class Ratio(float):
    pass


class Raw(bytes):
    pass


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


class Indexed:
    def __index__(self) -> int:
        return 7


class Point(msgspec.Struct):
    x: int


class Model(pydantic.BaseModel):
    at: datetime
    renamed: int = pydantic.Field(alias="was")

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def twice(self) -> int:
        return 2 * self.renamed


PLAIN = [None, True, 0, -1, 2**63, 1.5, "", "ä\n\x00", [], [1, [2]], {}, {"a": {"b": None}}]

LOSSY: list[tuple[Any, Any]] = [
    (Text("a"), "a"),
    (Number(3), 3),
    (Ratio(1.5), 1.5),
    (Indexed(), 7),
    (Colour.RED, "red"),
    (Level.LOW, 1),
    ((1, 2), [1, 2]),
    ({1}, [1]),
    (frozenset({"a"}), ["a"]),
    (deque([1, 2]), [1, 2]),
    (range(3), [0, 1, 2]),
    ({"a": 1}.keys(), ["a"]),
    (OrderedDict(a=1), {"a": 1}),
    (ChainMap({"a": 1}), {"a": 1}),
    (MappingProxyType({"a": 1}), {"a": 1}),
    (PurePosixPath("/a/b"), "/a/b"),
    (Point(1), {"x": 1}),
    (Decimal("1.50"), "1.50"),
    (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    (
        Model(at=datetime(2024, 1, 1, tzinfo=timezone.utc), was=4),
        {"at": "2024-01-01T00:00:00Z", "renamed": 4},
    ),
]


@pytest.mark.parametrize("name", ["json", "msgpack", "pickle", "cloudpickle"])
@pytest.mark.parametrize("value", PLAIN, ids=repr)
def test_plain_data_comes_back(name: str, value: object) -> None:
    serializer = serializers.get(name)
    body = serializer.dumps(value)
    assert type(body) is bytes
    assert serializer.loads(body) == value


@pytest.mark.parametrize("name", ["json", "msgpack"])
@pytest.mark.parametrize(("value", "arrives"), LOSSY, ids=lambda value: repr(value)[:30])
def test_richer_values_arrive_plain(name: str, value: object, arrives: object) -> None:
    serializer = serializers.get(name)
    found = serializer.loads(serializer.dumps([value]))
    assert found == [arrives]
    assert type(found[0]) is type(arrives)


def test_json_is_json() -> None:
    dumps = serializers.get("json").dumps
    assert dumps([[1, "ä"], {"a": None}]) == '[[1,"ä"],{"a":null}]'.encode()
    assert json.loads(dumps({"a": [Decimal(1), b"\xff", {2}]})) == {"a": ["1", "/w==", [2]]}
    assert dumps(Raw(b"\xff")) == b'"/w=="'


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, {"a": [math.nan]}])
def test_json_refuses_what_it_would_lose(value: object) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        serializers.get("json").dumps([value, None])
    assert repr(serializers.get("msgpack").loads(serializers.get("msgpack").dumps(value))) == repr(
        value
    )


def test_a_none_among_rich_values_is_no_infinity() -> None:
    values = [None, Point(1), {1}, {2: None}, b"a", Text("null"), Decimal("NaN"), Colour.RED]
    assert json.loads(serializers.get("json").dumps(values))[0] is None


@pytest.mark.parametrize("name", ["json", "msgpack"])
@pytest.mark.parametrize("value", [object(), 1j, len, ValueError("x"), UserString("x"), iter([])])
def test_what_is_not_plain_data_is_named(name: str, value: object) -> None:
    with pytest.raises(TypeError, match=type(value).__qualname__):
        serializers.get(name).dumps([value])


def test_an_unprintable_value_is_refused_all_the_same() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    with pytest.raises(TypeError, match="its repr raised RuntimeError"):
        serializers.get("json").dumps(Broken())


def test_only_structured_ones_are_safe() -> None:
    safe = {name: serializers.get(name).safe for name in ("json", "msgpack", "pickle")}
    assert safe == {"json": True, "msgpack": True, "pickle": False}
    assert not serializers.get("cloudpickle").safe
    assert not serializers.get("yaml").safe


def test_cloudpickle_carries_closures() -> None:
    factor = 3
    serializer = serializers.get("cloudpickle")
    assert serializer.loads(serializer.dumps(lambda x: x * factor))(2) == 6


def test_kombus_serializers_are_found_by_name() -> None:
    yaml = serializers.get("yaml")
    assert yaml.loads(yaml.dumps([["ä"], {"b": 1}])) == [["ä"], {"b": 1}]


def test_what_is_registered_with_kombu_is_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serializers, "_registered", dict(serializers._registered))
    kombu_registry.register(
        "reversed",
        lambda value: json.dumps(value)[::-1],
        lambda body: json.loads(bytes(body).decode()[::-1]),
        content_type="application/x-reversed",
        content_encoding="utf-8",
    )
    try:
        found = serializers.get("reversed")
        assert found.dumps([1]) == b"]1["
        assert found.loads(b"]1[") == [1]
        assert not found.safe
    finally:
        kombu_registry.unregister("reversed")


def test_unknown_names_are_refused_with_the_known() -> None:
    with pytest.raises(ConfigurationError, match=r"unknown serializer 'jsn': known are .*json"):
        serializers.get("jsn")


def test_registering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serializers, "_registered", dict(serializers._registered))
    mine = Serializer("mine", repr, eval, safe=False)  # type: ignore[arg-type]
    serializers.register(mine)
    assert serializers.get("mine") is mine


def plug_in(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    def entry_points(group: str, name: str | None = None) -> list[EntryPoint]:
        assert group == "taskline.serializers"
        return [EntryPoint("plugged", value, group)] if name in (None, "plugged") else []

    monkeypatch.setattr("importlib.metadata.entry_points", entry_points)
    monkeypatch.setattr(serializers, "_registered", dict(serializers._registered))


def test_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in(monkeypatch, "taskline.serializers.pickled:PICKLE")
    assert serializers.get("plugged").name == "pickle"


@pytest.mark.parametrize(
    ("value", "says"),
    [("nowhere.at.all:X", "cannot be loaded"), ("os:getcwd", "is no Serializer")],
)
def test_broken_entry_points_are_named(
    monkeypatch: pytest.MonkeyPatch, value: str, says: str
) -> None:
    plug_in(monkeypatch, value)
    with pytest.raises(ConfigurationError, match=f"'plugged': its entry point {value} {says}"):
        serializers.get("plugged")


def test_the_usual_ones_load_nothing_heavy() -> None:
    code = (
        "import sys; from taskline import serializers;"
        "serializers.get('json').dumps([None, 1.0]); serializers.get('msgpack');"
        "print({'kombu', 'cloudpickle', 'yaml', 'zstandard'} & set(sys.modules))"
    )
    root = Path(taskline.__file__).parent.parent
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "set()"
