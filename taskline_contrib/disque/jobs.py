"""What a Taskline message is as a Disque job, and what Disque tells of its jobs."""

from __future__ import annotations

from typing import Any

import msgspec

from taskline.errors import SerializationError
from taskline.message import DeadLetter, split
from taskline.transports.base import StoredMessage

DEAD = "taskline:dead:"
"""In front of a queue's name: the queue of its dead letters."""
WAKE = "taskline:wake:"
"""In front of the name of the queue that wakes one transport."""


class Job(msgspec.Struct, array_like=True):
    """The first line of a job's body; the frame follows. Disque has no place for this."""

    kind: str
    id: str
    deliveries: int = 0
    """Handings-over before this copy of the message was stored."""
    lost: int = 0
    letter: DeadLetter | None = None
    """Of a dead letter: all but its frame."""


class Shown(msgspec.Struct):
    """A job as SHOW and JSCAN describe it."""

    job_id: str
    state: str
    created: float
    """Unix seconds, by the server's clock."""
    delay: float
    nacks: int
    again: int
    """Deliveries after the first that were not due to a NACK."""
    requeue_within: float
    """Seconds until it is put into its queue, unless it is acknowledged."""
    body: bytes

    def delayed(self, now: float) -> bool:
        """Whether it waits for its time and nobody has had it yet. `now` is Unix seconds."""
        if self.state != "active" or not self.delay or self.nacks or self.again:
            return False
        # Whoever gets it postpones it: then it would come back later than its delay says.
        return now + self.requeue_within <= self.created + self.delay + 0.5


_decoder = msgspec.json.Decoder(Job)


def write(job: Job, frame: bytes) -> bytes:
    """The body of a job."""
    return msgspec.json.encode(job) + b"\n" + frame


def read(body: bytes, job_id: str) -> tuple[Job, bytes]:
    """What was written so; a job that Taskline's transport did not write is its frame.

    Such a job has the id in the frame, if it is a message, and otherwise Disque's.
    """
    line, _, frame = body.partition(b"\n")
    if line.startswith(b'["taskline"'):
        try:
            return _decoder.decode(line), frame
        except msgspec.DecodeError:
            pass
    unsigned = body.partition(b"\n")[2] if body.startswith(b"~") else body
    try:
        header, _ = split(unsigned)
    except SerializationError:
        return Job("taskline", job_id), body
    return Job("taskline", header.id, header.deliveries), body


def shown(answer: list[Any]) -> Shown:
    """One answer of SHOW, or one job of JSCAN's."""
    fields = dict(zip(answer[::2], answer[1::2], strict=True))
    return Shown(
        job_id=fields[b"id"].decode(),
        state=fields[b"state"].decode(),
        created=int(fields[b"ctime"]) / 1e9,
        delay=float(fields[b"delay"]),
        nacks=int(fields[b"nacks"]),
        again=int(fields[b"additional-deliveries"]),
        requeue_within=int(fields[b"next-requeue-within"] or 0) / 1000,
        body=fields[b"body"] or b"",
    )


def stored(queue: str, shown: Shown, now: float) -> StoredMessage:
    """A job as `peek` shows it. `now` is Unix seconds."""
    job, frame = read(shown.body, shown.job_id)
    ready = shown.state == "queued"
    waits = shown.delayed(now)
    begun = 0 if ready or waits else 1
    return StoredMessage(
        id=job.id,
        queue=queue,
        state="ready" if ready else "delayed" if waits else "leased",
        due=None if ready else now + shown.requeue_within,
        deliveries=job.deliveries + shown.nacks + shown.again + begun,
        frame=frame,
    )
