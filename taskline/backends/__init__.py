"""Result backends by scheme. `taskline.backends.base` is the seam that they implement."""

from __future__ import annotations

from typing import overload

from taskline.backends.base import Backend
from taskline.clock import SYSTEM_CLOCK, Clock
from taskline.registry import Kind, Registry, Spec

BACKENDS: Registry[Backend] = Registry(
    "backend",
    "taskline.backends",
    Backend,
    {
        "celery+redis": Kind("taskline.backends.celery:CeleryRedisBackend"),
        "celery+rediss": Kind("taskline.backends.celery:CeleryRedisBackend"),
        "celery+rpc": Kind("taskline.backends.celery_rpc:CeleryRPCBackend"),
        "memory": Kind("taskline.backends.memory:MemoryBackend"),
        "mongodb": Kind("taskline.backends.mongodb:MongoBackend", "mongo"),
        "mongodb+srv": Kind("taskline.backends.mongodb:MongoBackend", "mongo"),
        "redis": Kind("taskline.backends.redis:RedisBackend"),
        "rediss": Kind("taskline.backends.redis:RedisBackend"),
        "unix": Kind("taskline.backends.redis:RedisBackend"),
        "redis+unix": Kind("taskline.backends.redis:RedisBackend"),
        "redis+sentinel": Kind("taskline.backends.redis:RedisBackend"),
        "rediss+sentinel": Kind("taskline.backends.redis:RedisBackend"),
        "redis+cluster": Kind("taskline.backends.redis:RedisBackend"),
        "rediss+cluster": Kind("taskline.backends.redis:RedisBackend"),
        "sqlite": Kind("taskline.backends.sqlite:SQLiteBackend"),
    },
)


@overload
def open_backend(spec: None, *, clock: Clock = ...) -> None: ...
@overload
def open_backend(spec: Spec, *, clock: Clock = ...) -> Backend: ...
def open_backend(spec: Spec | None, *, clock: Clock = SYSTEM_CLOCK) -> Backend | None:
    """A new backend for a URL, a list of URLs, or a connector mapping; the caller closes it.

    None stands for no backend: results are not kept. A mapping's `type` is a
    scheme, one of Sergeant's names, or the dotted path `package.module:Class`.
    Raises `ConfigurationError` when there is no such backend or its driver is missing.
    """
    if spec is None:
        return None
    found, spec = BACKENDS.find(spec)
    return found.from_spec(spec, clock)
