"""Transports by scheme. `taskline.transports.base` is the seam that they implement."""

from __future__ import annotations

from taskline.clock import SYSTEM_CLOCK, Clock
from taskline.registry import Kind, Registry, Spec
from taskline.transports.base import Transport

TRANSPORTS: Registry[Transport] = Registry(
    "broker",
    "taskline.transports",
    Transport,
    {
        "kombu": Kind("taskline.transports.kombu:KombuTransport"),
        "kombu+*": Kind("taskline.transports.kombu:KombuTransport"),
        "memory": Kind("taskline.transports.memory:MemoryTransport"),
        "mongodb": Kind("taskline.transports.mongodb:MongoTransport", "mongo"),
        "mongodb+srv": Kind("taskline.transports.mongodb:MongoTransport", "mongo"),
        "redis": Kind("taskline.transports.redis:RedisTransport"),
        "rediss": Kind("taskline.transports.redis:RedisTransport"),
        "unix": Kind("taskline.transports.redis:RedisTransport"),
        "redis+unix": Kind("taskline.transports.redis:RedisTransport"),
        "redis+sentinel": Kind("taskline.transports.redis:RedisTransport"),
        "rediss+sentinel": Kind("taskline.transports.redis:RedisTransport"),
        "redis+cluster": Kind("taskline.transports.redis:RedisTransport"),
        "rediss+cluster": Kind("taskline.transports.redis:RedisTransport"),
        "kafka": Kind("taskline.transports.kafka:KafkaTransport", "kafka"),
        "sqlite": Kind("taskline.transports.sqlite:SQLiteTransport"),
    },
)


def open_transport(spec: Spec, *, clock: Clock = SYSTEM_CLOCK) -> Transport:
    """A new transport for a URL, a list of URLs, or a connector mapping; the caller closes it.

    A mapping's `type` is a scheme, one of Sergeant's names, or the dotted path
    `package.module:Class`. Raises `ConfigurationError` when there is no such
    transport or its driver is missing.
    """
    found, spec = TRANSPORTS.find(spec)
    return found.from_spec(spec, clock)
