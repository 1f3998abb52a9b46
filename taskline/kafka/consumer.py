"""A consumer whose callbacks may fail.

confluent_kafka 2.16 raises an error of a callback again, from the call that polled, as an object
that is no exception: no `except` with a name catches it, and the thread dies. Here it is kept,
and raised as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

Callback = Callable[[Consumer, list[TopicPartition]], None]


class SafeConsumer(Consumer):
    """As confluent_kafka's. What a callback raises, the `poll` that called it raises."""

    _error: KafkaException | None = None

    def subscribe(
        self,
        topics: list[str],
        on_assign: Callback | None = None,
        on_revoke: Callback | None = None,
        on_lost: Callback | None = None,
    ) -> None:
        """Subscribe, with what is to be called back by `poll` and `consume`."""
        given = {"on_assign": on_assign, "on_revoke": on_revoke, "on_lost": on_lost}
        super().subscribe(
            topics, **{name: self._safe(each) for name, each in given.items() if each}
        )

    def poll(self, timeout: float = -1) -> Message | None:
        """As it was; raises what a callback raised meanwhile."""
        found = super().poll(timeout)
        error, self._error = self._error, None
        if error is not None:
            raise error
        return found

    def _safe(self, callback: Callback) -> Callback:
        def safe(consumer: Consumer, places: list[TopicPartition]) -> Any:
            try:
                callback(consumer, places)
            except KafkaException as error:
                self._error = self._error or error

        return safe
