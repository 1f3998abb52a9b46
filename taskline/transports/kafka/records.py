"""Messages as Kafka records: the frame is the value, and what the transport must know are headers.

A header's name begins with `taskline-`; those of the message itself (texts among
`headers=` of a call, and the trace context) stand beside them under their own names, for
other readers of the topic. `headers={"kafka_key": …}` is the record's key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias, cast

import msgspec

from taskline.errors import SerializationError
from taskline.message import DeadLetter, Header, Message, split

if TYPE_CHECKING:
    from confluent_kafka import Message as Record

ID = "taskline-id"
DELIVERIES = "taskline-deliveries"
LOST = "taskline-lost"
DUE = "taskline-due"
"""Unix seconds: when a delayed message goes to its topic, which TOPIC names."""
TOPIC = "taskline-topic"
QUEUE = "taskline-queue"
REASON = "taskline-reason"
AT = "taskline-at"
TASK = "taskline-task"
WORKER = "taskline-worker"
ATTEMPT = "taskline-attempt"
HANDED = "taskline-handed"
TRACEBACK = "taskline-traceback"
KEY = "kafka_key"

TRACEBACK_BYTES = 65536
"""Of a traceback's end, that are kept in a dead letter; and of a reason's beginning."""

Headers: TypeAlias = "list[tuple[str, str | bytes | None]]"


class Entry(msgspec.Struct, eq=False, gc=False):
    """A record that was read and is not finished."""

    offset: int
    id: str
    frame: bytes
    key: bytes | None = None
    deliveries: int = 0
    """Handings-over before this record was written."""
    lost: int = 0
    consumer: str = ""
    """In whose name it was handed over last."""
    serial: int = 0
    """Of that handing-over."""
    until: float = 0.0
    """When its lease ends, by the monotonic clock."""


def headers_of(header: Header, deliveries: int = 0, lost: int = 0) -> Headers:
    """The headers of a message's record."""
    found: Headers = [(ID, header.id.encode())]
    if deliveries or header.deliveries:
        found.append((DELIVERIES, b"%d" % max(deliveries, header.deliveries)))
    if lost:
        found.append((LOST, b"%d" % lost))
    if not header.headers and header.trace is None:
        return found
    for more in (header.headers, header.trace):
        if more:
            found += [
                (name, value)
                for name, value in more.items()
                if isinstance(value, str) and name != KEY and not name.startswith("taskline-")
            ]
    return found


def texts_of(frame: bytes) -> Headers:
    """Of the headers that the record of this frame has, those that are for other readers."""
    try:
        header, _ = split(frame.partition(b"\n")[2] if frame[:1] == b"~" else frame)
    except SerializationError:  # nobody's, or another's
        return []
    return [each for each in headers_of(header) if not each[0].startswith("taskline-")]


def key_of(message: Message) -> bytes | None:
    """The record's key, by which Kafka chooses the partition."""
    headers = message.header.headers
    if not headers or (key := headers.get(KEY)) is None:
        return None
    return str(key).encode()


def entry_of(record: Record) -> Entry:
    """What a record says; one that Taskline did not write gets an id of where it stands."""
    offset, headers = record.offset() or 0, headers_in(record)
    key, frame = record.key(), record.value() or b""
    if len(headers) == 1 and headers[0][0] == ID:
        return Entry(offset, headers[0][1].decode(errors="replace"), frame, key)
    known = known_headers(headers)
    return Entry(
        offset,
        known.get(ID) or f"{record.topic()}-{record.partition()}-{offset}",
        frame,
        key,
        number(known.get(DELIVERIES)),
        number(known.get(LOST)),
    )


def headers_in(record: Record) -> list[tuple[str, bytes]]:
    """The headers of a record that have a value."""
    return cast("list[tuple[str, bytes]]", record.headers() or [])


def known_headers(headers: list[tuple[str, bytes]]) -> dict[str, str]:
    """The headers that are ours, as text."""
    return {
        name: (value or b"").decode(errors="replace")
        for name, value in headers
        if name.startswith("taskline-")
    }


def number(text: str | None) -> int:
    """The number that a header holds; 0 where somebody wrote something else."""
    return int(text) if text and text.isdigit() else 0


def letter_headers(letter: DeadLetter, handed: int) -> Headers:
    """The headers of a dead letter's record; its key is the id and its value the frame.

    `handed` is how often the message was handed over.
    """
    trace = letter.traceback.encode()[-TRACEBACK_BYTES:]
    texts = {
        ID: letter.id,
        QUEUE: letter.queue,
        REASON: letter.reason[:TRACEBACK_BYTES],
        AT: repr(letter.at),
        TASK: letter.task,
        WORKER: letter.worker,
        ATTEMPT: str(letter.attempt),
        DELIVERIES: str(letter.deliveries),
        HANDED: str(handed),
    }
    headers: Headers = [(name, text.encode()) for name, text in texts.items()]
    headers.append((TRACEBACK, trace))
    return headers + texts_of(letter.frame)


def handed_of(record: Record) -> int:
    """How often the message of a dead letter was handed over."""
    return number(known_headers(headers_in(record)).get(HANDED))


def letter_of(record: Record) -> DeadLetter:
    """The dead letter that a record holds."""
    known = known_headers(headers_in(record))
    try:
        at = float(known.get(AT, "0"))
    except ValueError:
        at = 0.0
    return DeadLetter(
        id=(record.key() or b"").decode(errors="replace"),
        queue=known.get(QUEUE, ""),
        reason=known.get(REASON, ""),
        at=at,
        task=known.get(TASK, ""),
        worker=known.get(WORKER, ""),
        attempt=number(known.get(ATTEMPT)) or 1,
        deliveries=number(known.get(DELIVERIES)),
        traceback=known.get(TRACEBACK, ""),
        frame=record.value() or b"",
    )
