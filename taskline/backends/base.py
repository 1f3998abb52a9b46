"""The seam between the core and whatever keeps outcomes.

A result backend stores one outcome per task id, wakes those who wait for it,
remembers revocations, and counts for groups. It never decodes a frame.

Threads: any thread may call anything, except that one thread at a time is in
`wait` (the core sees to that). No backend object is used across a fork.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from taskline.backends.keys import KeyStore
from taskline.clock import SYSTEM_CLOCK, Clock
from taskline.errors import ConfigurationError, NotSupported
from taskline.message import Outcome

if TYPE_CHECKING:
    from typing_extensions import Self

    from taskline.registry import Spec


class Revocation(msgspec.Struct, frozen=True):
    """The wish that a task be not run; with `terminate`, that it be stopped if it runs."""

    id: str
    """Of the task or workflow; or any text, which says which messages: `taskline.revoking`."""
    terminate: bool = False


class Backend(ABC):
    """Keeps outcomes. See the module's docstring for who may call what."""

    scheme: ClassVar[str]

    distributes: ClassVar[bool] = False
    """Whether `from_spec` takes the URLs of several nodes."""

    largest: ClassVar[int] = 2**62
    """Bytes of the largest frame of an outcome that it stores."""

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self.clock = clock

    @classmethod
    def from_spec(cls, spec: Spec, clock: Clock) -> Self:
        """Open one for a URL or a connector mapping, or several URLs where it distributes.

        Raises `ConfigurationError` for what it does not understand.
        """
        raise ConfigurationError(f"{cls.__name__} is opened from Python, not by a URL or mapping")

    @abstractmethod
    def store(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Store these outcomes and wake who waits; returns those that were refused.

        An outcome is refused when the one already stored for its id has a greater
        fence, or has the same fence and a final state while this one has none.
        """

    @abstractmethod
    def fetch(self, ids: Collection[str]) -> dict[str, Outcome]:
        """The stored, unexpired outcomes of these ids, whatever their state."""

    @abstractmethod
    def wait(self, ids: Collection[str], timeout: float) -> dict[str, Outcome]:
        """Wait until at least one of these ids is final; returns all that are.

        Returns an empty dict after `timeout` seconds or on `interrupt`.
        """

    @abstractmethod
    def interrupt(self) -> None:
        """Make a `wait` in another thread, or the next one, return early."""

    @abstractmethod
    def forget(self, ids: Sequence[str]) -> None:
        """Delete the outcomes of these ids."""

    @abstractmethod
    def expire(self, ids: Sequence[str], ttl: float | None) -> None:
        """Let the outcomes of these ids end `ttl` seconds from now; None keeps them."""

    @abstractmethod
    def revoke(self, revocations: Sequence[Revocation], ttl: float) -> None:
        """Remember revocations for `ttl` seconds, so that workers that start later see them."""

    @abstractmethod
    def revoked(self, after: int) -> tuple[int, list[Revocation]]:
        """Revocations newer than the cursor `after` (0 for all), and the new cursor."""

    @abstractmethod
    def count(self, key: str, member: str, ttl: float) -> int:
        """Add a member to a counted set; returns its size. Adding a member twice counts once.

        The set ends `ttl` seconds after its last member was added.
        """

    def count_all(self, members: Mapping[str, Sequence[str]], ttl: float) -> dict[str, int]:
        """As `count` for many members of some sets; returns the sizes by key."""
        return {
            key: max(self.count(key, member, ttl) for member in group)
            for key, group in members.items()
        }

    def keys(self) -> KeyStore:
        """Locks, keys and counters. Raises `NotSupported` when this backend keeps none."""
        raise NotSupported(
            f"the {self.scheme} backend keeps no locks and no keys: use one that does, "
            "such as sqlite:///file.db"
        )

    @abstractmethod
    def ping(self) -> None:
        """Return if the backend answers and can be written to; raise `BackendError` if not."""

    @abstractmethod
    def info(self) -> dict[str, Any]:
        """What people want to know: `backend`, `address`, `version`, …. Never a password."""

    def maintain(self) -> None:
        """Background upkeep (deleting what has expired), called by idle workers."""

    @abstractmethod
    def close(self) -> None:
        """Give back connections and files. Idempotent; safe to call from any thread."""
