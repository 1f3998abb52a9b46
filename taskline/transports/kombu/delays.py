"""Waiting in RabbitMQ: levels of queues whose messages expire into the next level.

Level k holds each message for 2^k units. A message passes those levels whose bit is set
in its delay, the highest first, and comes into its queue from the last one. So few
queues do for all delays, and each holds messages of one age, whose oldest is always the
next to expire. NServiceBus and Celery 5.5 do the like:
https://docs.particular.net/transports/rabbitmq/delayed-delivery
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kombu.connection import Connection

UNIT = 0.064
"""Seconds that level 0 holds a message, hence how late one may be on account of its delay."""
LEVELS = 26
"""They hold a message for up to 2^26 - 1 units, 49 days. Who waits longer goes through again."""
MOST = (1 << LEVELS) - 1
COMPLETE = "taskline.delay"
"""An exchange that is there once all levels are."""
DUE = "taskline.due"
"""The exchange behind the last level, from which messages go to their queues."""


def level(number: int) -> str:
    """The name of a level's exchange and of its queue."""
    return f"taskline.delay.{number:02}"


class Delays:
    """The levels at one broker, over one connection."""

    def __init__(self, connection: Connection, quorum: bool) -> None:
        """`quorum`: make quorum queues, between which messages move without being lost."""
        self._connection = connection
        self._quorum = quorum
        self._made = False

    def route(self, seconds: float) -> tuple[str, dict[str, Any]]:
        """The exchange, and the headers that lead through the levels."""
        if not self._made:
            self._make()
        units = min(max(1, math.ceil(seconds / UNIT)), MOST)
        highest = units.bit_length() - 1
        bits = {f"taskline-{number}": units >> number & 1 for number in range(highest + 1)}
        return level(highest), bits

    def _make(self) -> None:
        from amqp.exceptions import NotFound
        from kombu.entity import Exchange

        with self._connection.channel() as channel:
            mark = Exchange(COMPLETE, "fanout").bind(channel)
            try:
                mark.declare(passive=True)
            except NotFound:
                Exchange(DUE, "direct").bind(channel).declare()
                for number in range(LEVELS):
                    self._make_level(channel, number)
                mark.declare()
        self._made = True

    def _make_level(self, channel: Any, number: int) -> None:
        from kombu.entity import Exchange, Queue

        name, bit = level(number), f"taskline-{number}"
        below = level(number - 1) if number else DUE
        arguments: dict[str, Any] = {
            "x-message-ttl": round(UNIT * 1000) << number,
            "x-dead-letter-exchange": below,
        }
        if self._quorum:
            arguments["x-queue-type"] = "quorum"
            arguments["x-dead-letter-strategy"] = "at-least-once"
            arguments["x-overflow"] = "reject-publish"
        exchange = Exchange(name, "headers").bind(channel)
        exchange.declare()
        waits = {"x-match": "all", bit: 1}
        queue = Queue(name, exchange, queue_arguments=arguments, binding_arguments=waits)
        queue.bind(channel).declare()
        passes = {"x-match": "all", bit: 0}
        channel.exchange_bind(destination=below, source=name, arguments=passes)

    def purge(self, queue: str) -> int:
        """Delete what waits for its time to go to this queue; returns how many."""
        purged = 0
        if not self._made:
            self._make()
        with self._connection.channel() as channel:
            for number in range(LEVELS):
                while (message := channel.basic_get(level(number))) is not None:
                    if message.delivery_info["routing_key"] == queue:
                        channel.basic_ack(message.delivery_tag)
                        purged += 1
        # With the channel's end the others are back in their places, and keep their time.
        return purged
