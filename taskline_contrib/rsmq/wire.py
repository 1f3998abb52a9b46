"""How Taskline's queue names, ids and frames are written for clients of RSMQ."""

from __future__ import annotations

import random
import re

import msgspec

from taskline.errors import SerializationError
from taskline.message import VERSION, Header, join, split

DEAD = "-dead"
"""Ends the names of the queues of dead letters."""
_ESCAPE = "taskline-x-"
"""In front of a queue's name in hexadecimal digits."""
_PLAIN = re.compile(r"[a-zA-Z0-9_-]+")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def to_rsmq(queue: str) -> str:
    """The RSMQ name of a queue: the same, if RSMQ allows it and it means nothing else."""
    if (
        _PLAIN.fullmatch(queue)
        and queue != "QUEUES"
        and not queue.startswith(_ESCAPE)
        and not queue.endswith(DEAD)
    ):
        return queue
    return _ESCAPE + queue.encode().hex()


def from_rsmq(name: str) -> str:
    """The queue that has this RSMQ name."""
    if name.startswith(_ESCAPE):
        try:
            return bytes.fromhex(name[len(_ESCAPE) :]).decode()
        except ValueError:
            return name
    return name


def is_frame(frame: bytes) -> bool:
    """Whether these bytes are a message of Taskline's, signed or not."""
    if frame.startswith(b"~"):
        frame = frame.partition(b"\n")[2]
    if not frame.startswith(b"{"):
        return False
    try:
        split(frame)
    except SerializationError:
        return False
    return True


def call_frame(task: str, queue: str, id: str, body: bytes, *, as_json: bool) -> bytes | None:
    """The frame of a call of `task` with a plain message as its argument.

    None when the body is not UTF-8, or not JSON where it has to be.
    """
    try:
        argument = msgspec.json.decode(body) if as_json else body.decode()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    header = Header(v=VERSION, id=id, task=task, queue=queue, sent=sent_at(id))
    return join(header, msgspec.json.encode([[argument], {}]))


def sent_at(rid: str) -> float:
    """When a message of this RSMQ id was sent, Unix seconds; 0 when the id does not tell."""
    try:
        return int(rid[:10], 36) / 1_000_000
    except ValueError:
        return 0.0


def random_suffix() -> str:
    """The last 22 characters of an id; the first ten are the time, which the server knows."""
    return "".join(random.choices(_LETTERS, k=22))
