"""What reaches a codec may be anything. It is refused in one line, and nothing else happens."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import pickle
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from taskline.codec import Codec
from taskline.config import Settings
from taskline.errors import MessageRefused, SerializationError
from taskline.message import Header, OutcomeHeader, join

OPEN = Codec(Settings(max_message_size=100_000))
KEYED = Codec(
    Settings(
        max_message_size=100_000,
        signing_key="key",
        verify_keys=["older"],
        accept=["json", "msgpack", "pickle"],
    )
)
WAIVED = Codec(Settings(max_message_size=100_000, signing_key="key", accept_unsigned=True))
CODECS = [OPEN, KEYED, WAIVED]

anything = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

GOOD = {"v": 1, "id": "a1", "task": "t", "queue": "q", "sent": 1.0}
GOOD_OUTCOME = {"v": 1, "id": "a1", "state": "SUCCESS"}


def frame(body: bytes = b"[[],{}]", **fields: Any) -> bytes:
    return msgspec.json.encode({**GOOD, **fields}) + b"\n" + body


def read(codec: Codec, data: bytes) -> None:
    """Read it both ways; the only exceptions are ours, on one line of bounded length."""
    for opener in (codec.open, codec.open_outcome):
        said = ""
        try:
            header, body = opener(data)  # type: ignore[operator]
            codec.loads(header, body)
        except SerializationError as error:
            said = str(error)
        assert "\n" not in said
        assert len(said) < 500


def refusal(codec: Codec, data: bytes) -> str:
    with pytest.raises(SerializationError) as caught:
        codec.arguments(*codec.open(data))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    return str(caught.value)


@anything
@given(st.binary(max_size=300))
@example(b"")
@example(b"\n")
@example(b"~")
@example(b"~\n")
@example(b"null\n")
@example(b"~00000000." + b"0" * 64 + b"\n")
@example(b"~00000000." + b"0" * 64 + b"\n" + frame())
def test_random_bytes(data: bytes) -> None:
    for codec in CODECS:
        read(codec, data)


@anything
@given(st.binary(max_size=300), st.sampled_from(["json", "msgpack"]), st.booleans())
def test_random_bodies(body: bytes, serializer: str, signed: bool) -> None:
    header = Header(**GOOD, serializer=serializer)
    message = (KEYED if signed else OPEN).reframe(header, body)
    for codec in CODECS:
        read(codec, message.frame)


@anything
@given(
    st.binary(max_size=300),
    st.sampled_from(["zlib", "gzip", "bz2", "lzma", "zstd", "lz4", "", "\n"]),
)
def test_random_compressed_bodies(body: bytes, compression: str) -> None:
    read(OPEN, join(Header(**GOOD, compression=compression), body))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)  # fmt: skip
FIELDS = sorted({*Header.__struct_fields__, *OutcomeHeader.__struct_fields__})


@anything
@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4))
def test_header_fields_of_any_type(fields: dict[str, Any]) -> None:
    for good in (GOOD, GOOD_OUTCOME):
        read(OPEN, msgspec.json.encode({**good, **fields}) + b"\n[[],{}]")


@anything
@given(st.data())
def test_altered_bytes_never_pass_a_signature(data: st.DataObject) -> None:
    good = KEYED.encode(Header(**GOOD), [[1], {}]).frame
    at = data.draw(st.integers(0, len(good) - 1))
    with_ = data.draw(st.integers(0, 255).filter(lambda byte: byte != good[at]))
    with pytest.raises(MessageRefused):
        KEYED.open(good[:at] + bytes([with_]) + good[at + 1 :])


def test_every_truncation_is_refused() -> None:
    for codec in (OPEN, KEYED):
        good = codec.encode(Header(**GOOD), [["text"], {"a": 1}]).frame
        codec.arguments(*codec.open(good))
        for length in range(len(good)):
            refusal(codec, good[:length])


@pytest.mark.parametrize("name", ["zlib", "gzip", "bz2", "lzma", "zstd"])
def test_every_truncation_of_a_compressed_body_is_refused(name: str) -> None:
    codec = Codec(Settings(compression=name, compress_above=0))
    header, body = codec.open(codec.encode(Header(**GOOD), [["x" * 200], {}]).frame)
    for length in range(len(body)):
        with pytest.raises(SerializationError):
            codec.loads(header, body[:length])
    with pytest.raises(SerializationError):
        codec.loads(header, body + b"x")


def streamed_zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=False).compress(data)


def lying_zstd(data: bytes) -> bytes:
    """A frame that claims to hold 256 bytes."""
    packed = zstandard.ZstdCompressor().compress(data)
    size = len(data).to_bytes(4, "little")
    assert packed.count(size) == 1
    return packed.replace(size, (256).to_bytes(4, "little"))


BOMBS: dict[str, Callable[[bytes], bytes]] = {
    "zlib": zlib.compress,
    "gzip": gzip.compress,
    "bz2": bz2.compress,
    "lzma": lzma.compress,
    "zstd": zstandard.ZstdCompressor().compress,
    "zstd-streamed": streamed_zstd,
    "zstd-lying": lying_zstd,
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_cost_no_more_than_the_limit(name: str) -> None:
    bomb = BOMBS[name](b" " * 50_000_000)
    codec = Codec(Settings(max_message_size=200_000))
    header = Header(**GOOD, compression=name.partition("-")[0])
    codec.loads(header, BOMBS[name.partition("-")[0]](b"[]"))
    tracemalloc.start()
    try:
        with pytest.raises(SerializationError):
            codec.loads(header, bomb)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20_000_000


def test_an_lzma_header_cannot_ask_for_all_memory() -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 256 * 1024 * 1024}]
    packed = lzma.compress(b"[[],{}]", filters=filters)
    assert "emory" in refusal(OPEN, frame(packed, compression="lzma"))


def test_bodies_within_the_limit_are_read_exactly() -> None:
    body = b"[[" + b" " * 90_000 + b"],{}]"
    for name, compress in BOMBS.items():
        if name != "zstd-lying":
            sent = frame(compress(body), compression=name.partition("-")[0])
            assert OPEN.arguments(*OPEN.open(sent)) == ([], {})


def test_oversized() -> None:
    for codec in CODECS:
        message = refusal(codec, frame(b" " * 100_000 + b"[[],{}]"))
        assert "larger than max_message_size = 100000" in message


@pytest.mark.parametrize("serializer", ["json", "msgpack"])
def test_deep_nesting(serializer: str) -> None:
    body = b"[" * 90_000 if serializer == "json" else b"\x91" * 90_000
    assert "nested too deeply" in refusal(OPEN, frame(body, serializer=serializer))


@pytest.mark.parametrize("field", [b'"headers"', b'"unknown"', b'"retry"'])
def test_deep_nesting_in_the_header(field: bytes) -> None:
    head = msgspec.json.encode(GOOD)[:-1] + b"," + field + b":" + b'{"a":' * 19_000
    assert "not a Taskline message" in refusal(OPEN, head)


@pytest.mark.parametrize(
    ("body", "serializer"),
    [
        (b'["\xff",{}]', "json"),
        (b"\x92\x91\xa1\xff\x80", "msgpack"),
        (b"[[1e999],{}]", "json"),
        (b"[[1" + b"0" * 5000 + b"],{}]", "json"),
        (b"[[NaN],{}]", "json"),
        (b"\xdd\xff\xff\xff\xff", "msgpack"),
        (b"\xdf\xff\xff\xff\xff", "msgpack"),
        (b"\xc6\xff\xff\xff\xff", "msgpack"),
        (b"\xc7\x0c\xff" + b"\xff" * 12, "msgpack"),
        (b"", "json"),
        (b"", "msgpack"),
    ],
)
def test_bodies_that_are_broken(body: bytes, serializer: str) -> None:
    said = refusal(OPEN, frame(body, serializer=serializer))
    assert said.startswith(f"the body cannot be read as {serializer}: ")


def test_invalid_utf8_in_the_header() -> None:
    assert "utf-8" in refusal(OPEN, frame().replace(b'"t"', b'"\xff"'))


@pytest.mark.parametrize("version", [0, 2, -1, 10**30])
def test_other_versions(version: int) -> None:
    said = refusal(OPEN, frame(v=version))
    assert "protocol version" in said or "out of range" in said


def test_a_header_without_its_newline() -> None:
    assert "ends within its header" in refusal(OPEN, msgspec.json.encode(GOOD))


@pytest.mark.parametrize("missing", sorted(GOOD))
def test_a_header_field_missing(missing: str) -> None:
    fields = {name: value for name, value in GOOD.items() if name != missing}
    assert missing in refusal(OPEN, msgspec.json.encode(fields) + b"\n[[],{}]")


def test_unknown_serializer_and_compression() -> None:
    assert "'marshal' is not accepted" in refusal(OPEN, frame(serializer="marshal"))
    assert "unknown compression 'lz4': known are " in refusal(OPEN, frame(compression="lz4"))
    for long in ("x" * 5000, "line\nbreak"):
        refusal(OPEN, frame(serializer=long))
        refusal(OPEN, frame(compression=long))


class Evil:
    """A pickle of this makes the directory when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_hostile_pickle_never_runs(tmp_path: Path) -> None:
    target = tmp_path / "pwned"
    evil = pickle.dumps(Evil(target))
    accepting = Codec(Settings(accept=["json", "pickle"], signing_key="key"))
    stranger = Codec(Settings(accept=["json", "pickle"], signing_key="stranger"))
    header = Header(**GOOD, serializer="pickle")
    outcome = OutcomeHeader(**GOOD_OUTCOME, serializer="pickle")
    unsigned = join(header, evil)
    signed = stranger.reframe(header, evil).frame
    good = accepting.encode(Header(**GOOD), [[], {}]).frame
    stolen = good[:75] + unsigned
    for codec in (OPEN, WAIVED, KEYED, accepting):
        for data in (unsigned, signed, stolen):
            with pytest.raises(MessageRefused):
                codec.open(data)
        with pytest.raises(MessageRefused):
            codec.open_outcome(join(outcome, evil))
    for codec in (OPEN, WAIVED):
        for head in (header, outcome):
            with pytest.raises(MessageRefused):
                codec.loads(head, evil)
    assert not target.exists()
    # The same pickle does run for who may: the test would notice it.
    accepting.loads(*accepting.open(accepting.reframe(header, evil).frame))
    assert target.exists()


def test_a_pickle_that_fails_when_it_is_read() -> None:
    body = pickle.dumps(Evil(Path("/")))
    message = KEYED.reframe(Header(**GOOD, serializer="pickle"), body)
    assert "cannot be read as pickle" in refusal(KEYED, message.frame)


def test_signature_lines_that_are_malformed() -> None:
    good = KEYED.encode(Header(**GOOD), [[], {}]).frame
    for bad in (
        good.replace(b".", b"-", 1),
        good[:10] + good[10:74].upper() + good[74:],
        good[:73] + b"\n" + good[74:],
        b"~" + good,
        b"~\xff\xff\xff\xff\xff\xff\xff\xff" + good[9:],
    ):
        with pytest.raises(MessageRefused):
            KEYED.open(bad)


def test_a_signature_does_not_travel_to_another_message() -> None:
    first = KEYED.encode(Header(**GOOD), [[1], {}]).frame
    second = KEYED.encode(Header(**GOOD), [[2], {}]).frame
    with pytest.raises(MessageRefused, match="is wrong: it was altered"):
        KEYED.open(first[:75] + second[75:])
