"""What travels: messages to the workers, outcomes back.

Both are frames: a JSON header, a newline, and a body in the serializer that
the header names. `docs/protocol.md` is the specification.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from taskline.errors import SerializationError

VERSION = 1
DEFAULT_PRIORITY = 5

PENDING = "PENDING"
STARTED = "STARTED"
RETRY = "RETRY"
SUCCESS = "SUCCESS"
FAILURE = "FAILURE"
REVOKED = "REVOKED"
EXPIRED = "EXPIRED"

FINAL_STATES = frozenset({SUCCESS, FAILURE, REVOKED, EXPIRED})
"""A task ends in exactly one of these."""


class Place(msgspec.Struct, omit_defaults=True):
    """Where in a workflow a message belongs."""

    id: str
    """The workflow's."""
    at: int
    """The number of the step."""
    member: int | None = None
    """Which member of the step it is, when the step is a group."""
    take: list[tuple[str | None, Any]] = []
    """The results it takes: each the name of a parameter, or null for the next positional
    one, and a reference: the id of an outcome, or `[id, n]` for the list of those of
    `id-0` to `id-(n-1)`."""


class Unique(msgspec.Struct, omit_defaults=True):
    """Which other calls a message is not to meet: `taskline.unique`. Durations are seconds."""

    key: str
    """In the key store of the result backend."""
    until: str
    """`start`, `end` or `time`: till then the first call of the key has it. `newer`: of several
    that wait only the newest is run."""
    ttl: float
    """How long the key is kept at most."""
    drop: bool = False
    """A second call is dropped; else it gets the result of the first."""
    print: str = ""
    """Tells calls with other arguments from this one: they may not use its key."""
    wait: float | None = None
    """Run it so long after the last call."""
    max_wait: float | None = None
    """And this long after the first call at the latest."""
    turn: int = 0
    """Its place in the order of those of which the newest is run."""


class Header(msgspec.Struct, omit_defaults=True, gc=False):
    """The header of a message. Times are Unix seconds, durations seconds.

    Like `Message` unknown to the garbage collector, which would look again and again at what a
    program sends or reads: the plain data in them has no cycles.
    """

    v: int
    id: str
    task: str
    queue: str
    sent: float
    serializer: str = "json"
    compression: str = ""
    attempt: int = 1
    priority: int = DEFAULT_PRIORITY
    eta: float | None = None
    expires: float | None = None
    timeout: float | None = None
    soft_timeout: float | None = None
    result_ttl: float | None = None
    retry: dict[str, Any] | None = None
    """A policy that overrides the task's own, as `taskline.policy` writes it."""
    first_run: float | None = None
    """When the first attempt started, once there was one."""
    waited: float = 0.0
    """Seconds spent waiting between attempts so far."""
    errors: Sequence[str] = ()
    """One line for each failed attempt, the newest last; at most ten are kept."""
    deliveries: int = 0
    """Handings-over before this copy of the message was stored, for transports that
    store a new copy when a message is tried again."""
    parent: str | None = None
    root: str | None = None
    trace: dict[str, str] | None = None
    headers: dict[str, Any] = {}
    schedule: str | None = None
    """The name of the schedule that sent it."""
    slot: float | None = None
    """For which moment that was."""
    flow: Place | None = None
    """Set for a step of a workflow."""
    unique: Unique | None = None
    """Set for a call that is not to meet others."""


class Message(msgspec.Struct, frozen=True, gc=False):
    """A header and its encoded frame, ready for a transport."""

    header: Header
    frame: bytes


class Delivery(msgspec.Struct, eq=False):
    """One handing-over of a message to a worker.

    `deliveries` counts the handings-over of this message, this one included: it
    only ever grows, through retries, dead letters and requeues, and so serves as
    a fencing token. `lost` counts those that ended with their worker's death or
    the end of their lease. `receipt` is the transport's own, opaque to all others.
    """

    id: str
    queue: str
    frame: bytes
    deliveries: int
    lost: int
    receipt: Any


