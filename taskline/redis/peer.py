"""One node among several."""

from __future__ import annotations

import logging

from taskline import peer
from taskline.clock import Clock
from taskline.errors import TransportError
from taskline.redis.location import Location
from taskline.redis.node import Node

log = logging.getLogger("taskline.redis")


class Peer(peer.Peer):
    """A node, and whether it answers."""

    def __init__(
        self, location: Location, clock: Clock, error: type[TransportError] = TransportError
    ) -> None:
        super().__init__(f"Redis at {location}", clock, log)
        self.location = location
        self.node = Node(location, clock, error)
