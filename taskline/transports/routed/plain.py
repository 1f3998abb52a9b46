"""Plain JSON in the place of a frame: messages of queues that other programs use.

To such a queue a call goes as its one argument; what comes from it, and is no frame,
is the one argument of a call of the task that its route names.
"""

from __future__ import annotations

import msgspec

from taskline.errors import SerializationError, TransportError
from taskline.message import VERSION, Header, Message, join, split


def call_of(task: str, queue: str, id: str, frame: bytes, now: float) -> bytes:
    """The frame of a call of the task; what is a frame, or not JSON, is returned as it is."""
    if _is_frame(frame):
        return frame
    try:
        payload = bytes(msgspec.json.encode(msgspec.json.decode(frame)))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return frame
    header = Header(VERSION, id, task, queue, now)
    return join(header, b"[[" + payload + b"],{}]")


def payload_of(message: Message) -> bytes:
    """The one argument of a call, as JSON; raises `TransportError` for what has another form."""
    frame = message.frame.partition(b"\n")[2] if message.frame[:1] == b"~" else message.frame
    header, body = split(frame)
    if header.serializer == "json" and not header.compression:
        args, kwargs = msgspec.json.decode(body)
        if len(args) == 1 and not kwargs:
            return msgspec.json.encode(args[0])
    raise TransportError(
        f"{header.task}: the queue {message.header.queue} carries plain JSON: call with one "
        "positional argument and no serializer",
        retryable=False,
    )


def _is_frame(frame: bytes) -> bool:
    """Whether these bytes are a message of Taskline's, signed or not."""
    if frame[:1] == b"~":
        frame = frame.partition(b"\n")[2]
    try:
        split(frame)
    except SerializationError:
        return False
    return True
