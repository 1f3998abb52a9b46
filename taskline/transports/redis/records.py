"""Messages as they are stored in Redis.

A head (priority; place and size of the queue's name; ms since when it is, or will be,
ready; where the frame had the id), then the frame. An id of 32 hexadecimal digits is
cut out of the frame: it is kept once, as the key, in half as many bytes. The queue's
name is found within the frame; where it is not, it stands before it.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import msgspec

from taskline.message import DeadLetter, Delivery, Message
from taskline.redis.packing import pack_id, unpack_id
from taskline.transports.base import StoredMessage

_HEAD = struct.Struct(">BHHHIH")
_RECORD = struct.Struct(">HIII8s")
CLAIMED = struct.Struct(">ddd")
"""How the answer of `claim.lua` begins."""
_WHOLE = 0xFFFF
"""Instead of a place of the id: the frame is as it was."""
_BEFORE = _HEAD.size
"""The place of a queue's name that is not part of the frame."""
_AFTER_LABEL = _HEAD.size + len('"queue":"')
_FAR = 0xFF00
_READY, _WITH_ETA = 48, 97
"""Codes of priority 0, of messages without and with an eta."""
_LATEST = (1 << 48) - 1
"""The year 10889, in milliseconds."""

_PRIORITIES = {
    start + priority: b"%d" % priority for start in (_READY, _WITH_ETA) for priority in range(10)
}


def pack_message(message: Message) -> tuple[bytes, bytes]:
    """The id and the value under which the message is stored."""
    header, frame = message.header, message.frame
    key, queue, cut = pack_id(header.id), header.queue.encode(), _WHOLE
    if len(key) == 16:
        at = frame.find(header.id.encode())
        if 0 <= at < _WHOLE:
            frame, cut = frame[:at] + frame[at + 32 :], at
    if header.eta is None:
        code, since = _READY + header.priority, int(header.sent * 1000)
    else:
        code, since = _WITH_ETA + header.priority, math.ceil(min(header.eta * 1000, _LATEST))
    since = max(since, 0)
    place = frame.find(b'"queue":"%b"' % queue, 0, _FAR)
    if place < 0:
        place, frame = _BEFORE, queue + frame
    else:
        place += _AFTER_LABEL
    head = _HEAD.pack(code, place, len(queue), since >> 32, since & 0xFFFFFFFF, cut)
    return key, head + frame


def unpack_frame(id: bytes, value: bytes) -> bytes:
    """The frame of a stored message."""
    _, place, size, _, _, cut = _HEAD.unpack_from(value)
    frame = value[_BEFORE + size if place == _BEFORE else _BEFORE :]
    return frame if cut == _WHOLE else frame[:cut] + id.hex().encode() + frame[cut:]


def unpack_claim(blob: bytes, node: bytes) -> list[Delivery]:
    """The deliveries in the answer of `claim.lua`. Receipts are token, priority, node, id."""
    record, head = _RECORD.unpack_from, _HEAD.unpack_from
    found: list[Delivery] = []
    names: dict[bytes, str] = {}
    at, end = CLAIMED.size, len(blob)
    while at < end:
        id_size, size, count, lost, token = record(blob, at)
        start = at + 22
        body = start + id_size
        at = body + size
        packed = blob[start:body]
        code, place, name_size, _, _, cut = head(blob, body)
        name = blob[body + place : body + place + name_size]
        frame_start = body + 13 + name_size if place == 13 else body + 13
        queue = names.get(name)
        if queue is None:
            queue = names[name] = name.decode()
        if cut == _WHOLE:
            key, frame = unpack_id(packed), blob[frame_start:at]
        else:
            key, cut = packed.hex(), frame_start + cut
            frame = b"%b%b%b" % (blob[frame_start:cut], key.encode(), blob[cut:at])
        receipt = b"%b%b%b%b" % (token, _PRIORITIES[code], node, packed)
        found.append(Delivery(key, queue, frame, count, lost, receipt))
    return found


def token_of(delivery: Delivery) -> float:
    """The token in a delivery's receipt."""
    token: float = struct.unpack_from(">d", delivery.receipt)[0]
    return token


def unpack_stored(queue: str, row: list[Any]) -> StoredMessage:
    """One answer of `peek.lua`."""
    key, state, due, deliveries, value = row
    return StoredMessage(
        id=unpack_id(key),
        queue=queue,
        state=state.decode(),
        due=float(due) / 1000 if due else None,
        deliveries=deliveries,
        frame=unpack_frame(key, value),
    )


def pack_letter(letter: DeadLetter) -> bytes:
    """A dead letter without the name of its queue: size of the JSON, JSON, frame."""
    head = msgspec.json.encode(msgspec.structs.replace(letter, frame=b""))
    return struct.pack(">I", len(head)) + head + letter.frame


def unpack_letter(value: bytes) -> DeadLetter:
    """What `pack_letter` packed, behind the queue's name and its size."""
    start = 2 + int.from_bytes(value[:2], "big")
    body = start + 4
    frame = body + int.from_bytes(value[start:body], "big")
    return msgspec.structs.replace(_decode_letter(value[body:frame]), frame=value[frame:])


_decode_letter = msgspec.json.Decoder(DeadLetter).decode
