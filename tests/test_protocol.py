"""docs/protocol.md is true: its vectors are read and written, its tables are the code's."""

from __future__ import annotations

import base64
import json
import re
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
import pytest

import taskline
from taskline import compression, serializers
from taskline.codec import Codec
from taskline.config import Settings
from taskline.errors import SerializationError
from taskline.message import FINAL_STATES, RETRY, STARTED, Header, OutcomeHeader, Place, Unique

PAGE = (Path(taskline.__file__).parent.parent / "docs" / "protocol.md").read_text(encoding="utf-8")
VECTORS = [
    json.loads(block) for block in re.findall(r"^```json vector\n(.*?)^```", PAGE, re.M | re.S)
]


def frame_of(vector: dict[str, Any]) -> bytes:
    text: str = vector["frame"]
    return text.encode() + base64.b64decode(vector.get("body_base64", ""))


def table(heading: str) -> dict[str, list[str]]:
    """The first table below a heading: its rows by their first cell."""
    section = PAGE.split(f"\n{heading}\n", 1)[1]
    rows = re.findall(r"^\| `(.+?)` \| (.+) \|$", section.split("\n## ", 1)[0], re.M)
    return {name: [cell.strip() for cell in rest.split(" | ")] for name, rest in rows}


def test_there_are_vectors_of_every_kind() -> None:
    assert len(VECTORS) == 17
    assert {vector["kind"] for vector in VECTORS} == {"message", "outcome"}
    named = {json.loads(vector["frame"].split("\n")[0]).get("compression")
             for vector in VECTORS if vector["frame"].startswith("{")}  # fmt: skip
    assert {*compression.names()} <= named


@pytest.mark.parametrize("vector", VECTORS)
def test_vectors(vector: dict[str, Any]) -> None:
    codec = Codec(Settings(signing_key=vector.get("key")))
    frame = frame_of(vector)
    outcome = vector["kind"] == "outcome"
    opener: Any = codec.open_outcome if outcome else codec.open
    if "refused" in vector:
        with pytest.raises(SerializationError) as caught:
            codec.loads(*opener(frame))
        assert vector["refused"] in str(caught.value)
        return
    header, body = opener(frame)
    assert codec.loads(header, body) == vector["value"]
    if vector.get("rewritten", True):
        if outcome:
            again = codec.encode_outcome(header, vector["value"], sent=1.0, ttl=None).frame
        else:
            again = codec.encode(header, vector["value"]).frame
        assert again == frame


TYPES = {
    "integer": int,
    "string": str,
    "number": float,
    "number or null": float | None,
    "string or null": str | None,
    "object": dict[str, Any],
    "object or null": dict[str, Any] | None,
    "object of string or null": dict[str, str] | None,
    "array of string": list[str],
    "place or null": Place | None,
    "key or null": Unique | None,
    "reference or null": Any,
}


@pytest.mark.parametrize(
    ("heading", "struct"),
    [("## Header of a message", Header), ("## Header of an outcome", OutcomeHeader)],
)
def test_header_tables(heading: str, struct: type[msgspec.Struct]) -> None:
    rows = {name: cells for name, cells in table(heading).items() if len(cells) == 3}
    assert list(rows) == list(struct.__struct_fields__)
    hints = get_type_hints(struct)
    for field in msgspec.structs.fields(struct):
        kind, default, _ = rows[field.name]
        assert set(get_args(TYPES[kind])) == set(get_args(hints[field.name])), field.name
        assert get_args(TYPES[kind]) or TYPES[kind] == hints[field.name], field.name
        if field.required:
            assert default == "required"
        else:
            own = field.default
            if own is msgspec.NODEFAULT:
                own = field.default_factory()  # type: ignore[operator]
            assert json.loads(default.strip("`")) == json.loads(msgspec.json.encode(own)), (
                field.name
            )


def test_states() -> None:
    _, _, meaning = table("## Header of an outcome")["state"]
    assert set(re.findall(r"`(\w+)`", meaning)) == {STARTED, RETRY, *FINAL_STATES}


def test_the_table_of_compressions() -> None:
    assert sorted(table("## Compression")) == compression.names()


def test_the_default_limit() -> None:
    assert Settings().max_message_size == 16 * 1024 * 1024
    assert "(16 MiB unless configured)" in PAGE


def test_the_error_that_is_described_is_the_one_that_is_written() -> None:
    from taskline.failures import encode_error

    section = PAGE.split("\n### Errors\n", 1)[1].split("\n## ", 1)[0]
    described = set(re.findall(r"^\| `(\w+)` \|", section, re.M))
    error = ValueError("no")
    error.code = 3  # type: ignore[attr-defined]
    assert described == {*encode_error(error), "exceptions"}


def test_values_are_written_as_the_table_says() -> None:
    zone = timezone(timedelta(hours=1))
    at = datetime(2024, 1, 2, 3, 4, 5, tzinfo=zone)
    later = timedelta(days=1, seconds=2)
    value = [b"\xfb\xff", at, at.replace(tzinfo=None), at.date(), at.time(), later, {at.date(): 1}]
    as_json, as_msgpack = (serializers.get(name).dumps([value, {}]) for name in ("json", "msgpack"))
    written = [
        "+/8=",
        "2024-01-02T03:04:05+01:00",
        "2024-01-02T03:04:05",
        "2024-01-02",
        "03:04:05",
        "P1DT2S",
        {"2024-01-02": 1},
    ]
    assert json.loads(as_json) == [written, {}]
    assert b"\xc4\x02\xfb\xff" in as_msgpack  # binary
    seconds = int(at.timestamp()).to_bytes(4, "big")
    assert b"\xd6\xff" + seconds in as_msgpack  # the timestamp extension
    assert serializers.get("msgpack").loads(as_msgpack)[0][2:] == written[2:]
