"""The links to one broker: a few that are taken and put back, and one that receives."""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any, NamedTuple, TypeVar

from taskline.clock import Clock
from taskline.errors import TransportError
from taskline.message import Delivery
from taskline.transports.kombu.link import Link, Taken
from taskline.transports.kombu.location import Location

log = logging.getLogger("taskline.kombu")

IDLE = 4
"""Connections that are kept though nobody uses them."""

_serial = count(1)
P = TypeVar("P")


class Links:
    """Makes links, and keeps a few of those that nobody uses."""

    def __init__(self, location: Location, kind: str, clock: Clock) -> None:
        """`kind` is what kombu calls the broker's."""
        self.location = location
        self._kind = kind
        self._clock = clock
        self._idle: deque[Link] = deque()
        self._closed = False

    def make(self, lease: float | None = None) -> Link:
        """A link that is not open yet; with a lease, one that receives."""
        location = self.location
        if self._kind == "amqp":
            from taskline.transports.kombu.amqp import AMQPLink

            beat = 0 if lease is None else int(max(1.0, min(location.heartbeat, lease / 3)))
            options: dict[str, Any] = {
                "read_timeout": location.timeout,
                "write_timeout": location.timeout,
                "client_properties": {"connection_name": "taskline"},
            }
            return AMQPLink(location, self._clock, location.connection(beat, **options))
        from taskline.transports.kombu.polling import PollingLink, options_for

        options = options_for(self._kind, lease)
        return PollingLink(location, self._clock, location.connection(**options))

    @contextlib.contextmanager
    def talk(self) -> Iterator[Link]:
        """A link for one conversation that is not about what is held."""
        try:
            link = self._idle.pop()
        except IndexError:
            link = self.make()
        with link.talking():
            yield link
        if len(self._idle) < IDLE and not self._closed:
            self._idle.append(link)
        else:
            link.close()

    def close(self) -> None:
        """Close those that nobody uses; the others are closed when they are put back."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()


class Held(NamedTuple):
    """What this transport took and has not settled."""

    taken: Taken
    delivery: Delivery


class Holding:
    """The link that receives, and what it holds: they end together."""

    def __init__(self, links: Links) -> None:
        self._links = links
        self._link: Link | None = None
        self._number = 0
        self._held: dict[Any, Held] = {}
        """By receipt: the number of the link that took it, and its tag there."""

    @contextlib.contextmanager
    def receiving(self, lease: float) -> Iterator[Link]:
        """The link that holds what was received; what fails ends it and all that it holds."""
        link = self._link
        if link is None:
            link = self._link = self._links.make(lease)
            self._number = next(_serial)
        try:
            with link.talking():
                yield link
        except BaseException:
            self._drop()
            raise

    def _drop(self) -> None:
        """The receiving link has ended: the broker has what it held."""
        link, self._link = self._link, None
        self._held.clear()
        if link is not None:
            link.drop()

    def receipt(self, taken: Taken) -> tuple[int, Any]:
        """The receipt of what this link took."""
        return self._number, taken.tag

    def hold(self, taken: Taken, delivery: Delivery) -> None:
        """It is held from now on."""
        self._held[delivery.receipt] = Held(taken, delivery)

    def find(
        self, items: Sequence[P], deliveries: Sequence[Delivery], *, check: bool
    ) -> tuple[list[tuple[P, Held]], list[Delivery]]:
        """Those of the items whose delivery is held, with what is held; and the others' deliveries.

        With `check` the broker is asked whether it still sees us as the holder.
        """
        if check and self._link is not None and any(d.receipt in self._held for d in deliveries):
            with contextlib.suppress(TransportError), self.receiving(0.0) as link:
                link.beat([], 0.0)
        mine, lost = [], []
        seen = set()
        for item, delivery in zip(items, deliveries, strict=True):
            held = self._held.get(delivery.receipt)
            if held is None or held.delivery.id != delivery.id or delivery.receipt in seen:
                lost.append(delivery)
            else:
                seen.add(delivery.receipt)
                mine.append((item, held))
        return mine, lost

    def done(self, held: Sequence[Held]) -> list[Delivery]:
        """Acknowledge; returns those of which the broker may not know it."""
        if not held:
            return []
        try:
            with self.receiving(0.0) as link:
                link.ack([each.taken.tag for each in held])
        except TransportError as error:
            # The broker gives the messages to others, unless it has understood before.
            log.info("%s", error)
            return [each.delivery for each in held]
        for each in held:
            self._held.pop(each.delivery.receipt, None)
        return []

    def extend(self, deliveries: Sequence[Delivery], lease: float) -> list[Delivery]:
        """Keep the connection alive, and with it what it holds."""
        mine, lost = self.find(deliveries, deliveries, check=False)
        if not mine:
            return lost
        try:
            with self.receiving(lease) as link:
                gone = set(link.beat([held.taken.tag for _, held in mine], lease))
        except TransportError as error:
            log.info("%s", error)
            return list(deliveries)
        for _, held in mine:
            if held.taken.tag in gone:
                lost.append(held.delivery)
                del self._held[held.delivery.receipt]
        return lost

    def close(self) -> None:
        """Close the link: the broker has what it held."""
        link, self._link = self._link, None
        self._held.clear()
        if link is not None:
            link.close()
