"""How a static member leaves its group for certain.

librdkafka tells the broker nothing when a static member unsubscribes while it is joining,
because of a rebalance that has just begun, say; and when it is closed, neither. The group
would then wait for it until its session ends. So: see whether it is gone, else join and
leave again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from taskline.clock import Clock

if TYPE_CHECKING:
    from confluent_kafka import Consumer, TopicPartition

Callbacks: TypeAlias = "dict[str, Callable[[Consumer, list[TopicPartition]], None]]"

AGAIN_AFTER = 0.7
"""Seconds in which a member that was told to leave must be gone."""


def leave(
    consumer: Consumer,
    topics: list[str],
    callbacks: Callbacks,
    *,
    poll: Callable[[], Any],
    gone: Callable[[], bool],
    clock: Clock,
    within: float,
) -> bool:
    """Unsubscribe, and return true when the group has `gone` without this member.

    `topics` and `callbacks` are those of the subscription, `poll` polls the consumer for a
    moment. False after `within` seconds.
    """
    end = clock.monotonic() + within
    while True:
        consumer.unsubscribe()
        again = min(end, clock.monotonic() + AGAIN_AFTER)
        while clock.monotonic() < again:
            poll()
            if gone():
                return True
        if clock.monotonic() >= end:
            return False
        joined: list[bool] = []

        def assigned(
            consumer: Consumer, places: list[TopicPartition], joined: list[bool] = joined
        ) -> None:
            callbacks["on_assign"](consumer, places)
            joined.append(True)

        consumer.subscribe(topics, **{**callbacks, "on_assign": assigned})
        while not joined and clock.monotonic() < end:
            poll()
