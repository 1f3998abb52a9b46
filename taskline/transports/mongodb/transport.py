"""Messages in MongoDB, for many processes of many machines, in one deployment or several.

A deployment is a replica set or the router of a sharded cluster. Every verb is a fixed
number of commands for a batch. A receipt has the token of its claim. Who waits is woken
by a change stream where there is one, and looks by itself otherwise.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from taskline.clock import SYSTEM_CLOCK, Clock
from taskline.message import Delivery, Message
from taskline.mongo.client import Server
from taskline.mongo.location import Location, locate
from taskline.mongo.stream import Stream, listen
from taskline.registry import Spec
from taskline.transports.member import Member
from taskline.transports.mongodb import outbox, records
from taskline.transports.mongodb.records import DELAYED, LAYOUT, READY
from taskline.transports.mongodb.store import Store
from taskline.transports.nodes import RECHECK, NodesTransport

if TYPE_CHECKING:
    from typing_extensions import Self

    from taskline.mongo.client import Document

log = logging.getLogger("taskline.mongo")

POLL_FIRST, POLL_MOST = 0.01, 0.5
"""Seconds between looks where nothing wakes: at first, and when nothing was found for long."""


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
        self.capabilities = msgspec.structs.replace(self.capabilities, outbox="session")
        self.location = locations[0] if len(locations) == 1 else None
        """Where the store is, unless there are several."""
        self._bell = _Bell()
        self._interrupted = False
        self._pause = POLL_FIRST
        self._queues: frozenset[str] = frozenset()
        self._streams: list[Stream] = []

    @classmethod
    def from_spec(cls, spec: Spec, clock: Clock) -> Self:
        """URLs, or a mapping with `nodes`; see `taskline.mongo.location.locate`."""
        return cls(locate(spec), clock)

    def send_within(self, transaction: Any, messages: Sequence[Message]) -> None:
        session, store = outbox.check(transaction, [each.store for each in self._members])
        records.check_sizes(messages)
        if messages:
            outbox.add(session, store.server, messages)

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
        if not self._hears(queues):
            # Until the streams are open, or for ever where there are none.
            seconds = min(seconds, self._pause)
            self._pause = min(2 * self._pause, POLL_MOST)
        if not self._interrupted:
            self._bell.wait(seconds)

    def _hears(self, queues: Sequence[str]) -> bool:
        """Whether the bell rings for whatever comes to these queues from now on."""
        wanted = frozenset(queues)
        if wanted != self._queues:
            self._hear_no_more()
            self._queues = wanted
            for member in self._members:
                server = member.store.server
                further = partial(Server, server.location, SYSTEM_CLOCK, LAYOUT)
                self._streams.append(
                    listen(self._bell, server.location, "messages", _events(wanted), further)
                )
        pairs = zip(self._members, self._streams, strict=True)
        told = [stream.want() for member, stream in pairs if not member.down]
        return all(told)

    def _hear_no_more(self) -> None:
        streams, self._streams, self._queues = self._streams, [], frozenset()
        for stream in streams:
            stream.remove(self._bell)

    def interrupt(self) -> None:
        self._interrupted = True
        self._bell.set()

    def _number(self, delivery: Delivery) -> int:
        number: int = delivery.receipt[1]
        return number

    def close(self) -> None:
        self._hear_no_more()
        super().close()
        self.interrupt()


class _Bell(threading.Event):
    """Rings when the streams tell of something, and when they begin or cease to tell."""

    def changed(self, id: Any) -> None:
        self.set()

    def turned(self) -> None:
        self.set()


def _events(queues: frozenset[str]) -> Document:
    """Messages that came, became ready, or came to wait for their time."""
    states = {"$in": [READY, DELAYED]}
    stored = {"fullDocument.s": states, "fullDocument.q": {"$in": sorted(queues)}}
    changed = {"updateDescription.updatedFields.s": states}
    return {"$or": [stored, changed]}
