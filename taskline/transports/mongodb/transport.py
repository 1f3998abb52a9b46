"""Messages in MongoDB, for many processes of many machines, in one deployment or several.

A deployment is a replica set or the router of a sharded cluster. Every verb is a fixed
number of commands for a batch. A receipt has the token of its claim.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from taskline.clock import SYSTEM_CLOCK, Clock
from taskline.message import Delivery
from taskline.mongo.location import Location, locate
from taskline.registry import Spec
from taskline.transports.member import Member
from taskline.transports.mongodb.store import Store
from taskline.transports.mongodb.watch import POLL_FIRST, POLL_MOST, Watcher
from taskline.transports.nodes import RECHECK, NodesTransport

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger("taskline.mongo")


class MongoTransport(NodesTransport[Store]):
    """One deployment of MongoDB, or several without order between them."""

    scheme = "mongodb"
    product = "MongoDB"

    def __init__(self, locations: Sequence[Location], clock: Clock = SYSTEM_CLOCK) -> None:
        members = [
            Member(Store(each, clock, number), str(each), f"MongoDB at {each}", clock, log)
            for number, each in enumerate(locations)
        ]
        super().__init__(members, max(each.timeout for each in locations), clock)
        self.location = locations[0] if len(locations) == 1 else None
        """Where the store is, unless there are several."""
        self._bell = threading.Event()
        self._interrupted = False
        self._watchers = [Watcher(each.store.server, clock, self._bell) for each in members]
        self._pause = POLL_FIRST

    @classmethod
    def from_spec(cls, spec: Spec, clock: Clock) -> Self:
        """URLs, or a mapping with `nodes`; see `taskline.mongo.location.locate`."""
        return cls(locate(spec), clock)

    def receive(
        self, queues: Sequence[str], limit: int, lease: float, wait: float, consumer: str
    ) -> list[Delivery]:
        clock, bell = self.clock, self._bell
        until = clock.monotonic() + wait
        self._pause = POLL_FIRST
        while True:
            # Before the look, so that nothing that comes after it goes unheard.
            bell.clear()
            taken, after = self._claim(queues, limit, lease, consumer)
            interrupted, self._interrupted = self._interrupted, False
            left = until - clock.monotonic()
            if taken or interrupted or left <= 0:
                return taken
            seconds = self._until_probe(min(left, after, RECHECK))
            if seconds > 0:
                self._wait(queues, clock.bound(seconds))

    def _wait(self, queues: Sequence[str], seconds: float) -> None:
        heard = True
        for member, watcher in zip(self._members, self._watchers, strict=True):
            if not member.down:
                heard &= watcher.listen(queues)
        if not heard:
            # Until the stream is open, or for ever where there is none.
            seconds = min(seconds, self._pause)
            self._pause = min(2 * self._pause, POLL_MOST)
        if not self._interrupted:
            self._bell.wait(seconds)

    def interrupt(self) -> None:
        self._interrupted = True
        self._bell.set()

    def _number(self, delivery: Delivery) -> int:
        number: int = delivery.receipt[1]
        return number

    def close(self) -> None:
        for watcher in self._watchers:
            watcher.close()
        super().close()
        self.interrupt()
