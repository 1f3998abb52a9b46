"""Messages as they are stored in Redis.

A head (priority; size of the queue's name; ms since when it is, or will be, ready;
where the frame had the id), the queue's name, and the frame. An id of 32 hexadecimal
digits is cut out of the frame: it is kept once, as the key, in half as many bytes.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import msgspec

from taskline.message import DeadLetter, Delivery, Message
from taskline.redis.packing import pack_id, unpack_id
from taskline.transports.base import StoredMessage

_HEAD = struct.Struct(">BHHIH")
_RECORD = struct.Struct(">HIII8s")
_WHOLE = 0xFFFF
"""Instead of a place of the id: the frame is as it was."""
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
    id, queue, cut = pack_id(header.id), header.queue.encode(), _WHOLE
    if len(id) == 16:
        at = frame.find(header.id.encode())
        if 0 <= at < _WHOLE:
            frame, cut = frame[:at] + frame[at + 32 :], at
    if header.eta is None:
        code, since = _READY + header.priority, int(header.sent * 1000)
    else:
        code, since = _WITH_ETA + header.priority, math.ceil(min(header.eta * 1000, _LATEST))
    since = max(since, 0)
    return id, _HEAD.pack(code, len(queue), since >> 32, since & 0xFFFFFFFF, cut) + queue + frame


def unpack_frame(id: bytes, value: bytes) -> bytes:
    """The frame of a stored message."""
    _, queue_size, _, _, cut = _HEAD.unpack_from(value)
    frame = value[_HEAD.size + queue_size :]
    return frame if cut == _WHOLE else frame[:cut] + id.hex().encode() + frame[cut:]


def unpack_claim(blob: bytes, node: bytes) -> list[Delivery]:
    """The deliveries in the answer of `claim.lua`. Receipts are token, priority, node, id."""
    record, head = _RECORD.unpack_from, _HEAD.unpack_from
    found: list[Delivery] = []
    names: dict[bytes, str] = {}
    at, end = 8, len(blob)
    while at < end:
        id_size, size, count, lost, token = record(blob, at)
        start = at + 22
        body = start + id_size
        at = body + size
        id = blob[start:body]
        code, queue_size, _, _, cut = head(blob, body)
        frame_start = body + 11 + queue_size
        name = blob[body + 11 : frame_start]
        queue = names.get(name)
        if queue is None:
            queue = names[name] = name.decode()
        if cut == _WHOLE:
            key, frame = unpack_id(id), blob[frame_start:at]
        else:
            key, cut = id.hex(), frame_start + cut
            frame = b"%b%b%b" % (blob[frame_start:cut], key.encode(), blob[cut:at])
        receipt = b"%b%b%b%b" % (token, _PRIORITIES[code], node, id)
        found.append(Delivery(key, queue, frame, count, lost, receipt))
    return found


def token_of(delivery: Delivery) -> float:
    """The token in a delivery's receipt."""
    token: float = struct.unpack_from(">d", delivery.receipt)[0]
    return token


def unpack_stored(queue: str, row: list[Any]) -> StoredMessage:
    """One answer of `peek.lua`."""
    id, state, due, deliveries, value = row
    return StoredMessage(
        id=unpack_id(id),
        queue=queue,
        state=state.decode(),
        due=float(due) / 1000 if due else None,
        deliveries=deliveries,
        frame=unpack_frame(id, value),
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
