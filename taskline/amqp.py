"""A message of another system, as AMQP and kombu carry it, in one piece of bytes.

Transports hand frames to a codec and take frames from it. What is no frame of
Taskline's has headers and properties beside its body: they go along as a line of JSON
in front of it.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import msgspec

from taskline.errors import SerializationError

MARK = b'{"amqp":'
"""Every wrapped message begins so, and no frame of Taskline's."""


ADDRESS = "address"
"""A property: the queue, by its name at the broker, to which a reply goes, if it is there."""


class Envelope(msgspec.Struct):
    """What a message has beside its body."""

    headers: dict[str, Any] = {}
    content_type: str = ""
    content_encoding: str = ""
    properties: dict[str, Any] = {}
    """`correlation_id`, `reply_to`, …."""


def moment(value: object) -> float | None:
    """Unix seconds of a time as Celery writes it, ISO 8601; None for none.

    Raises `ValueError`. A time without a zone is UTC, as in Celery.
    """
    if value is None or value == "":
        return None
    text = str(value)
    if text.endswith("Z"):  # Python 3.10 does not read it
        text = text[:-1] + "+00:00"
    found = datetime.fromisoformat(text)
    if found.tzinfo is None:
        found = found.replace(tzinfo=timezone.utc)
    return found.timestamp()


def stamp(seconds: float | None) -> str | None:
    """Unix seconds as Celery writes a time; None for none."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat()


class _Wrapped(msgspec.Struct):
    amqp: Envelope


_decoder = msgspec.json.Decoder(_Wrapped)


def wrap(envelope: Envelope, body: bytes) -> bytes:
    """One piece of both. What JSON cannot carry is written as text."""
    head = msgspec.json.encode(_Wrapped(envelope), enc_hook=str)
    return head + b"\n" + body


def unwrap(frame: bytes) -> tuple[Envelope, bytes]:
    """What `wrap` made one. Raises `SerializationError`."""
    head, _, body = frame.partition(b"\n")
    try:
        return _decoder.decode(head).amqp, body
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SerializationError(f"not a wrapped message: {error}") from None
