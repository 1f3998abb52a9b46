"""A node of the transport: its messages, and the connection on which it is waited for."""

from __future__ import annotations

import logging

from taskline.clock import Clock
from taskline.redis.location import Location
from taskline.redis.node import Node
from taskline.transports import member
from taskline.transports.redis.store import Store
from taskline.transports.redis.wake import Listener

log = logging.getLogger("taskline.redis")


class Member(member.Member[Store]):
    """Any thread may use it. `number` is its place among the nodes of the transport."""

    def __init__(self, location: Location, clock: Clock, number: int) -> None:
        self.node = Node(location, clock)
        store = Store(self.node, number)
        super().__init__(store, str(location), f"Redis at {location}", clock, log)
        self.listener = Listener(self.node)

    def close(self) -> None:
        super().close()
        self.listener.close()
