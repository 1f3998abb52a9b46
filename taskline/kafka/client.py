"""Clients of librdkafka, with the settings that Taskline gives them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, libversion
from confluent_kafka.admin import AdminClient

from taskline.errors import ConfigurationError
from taskline.kafka.consumer import SafeConsumer
from taskline.kafka.errors import Ear
from taskline.kafka.location import Location

log = logging.getLogger("taskline.kafka")

MESSAGE_BYTES = 8 * 1024 * 1024
"""The largest message that may be sent, unless `message.max.bytes` says otherwise."""
ROOM = 1024 * 1024
"""What our topics take beyond that: a message grows by headers, on its way to the dead letters by
reason and traceback, and must fit wherever it goes."""
IN_FLIGHT = "max.in.flight.requests.per.connection"
"""Requests under way to one broker. With more than one, a broker that has just become the leader
of a new partition may refuse the first and take the second (KAFKA-15591, mended in 2026); from
that librdkafka concludes that both are stored (its issue 2501), and one is lost."""
VERSION = f"librdkafka {libversion()[0]}"


class _Whisper:
    """A logger for librdkafka: errors come back from calls, all else is for who debugs."""

    def log(self, level: int, text: str, *arguments: Any) -> None:
        log.debug(text, *arguments)


_QUIET: dict[str, Any] = {"logger": _Whisper(), "error_cb": lambda error: None}
_RECONNECT: dict[str, Any] = {"reconnect.backoff.ms": 50, "reconnect.backoff.max.ms": 1000}
if libversion()[1] >= 0x020A0000:  # older ones have no such setting, and do as it says
    # When all connections are lost librdkafka would begin anew with the brokers it was given, and
    # now and then it then waits for ever for a coordinator that it has given up (issue 5511).
    _RECONNECT["metadata.recovery.strategy"] = "none"

TRANSACTION = 10_000
"""Milliseconds after which the broker ends a transaction whose producer died."""


def largest(location: Location) -> int:
    """The largest message that may be sent, bytes."""
    try:
        return int(location.producer.get("message.max.bytes", MESSAGE_BYTES))
    except ValueError:
        return MESSAGE_BYTES  # librdkafka will say what is wrong


_OF_ALL = (
    "bootstrap.servers", "broker.", "client.", "connections.", "enable.ssl", "enable.sasl",
    "https.", "oauth_cb", "plugin.", "resolve_", "sasl.", "security.", "socket.", "ssl.",
)  # fmt: skip
"""Begin the consumer's settings that admin clients need too: where brokers are, and who we are."""


def _of_all(location: Location) -> dict[str, Any]:
    """Where the brokers are that messages are received from, and who we are there."""
    given = location.consumer
    return {name: given[name] for name in given if name.startswith(_OF_ALL)}


def new_producer(location: Location, **more: Any) -> Producer:
    """An idempotent producer with acks=all; raises `ConfigurationError` for a wrong setting.

    The user may let it have more requests under way, not within transactions, where nobody would
    see that a record is missing.
    """
    settings = {
        **_QUIET,
        **_RECONNECT,
        "enable.idempotence": True,
        "acks": "all",
        IN_FLIGHT: 1,
        # Messages gather while a request is under way, and wait for nothing else.
        "linger.ms": 0,
        # Each message without a key finds its own partition, or few of them would get no worker.
        "sticky.partitioning.linger.ms": 0,
        "message.max.bytes": MESSAGE_BYTES,
        "message.timeout.ms": int(location.timeout * 1000),
        "retry.backoff.ms": 10,
        "queue.buffering.max.messages": 500_000,
        **location.producer,
        **more,
    }
    if "delivery.timeout.ms" in settings:  # the same by its other name
        settings["message.timeout.ms"] = settings.pop("delivery.timeout.ms")
    if "transactional.id" in more:
        # Receipts are written down where the messages were received.
        settings = {name: settings[name] for name in settings if not name.startswith(_OF_ALL)}
        settings.update(_of_all(location))
        settings.pop("max.in.flight", None)
        settings[IN_FLIGHT] = 1
        settings["message.max.bytes"] = largest(location) + ROOM
        # librdkafka refuses to wait for a message longer than its transaction may last.
        settings["transaction.timeout.ms"] = TRANSACTION
        settings["message.timeout.ms"] = min(
            int(settings["message.timeout.ms"]) or TRANSACTION, TRANSACTION
        )
    with _configuring():
        return Producer(settings)


def new_consumer(location: Location, **more: Any) -> Consumer:
    """A consumer that commits nothing by itself; raises `ConfigurationError`."""
    settings = {
        **_QUIET,
        **_RECONNECT,
        "auto.offset.reset": "earliest",
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "enable.partition.eof": True,
        "isolation.level": "read_committed",
        "allow.auto.create.topics": False,
        "fetch.message.max.bytes": MESSAGE_BYTES,
        "queued.min.messages": 2000,
        "queued.max.messages.kbytes": 16384,
        # The default is for a queue that holds more: 1 s without a message would follow.
        "fetch.queue.backoff.ms": 10,
        # Partitions that are fetched again after a pause wait so long for the fetch of others.
        "fetch.wait.max.ms": 100,
        "topic.metadata.refresh.interval.ms": 10_000,
        **location.consumer,
        **more,
    }
    with _configuring():
        return SafeConsumer(settings)


def new_admin(location: Location, ear: Ear) -> AdminClient:
    """A client for what is no message; raises `ConfigurationError`. The `ear` hears its errors."""
    settings: dict[str, Any] = {**_QUIET, **_RECONNECT, "error_cb": ear, **_of_all(location)}
    with _configuring():
        return AdminClient(settings)


@contextlib.contextmanager
def _configuring() -> Iterator[None]:
    try:
        yield
    except (KafkaException, TypeError, ValueError) as error:
        found = error.args[0] if error.args else error
        text = found.str() if isinstance(found, KafkaError) else str(found)
        raise ConfigurationError(f"librdkafka does not take its settings: {text}") from None
