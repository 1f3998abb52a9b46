"""`celery+redis://`: results where Celery's clients look for them, and where its workers put them.

Beside Taskline's own store, which decides which of two runs counts, each outcome is
written to Celery's key and published under it; all reading is from there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from taskline.backends.redis import RedisBackend
from taskline.celery_results import state_of
from taskline.chunking import chunks
from taskline.clock import Clock
from taskline.errors import ConfigurationError
from taskline.message import FINAL_STATES, Outcome
from taskline.redis.connection import Word
from taskline.redis.location import Location, locate
from taskline.redis.outcomes import BATCH
from taskline.redis.packing import milliseconds, pack_outcome
from taskline.redis.pushes import Pushes, wait_for_push
from taskline.redis.script import Script
from taskline.registry import Spec

if TYPE_CHECKING:
    from typing_extensions import Self

PREFIX = "celery+"
KEY = b"celery-task-meta-"
PUBLISH = Script("celery_publish", "outcome")
RECHECK = 1.0
"""Seconds after which a waiter looks though no push came."""


class _Published(Pushes):
    """Celery publishes in the way that is older than sharded channels."""

    subscribe, unsubscribe, message = "SUBSCRIBE", "UNSUBSCRIBE", b"message"


class CeleryRedisBackend(RedisBackend):
    """One Redis server; see the module's docstring."""

    scheme = "celery+redis"
    distributes = False

    def __init__(self, location: Location, clock: Clock) -> None:
        super().__init__([location], clock)
        self._node = self._keepers[0].store.node
        self._patience = location.timeout
        self._published = _Published(self._node)

    @classmethod
    def from_spec(cls, spec: Spec, clock: Clock) -> Self:
        """A URL as for Redis, with `celery+` in front of it."""
        if isinstance(spec, Mapping):
            spec = {**spec, "type": str(spec.get("type", "")).removeprefix(PREFIX)}
        elif isinstance(spec, str):
            spec = spec.removeprefix(PREFIX)
        found = locate(spec)
        if len(found) != 1:
            raise ConfigurationError("Celery's results are on one server: give one URL")
        return cls(found[0], clock)

    def store(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        refused = super().store(outcomes)
        outranked = {id(each) for each in refused}
        for batch in chunks([each for each in outcomes if id(each) not in outranked], BATCH):
            args: list[Word] = []
            for outcome in batch:
                args += (*pack_outcome(outcome), _key(outcome.id))
            self._node.run(PUBLISH, *args)
        return refused

    def fetch(self, ids: Collection[str]) -> dict[str, Outcome]:
        names = list(ids)
        if not names:
            return {}
        keys = [_key(each) for each in names]
        values = self._node.command("MGET", *keys, patience=self._patience)
        return {
            name: _outcome(name, value)
            for name, value in zip(names, values, strict=True)
            if value is not None
        }

    def wait(self, ids: Collection[str], timeout: float) -> dict[str, Outcome]:
        clock, interrupt = self.clock, self._interrupt
        until = clock.monotonic() + timeout
        keys = {_key(each): each for each in ids}
        while True:
            now = clock.monotonic()
            seen = self._published.look(keys, now, RECHECK)
            found = {keys[key]: _outcome(keys[key], value) for key, value in seen if key in keys}
            final = {each: out for each, out in found.items() if out.state in FINAL_STATES}
            left = until - clock.monotonic()
            if final or interrupt.spent() or left <= 0:
                return final
            wait_for_push([self._published], interrupt, clock.bound(min(left, RECHECK)))

    def forget(self, ids: Sequence[str]) -> None:
        super().forget(ids)
        if ids:
            self._node.command("UNLINK", *map(_key, ids), patience=self._patience)

    def expire(self, ids: Sequence[str], ttl: float | None) -> None:
        super().expire(ids, ttl)
        for each in ids:
            if ttl is None:
                self._node.command("PERSIST", _key(each))
            else:
                self._node.command("PEXPIRE", _key(each), milliseconds(ttl))

    def info(self) -> dict[str, Any]:
        return {**super().info(), "backend": self.scheme}

    def close(self) -> None:
        super().close()
        self._published.close()


def _key(id: str) -> bytes:
    return KEY + id.encode()


def _outcome(id: str, frame: bytes) -> Outcome:
    return Outcome(id, state_of(frame), 0.0, 0, None, frame)
