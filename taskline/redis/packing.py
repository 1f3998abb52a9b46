"""Ids and outcomes as they are stored in Redis."""

from __future__ import annotations

import struct

from taskline.message import (
    EXPIRED,
    FAILURE,
    PENDING,
    RETRY,
    REVOKED,
    STARTED,
    SUCCESS,
    Outcome,
)

_OUTCOME = struct.Struct(">dIcd")
_CODES = {
    PENDING: b"p", STARTED: b"s", RETRY: b"r",
    SUCCESS: b"S", FAILURE: b"F", REVOKED: b"R", EXPIRED: b"E",
}  # fmt: skip
_STATES = {code: state for state, code in _CODES.items()}


def pack_id(id: str) -> bytes:
    """An id of 32 hexadecimal digits in half as many bytes; any other in UTF-8, marked."""
    if len(id) == 32:
        try:
            packed = bytes.fromhex(id)
        except ValueError:
            packed = b""
        if packed.hex() == id:
            return packed
    text = id.encode()
    # 0xff begins no UTF-8; twice where 16 bytes would look like the other form.
    return b"\xff\xff" + text if len(text) == 15 else b"\xff" + text


def unpack_id(packed: bytes) -> str:
    """What `pack_id` packed."""
    if len(packed) == 16:
        return packed.hex()
    return packed.lstrip(b"\xff").decode()


def pack_outcome(outcome: Outcome) -> tuple[bytes, bytes, bytes]:
    """Id, value and milliseconds to live, as the scripts take them."""
    ttl = outcome.ttl
    value = _OUTCOME.pack(
        outcome.sent, outcome.deliveries, _CODES[outcome.state], -1.0 if ttl is None else ttl
    )
    return pack_id(outcome.id), value + outcome.frame, milliseconds(ttl)


def unpack_outcome(id: str, value: bytes) -> Outcome:
    """What `pack_outcome` packed."""
    sent, deliveries, code, ttl = _OUTCOME.unpack_from(value)
    frame = value[_OUTCOME.size :]
    return Outcome(id, _STATES[code], sent, deliveries, None if ttl < 0 else ttl, frame)


def is_final(value: bytes) -> bool:
    """Whether a packed outcome is in a final state."""
    return value[12] < 97


def milliseconds(seconds: float | None) -> bytes:
    """At least one; empty for None."""
    return b"" if seconds is None else b"%d" % max(1, round(seconds * 1000))
