"""What all workers of an app heed: one small document, which each reads about once a second."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from taskline.backends.keys import next_fence
from taskline.control.documents import Documents
from taskline.control.records import Order

if TYPE_CHECKING:
    from taskline.app import Taskline


ORDERS_KEPT, ORDERS_FOR = 100, 60.0
"""How many orders are kept at most, and for how many seconds, that nobody has withdrawn: who gave
them was killed."""


class State(msgspec.Struct, frozen=True, omit_defaults=True):
    """The state at one moment."""

    version: int = 0
    """Grows with each change, so that no earlier state can be put in its place."""
    paused: frozenset[str] = frozenset()
    """Queues of which workers take nothing."""
    rates: dict[str, str] = {}
    """Rates that hold in place of those in the code, by task: `10/s`."""
    orders: list[Order] = []
    """What some workers were told of late; each obeys an order once."""
    ends: dict[str, float] = {}
    """When paused queues go on by themselves, Unix seconds."""

    def paused_at(self, now: float) -> frozenset[str]:
        """The queues that are paused at this time."""
        ends = self.ends
        return frozenset(queue for queue in self.paused if queue not in ends or ends[queue] > now)


class States:
    """Reads and changes the state of one app."""

    def __init__(self, app: Taskline) -> None:
        self._app = app
        self.documents = Documents(app)
        self.key = self.documents.key("state")

    def get(self) -> State:
        """The state as it is now; raises `ConfigurationError` when the app has no place for it."""
        raw = self.documents.keys().get(self.key)
        return State() if raw is None else self.read(raw)

    def read(self, frame: bytes) -> State:
        """The state in a document; raises `SerializationError` when it is none to be trusted."""
        return self.documents.read(self.key, frame, State)

    def change(self, alter: Callable[[State], State]) -> State:
        """Let `alter` make another state of the one there is; workers heed it within 2 seconds.

        `alter` may be called again, with a later state. Raises as `get`.
        """

        def next_version(state: State) -> State:
            version = next_fence(state.version, self._app.clock.time())
            return msgspec.structs.replace(alter(state), version=version)

        return self.documents.change(self.key, State, next_version)

    def order(self, order: Order) -> None:
        """Give an order. Its workers find it within 2 seconds; raises as `get`."""

        def add(state: State) -> State:
            kept = [old for old in state.orders if old.issued > order.issued - ORDERS_FOR]
            return msgspec.structs.replace(state, orders=[*kept[1 - ORDERS_KEPT :], order])

        self.change(add)

    def withdraw(self, order_id: str) -> None:
        """Take an order back: who has not found it yet never will."""

        def drop(state: State) -> State:
            kept = [order for order in state.orders if order.id != order_id]
            return msgspec.structs.replace(state, orders=kept)

        self.change(drop)
