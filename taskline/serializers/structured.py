"""JSON and MessagePack, on msgspec: plain data, which annotations turn back into types."""

from __future__ import annotations

from collections import UserString, deque
from collections.abc import Callable, Mapping, Sequence, Set
from operator import index
from os import PathLike, fspath
from typing import Any

import msgspec

from taskline.serializers.base import Serializer


def plain(value: Any) -> Any:
    """A value that msgspec cannot encode, as one that it can; its `enc_hook`.

    Subclasses of str, float and bytes become the plain type, integers of any kind
    int, pydantic models and other mappings dicts, paths strings, and sequences and
    sets of any kind lists.
    Raises `TypeError` for anything else.
    """
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, bytes):
        return bytes(value)
    if hasattr(type(value), "__index__"):
        return index(value)
    dump = getattr(type(value), "model_dump", None)
    if dump is not None:
        # JSON mode: the types within the model are pydantic's to write, and to read again.
        return dump(value, mode="json", round_trip=True)
    if isinstance(value, PathLike):
        return fspath(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (Set, Sequence, deque)) and not isinstance(value, UserString):
        return list(value)
    raise TypeError(
        f"{type(value).__module__}.{type(value).__qualname__} is not plain data: {_short(value)}"
    )


def _short(value: Any) -> str:
    try:
        text = " ".join(repr(value).split())
    except Exception as error:
        text = f"(its repr raised {type(error).__name__})"
    return text if len(text) <= 80 else text[:77] + "..."


_encode_json = msgspec.json.Encoder(enc_hook=plain).encode
_strict_encode: Callable[[Any], str] | None = None


def dumps_json(value: Any) -> bytes:
    """The value as JSON. Raises `ValueError` for a NaN or an infinity within."""
    body = _encode_json(value)
    if body.find(b"null") >= 0 and value is not None:
        _refuse_non_finite(value)
    return body


def _refuse_non_finite(value: Any) -> None:
    # msgspec writes NaN and the infinities as null, silently; the standard library can refuse.
    global _strict_encode
    if _strict_encode is None:
        from json import JSONEncoder

        _strict_encode = JSONEncoder(allow_nan=False, check_circular=False).encode
    _strict_encode(msgspec.to_builtins(value, str_keys=True, enc_hook=plain))


JSON = Serializer("json", dumps_json, msgspec.json.Decoder().decode, safe=True)
MSGPACK = Serializer(
    "msgpack",
    msgspec.msgpack.Encoder(enc_hook=plain).encode,
    msgspec.msgpack.Decoder().decode,
    safe=True,
)
