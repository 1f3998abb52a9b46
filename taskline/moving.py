"""Moving what waits at one broker to another: to take a node out, or to change brokers."""

from __future__ import annotations

import secrets

import msgspec

from taskline.codec import Codec
from taskline.errors import SerializationError
from taskline.message import DeadLetter, Delivery, Message
from taskline.transports.base import Transport

BATCH = 500
"""Messages in one round trip."""
LEASE = 60.0
"""Seconds for which a batch is claimed at the source while it is stored at the target."""


class Moved(msgspec.Struct):
    """What `drain` did, and what it had to leave at the source."""

    ready: int = 0
    delayed: int = 0
    unreadable: int = 0
    """Buried at the source: their frames are no messages, or not signed as they must be."""
    held: int = 0
    """Left: workers hold them."""
    dead: int = 0
    """Left: dead letters stay where they are."""


def drain(source: Transport, target: Transport, codec: Codec) -> Moved:
    """Move what waits in all queues of `source` to `target`, keeping ids, attempts and due times.

    A message is stored at the target before it is removed from the source: when this is
    killed nothing is lost, and to repeat it stores nothing twice that is still stored. Raises
    `TransportError` when either does not answer.
    """
    moved = Moved()
    queues = [each.queue for each in source.stats()]
    if not queues:
        return moved
    consumer = f"drain-{secrets.token_hex(4)}"
    while batch := source.receive(queues, BATCH, LEASE, 0.0, consumer):
        _move_ready(source, target, codec, batch, moved)
    if source.capabilities.peek and source.capabilities.delete:
        for queue in queues:
            _move_delayed(source, target, codec, queue, moved)
    for stats in source.stats(queues):
        moved.held += stats.leased or 0
        moved.dead += stats.dead or 0
    return moved


def _move_ready(
    source: Transport, target: Transport, codec: Codec, batch: list[Delivery], moved: Moved
) -> None:
    messages: list[Message] = []
    sent: list[Delivery] = []
    unreadable: list[tuple[Delivery, DeadLetter]] = []
    for delivery in batch:
        try:
            messages.append(_copy(codec, delivery.frame, delivery.deliveries))
        except SerializationError as error:
            letter = DeadLetter(
                id=delivery.id,
                queue=delivery.queue,
                reason=str(error),
                at=source.clock.time(),
                deliveries=delivery.deliveries,
                frame=delivery.frame,
            )
            unreadable.append((delivery, letter))
        else:
            sent.append(delivery)
    target.send(messages)
    source.ack(sent)
    source.bury(unreadable)
    moved.ready += len(sent)
    moved.unreadable += len(unreadable)


def _move_delayed(
    source: Transport, target: Transport, codec: Codec, queue: str, moved: Moved
) -> None:
    offset = 0
    while page := source.peek(queue, BATCH, offset):
        ids: list[str] = []
        messages: list[Message] = []
        for stored in page:
            if stored.state == "delayed":
                try:
                    messages.append(_copy(codec, stored.frame, stored.deliveries))
                except SerializationError:
                    continue  # buried by the worker that gets it, when it is due
                ids.append(stored.id)
        target.send(messages)
        gone = len(source.delete(ids)) if ids else 0
        moved.delayed += gone
        offset += len(page) - gone


def _copy(codec: Codec, frame: bytes, deliveries: int) -> Message:
    """The message of a frame, which goes on counting deliveries where it is stored next."""
    header, body = codec.open(frame)
    return codec.reframe(msgspec.structs.replace(header, deliveries=deliveries), body)