class DeadLetter(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A message that will not be tried again by itself, and why."""

    id: str
    queue: str
    reason: str
    at: float
    """When it was buried, Unix seconds."""
    task: str = ""
    worker: str = ""
    attempt: int = 1
    deliveries: int = 0
    traceback: str = ""
    frame: bytes = b""
    """The message's raw bytes, as they were received."""


class OutcomeHeader(msgspec.Struct, omit_defaults=True):
    """The header of an outcome."""

    v: int
    id: str
    state: str
    task: str = ""
    queue: str = ""
    serializer: str = "json"
    compression: str = ""
    attempt: int = 1
    deliveries: int = 0
    worker: str = ""
    started: float | None = None
    finished: float | None = None
    retry_at: float | None = None
    """When the next attempt is due, in state RETRY."""
    errors: Sequence[str] = ()
    error: dict[str, Any] | None = None
    """A failure: `type`, `message`, `traceback`, and `args` and `attrs` when JSON carries them."""
    parent: str | None = None
    root: str | None = None
    children: list[str] = []
    """The ids of what the task itself has sent."""
    refers: Any = None
    """Of a workflow that succeeded: the value is that of this reference, as in `Place.take`,
    or an object of such references."""
    progress: dict[str, Any] | None = None
    """What the task told last: `done`, `total`, `message`."""


class Outcome(msgspec.Struct, frozen=True):
    """What a backend stores for one task: its state, and the frame that tells the rest.

    (`sent`, `deliveries`) is the fence: of two runs of one task the one with the
    greater fence stays. `ttl` is in seconds; None keeps the outcome for ever.
    """

    id: str
    state: str
    sent: float
    deliveries: int
    ttl: float | None
    frame: bytes

    @property
    def fence(self) -> tuple[float, int]:
        return (self.sent, self.deliveries)


_header_decoder = msgspec.json.Decoder(Header)
_outcome_decoder = msgspec.json.Decoder(OutcomeHeader)
_encode = msgspec.json.Encoder().encode


_TAILS = 256
"""So many ids take their random digits from the system at once."""
_VERSIONS = bytes(0x70 | byte & 0x0F for byte in range(256))
_VARIANTS = bytes(0x80 | byte & 0x3F for byte in range(256))
_tails: list[str] = []
_stamp = (0, "")
"""The millisecond of the last id, and its digits."""


def new_id() -> str:
    """A UUIDv7 (RFC 9562) as 32 hexadecimal digits: sorts by time of creation."""
    global _stamp
    try:
        tail = _tails.pop()
    except IndexError:
        tail = _more_tails()
    now = time.time_ns() // 1_000_000
    millisecond, digits = _stamp
    if millisecond != now:
        digits = f"{now:012x}"
        _stamp = (now, digits)
    return digits + tail


def _more_tails() -> str:
    """Random ends of ids, made many at a time: one is returned, the others wait in `_tails`."""
    rand = bytearray(os.urandom(10 * _TAILS))
    rand[0::10] = rand[0::10].translate(_VERSIONS)
    rand[2::10] = rand[2::10].translate(_VARIANTS)
    first, *others = rand.hex(" ", 10).split()
    _tails.extend(others)
    return first


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_tails.clear)  # or it would make the ids of its parent


def join(header: Header | OutcomeHeader, body: bytes) -> bytes:
    """The unsigned frame of a header and an encoded body."""
    return _encode(header) + b"\n" + body


def split(frame: bytes) -> tuple[Header, bytes]:
    """The header and body of an unsigned message frame.

    Raises `SerializationError` when the bytes are not a frame of this version.
    """
    head, newline, body = frame.partition(b"\n")
    try:
        header = _header_decoder.decode(head)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SerializationError(f"not a Taskline message: {error}") from None
    _check(header.v, newline)
    return header, body


def split_outcome(frame: bytes) -> tuple[OutcomeHeader, bytes]:
    """The header and body of an unsigned outcome frame; raises as `split` does."""
    head, newline, body = frame.partition(b"\n")
    try:
        header = _outcome_decoder.decode(head)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SerializationError(f"not a Taskline outcome: {error}") from None
    _check(header.v, newline)
    return header, body


def _check(version: int, newline: bytes) -> None:
    if version != VERSION:
        raise SerializationError(
            f"protocol version {version}, but this Taskline reads {VERSION}: upgrade the older side"
        )
    if not newline:
        raise SerializationError("not a Taskline message: it ends within its header")
