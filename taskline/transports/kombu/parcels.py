"""Taskline's messages as a broker of kombu's carries them, in headers and bodies."""

from __future__ import annotations

import contextlib
from hashlib import sha256
from typing import Any

from taskline import amqp as wrapped
from taskline.clock import Clock
from taskline.message import Header
from taskline.transports.kombu.link import OWN, Parcel, Taken
from taskline.transports.kombu.location import Location

ID, DELIVERIES, LOST, DUE = "taskline-id", "taskline-deliveries", "taskline-lost", "taskline-eta"
"""Headers: the task's id; handings-over before this copy, and those of them that were lost;
when it is due (Unix seconds)."""
KEPT = ("correlation_id", "reply_to", "message_id")
"""Properties that go with a message when it is stored anew."""
THEIRS = ("x-acquired-count", "x-death", "x-delivery-count", "x-first-death-", "x-last-death-")
"""Begin headers that RabbitMQ adds. They must not go with a message that is stored anew: by them it
takes one that waits a second time in the same queue for one that runs in circles, and drops it."""


class Parcels:
    """Makes parcels for one broker; `kind` is kombu's name for what it is."""

    def __init__(self, location: Location, kind: str, priority: bool, clock: Clock) -> None:
        """With `priority` the broker's queues have priorities."""
        self._location = location
        self._kind = kind
        self._has_priority = priority
        self._clock = clock

    def message(self, header: Header, frame: bytes, deliveries: int, lost: int = 0) -> Parcel:
        """A message with this header and frame, and the number of its handings-over so far."""
        delay = 0.0 if header.eta is None else header.eta - self._clock.time()
        headers: dict[str, Any] = {ID: header.id, DELIVERIES: deliveries, LOST: lost}
        if delay > 0:
            headers[DUE] = header.eta
        queue, priority = self._location.prefix + header.queue, self._priority(header.priority)
        if not frame.startswith(wrapped.MARK):
            return Parcel(queue, frame, headers, priority, max(0.0, delay))
        envelope, body = wrapped.unwrap(frame)
        address = envelope.properties.get(wrapped.ADDRESS)
        if address:
            queue, headers = str(address), {}
        if self._kind != "amqp":
            # Nobody but Taskline's workers would fetch it from where it waits.
            delay = 0.0
        return Parcel(
            queue,
            body,
            {**envelope.headers, **headers},
            priority,
            max(0.0, delay),
            envelope.content_type,
            envelope.content_encoding,
            {key: each for key, each in envelope.properties.items() if key in KEPT},
            reply=bool(address),
        )

    def _priority(self, priority: int) -> int | None:
        """Taskline's priority as kombu's transport has it."""
        if not self._has_priority:
            return None
        return 9 - priority if self._kind == "redis" else priority

    def again(
        self, taken: Taken, deliveries: int, lost: int, delay: float = 0.0, first: bool = False
    ) -> Parcel:
        """A copy of what was taken; `first` in its queue, if that has priorities."""
        headers = {
            key: value
            for key, value in taken.headers.items()
            if not key.startswith(("taskline-", *THEIRS)) or key == ID
        }
        headers.update({DELIVERIES: deliveries, LOST: lost})
        if delay > 0:
            headers[DUE] = self._clock.time() + delay
        priority = taken.properties.get("priority")
        if first and self._kind == "amqp" and self._has_priority:
            priority = self._location.priorities
        return Parcel(
            taken.queue,
            taken.body,
            headers,
            priority,
            delay,
            taken.content_type,
            taken.content_encoding,
            {key: taken.properties[key] for key in KEPT if taken.properties.get(key)},
        )


def read(taken: Taken, queue: str) -> tuple[str, bytes]:
    """The id and the frame of a message, wrapped if it is not Taskline's own."""
    headers = taken.headers
    if taken.content_type == OWN:
        known = str(headers.get(ID) or _unknown(taken))
        return known.encode(errors="replace").decode(), taken.body
    theirs = {
        key: value for key, value in headers.items() if not key.startswith(("taskline-", *THEIRS))
    }
    properties = {key: taken.properties[key] for key in KEPT if taken.properties.get(key)}
    properties["queue"] = queue
    envelope = wrapped.Envelope(theirs, taken.content_type, taken.content_encoding, properties)
    found = headers.get("id") or headers.get(ID) or properties.get("correlation_id")
    known = str(found or _unknown(taken))
    known = known.encode(errors="replace").decode()
    try:
        return known, wrapped.wrap(envelope, taken.body)
    except (ValueError, TypeError, RecursionError):  # headers that JSON cannot carry at all
        return known, wrapped.wrap(wrapped.Envelope(), taken.body)


def due(headers: dict[str, Any]) -> float:
    """When a message is due, Unix seconds; by Taskline's header, or by Celery's."""
    if DUE in headers:
        return number(headers, DUE)
    if "eta" in headers and ID not in headers:
        with contextlib.suppress(ValueError):
            return wrapped.moment(headers["eta"]) or 0.0
    return 0.0


def number(headers: dict[str, Any], name: str) -> float:
    """A header of ours; 0 for what somebody else may have written there."""
    found = headers.get(name, 0)
    return found if isinstance(found, (int, float)) and abs(found) < 1e12 else 0


def _unknown(taken: Taken) -> str:
    """An id for a message that has none, the same each time it is handed over."""
    return "unknown-" + sha256(taken.body).hexdigest()[:32]
