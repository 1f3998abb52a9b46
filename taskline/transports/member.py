"""A server of a transport: its messages, and what it is owed from when it did not answer."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Sequence
from typing import Any, Generic, Protocol, TypeVar

from taskline.clock import Clock
from taskline.errors import TransportError
from taskline.message import DeadLetter, Delivery, Message, Outcome
from taskline.peer import Peer
from taskline.transports.base import QueueStats, StoredMessage

MOST_DOUBTS = 10_000


class Store(Protocol):
    """The messages on one server: the verbs of a transport, of which each may raise
    `TransportError`, and `check` and `about`, of which `ping` and `info` are made."""

    def send(self, messages: Sequence[Message], patience: float) -> None: ...
    def take(
        self, queues: Sequence[str], limit: int, lease: float, consumer: str
    ) -> tuple[list[Delivery], float]:
        """What is leased, and the seconds until something else may be due."""

    def ack(
        self, deliveries: Sequence[Delivery], outcomes: Sequence[Outcome] = ()
    ) -> list[Delivery]: ...
    def release(self, deliveries: Sequence[Delivery], delay: float) -> list[Delivery]: ...
    def extend(self, deliveries: Sequence[Delivery], lease: float) -> list[Delivery]: ...
    def replace(self, pairs: Sequence[tuple[Delivery, Message]]) -> list[Delivery]: ...
    def bury(self, burials: Sequence[tuple[Delivery, DeadLetter]]) -> list[Delivery]: ...
    def recover(self, consumer: str, started: Collection[str]) -> int: ...
    def stats(self, queues: Sequence[str] | None) -> list[QueueStats]: ...
    def peek(self, queue: str, limit: int, offset: int) -> list[StoredMessage]: ...
    def purge(self, queue: str) -> int: ...
    def delete(self, ids: Sequence[str]) -> list[str]: ...
    def dead_letters(self, queue: str | None, limit: int, offset: int) -> list[DeadLetter]: ...
    def dead_letter(self, id: str) -> DeadLetter | None: ...
    def requeue(self, messages: Sequence[Message], patience: float) -> list[str]: ...
    def purge_dead(self, ids: Sequence[str]) -> int: ...
    def maintain(self) -> None: ...
    def check(self) -> object: ...
    def about(self) -> dict[str, Any]: ...
    def close(self) -> None: ...


S = TypeVar("S", bound=Store)


class Member(Peer, Generic[S]):
    """One of the servers. Any thread may use it."""

    def __init__(self, store: S, address: str, name: str, clock: Clock, log: logging.Logger):
        super().__init__(name, clock, log)
        self.store = store
        self.address = address
        self._lock = threading.Lock()
        self._owed: list[Callable[[], object]] = []
        self._doubts: dict[str, None] = {}

    def owe(self, work: Callable[[], object]) -> None:
        """Do it before anything else when the node answers again."""
        with self._lock:
            self._owed.append(work)

    def doubt(self, ids: Collection[str]) -> None:
        """These messages went to another node, and may have arrived here all the same."""
        with self._lock:
            self._doubts.update(dict.fromkeys(ids))
            while len(self._doubts) > MOST_DOUBTS:
                del self._doubts[next(iter(self._doubts))]

    def before(self) -> None:
        """Delete what is doubtful and do what is owed."""
        if not self._owed and not self._doubts:
            return
        with self._lock:
            owed, self._owed = self._owed, []
            doubts, self._doubts = self._doubts, {}
        try:
            if doubts:
                self.store.delete(list(doubts))
                doubts = {}
            while owed:
                owed[0]()
                del owed[0]
        except TransportError:
            with self._lock:
                self._owed = owed + self._owed
                self._doubts.update(doubts)
            raise

    def close(self) -> None:
        """End its use."""
        self.store.close()
