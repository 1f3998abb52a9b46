"""A node of the transport: its messages, and what it is owed from when it did not answer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection

from taskline.clock import Clock
from taskline.errors import TransportError
from taskline.redis.location import Location
from taskline.redis.peer import Peer
from taskline.transports.redis.store import Store
from taskline.transports.redis.wake import Listener

MOST_DOUBTS = 10_000


class Member(Peer):
    """Any thread may use it. `number` is its place among the nodes of the transport."""

    def __init__(self, location: Location, clock: Clock, number: int) -> None:
        super().__init__(location, clock)
        self.store = Store(self.node, number)
        self.listener = Listener(self.node)
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
        self.node.close()
        self.listener.close()
