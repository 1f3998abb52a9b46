"""`celery+rpc://`: results are answers to Celery's clients, and kept nowhere.

The worker sends the answers (`Codec.reply`) through its broker. Celery's `rpc://` does
the same: https://docs.celeryq.dev/en/stable/userguide/tasks.html#rpc-result-backend-rabbitmq-qpid
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from taskline.backends.base import Backend, Revocation
from taskline.clock import Clock
from taskline.errors import NotSupported
from taskline.message import Outcome

if TYPE_CHECKING:
    from typing_extensions import Self

    from taskline.registry import Spec


class CeleryRPCBackend(Backend):
    """Has nothing to look up: see the module's docstring."""

    scheme = "celery+rpc"

    @classmethod
    def from_spec(cls, spec: Spec, clock: Clock) -> Self:
        return cls(clock)

    def store(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Nothing: whoever asked is answered."""
        return []

    def fetch(self, ids: Collection[str]) -> dict[str, Outcome]:
        """Nothing is known of any."""
        return {}

    def wait(self, ids: Collection[str], timeout: float) -> dict[str, Outcome]:
        self._refuse("wait for results")

    def interrupt(self) -> None: ...

    def forget(self, ids: Sequence[str]) -> None: ...

    def expire(self, ids: Sequence[str], ttl: float | None) -> None: ...

    def revoke(self, revocations: Sequence[Revocation], ttl: float) -> None:
        self._refuse("revoke tasks")

    def revoked(self, after: int) -> tuple[int, list[Revocation]]:
        return after, []

    def count(self, key: str, member: str, ttl: float) -> int:
        self._refuse("count")

    def ping(self) -> None: ...

    def info(self) -> dict[str, Any]:
        return {"backend": self.scheme, "address": "celery+rpc://", "version": ""}

    def close(self) -> None: ...

    def _refuse(self, what: str) -> NoReturn:
        raise NotSupported(
            f"celery+rpc:// cannot {what}: it only answers Celery's clients, and keeps nothing; "
            "use celery+redis://… or another backend"
        )
