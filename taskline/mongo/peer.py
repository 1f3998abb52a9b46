"""One deployment among several."""

from __future__ import annotations

import logging

from taskline import peer
from taskline.clock import Clock
from taskline.mongo.client import Server

log = logging.getLogger("taskline.mongo")


class Peer(peer.Peer):
    """A deployment, and whether it answers."""

    def __init__(self, server: Server, clock: Clock) -> None:
        super().__init__(f"MongoDB at {server.location}", clock, log)
        self.server = server
