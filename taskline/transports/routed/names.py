"""What the app calls a queue, and what it is called at its connector."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import msgspec

from taskline.clock import Clock
from taskline.errors import NotSupported
from taskline.message import Delivery, Message
from taskline.transports.base import StoredMessage
from taskline.transports.routed.connector import Connector
from taskline.transports.routed.lanes import Lanes
from taskline.transports.routed.plain import call_of, payload_of

if TYPE_CHECKING:
    from taskline.queueing import Route

T = TypeVar("T")


class Place(NamedTuple):
    """A queue at its connector."""

    connector: Connector
    name: str


class Names:
    """Where each queue is, and messages and deliveries under the one name or the other.

    The connector of the key "" has all queues that `routes` does not name.
    """

    def __init__(
        self, connectors: Mapping[str, Connector], routes: Mapping[str, Route], clock: Clock
    ) -> None:
        self._connectors = connectors
        self._routes = routes
        self._clock = clock
        self._aliases = {(route.connector, route.name): alias for alias, route in routes.items()}
        self._lanes = {
            alias: Lanes(route.name, route.fair, route.lanes)
            for alias, route in routes.items()
            if route.fair
        }
        for alias, lanes in self._lanes.items():
            self._aliases.update({(routes[alias].connector, name): alias for name in lanes.names})

    def key(self, queue: str) -> str:
        """The key of the queue's connector."""
        route = self._routes.get(queue)
        return route.connector if route is not None else ""

    def place(self, queue: str) -> Place:
        """The queue's connector, and its name there."""
        route = self._routes.get(queue)
        if route is None:
            return Place(self._connectors[""], queue)
        return Place(self._connectors[route.connector], route.name)

    def places(self, queues: Iterable[str]) -> list[Place]:
        """All places of these queues, in their order: of one with lanes all of those, in turn."""
        found: list[Place] = []
        for queue in queues:
            place = self.place(queue)
            lanes = self._lanes.get(queue)
            if lanes is None:
                found.append(place)
            else:
                found += (Place(place.connector, name) for name in lanes.turn())
        return found

    def outgoing(self, messages: Iterable[Message]) -> dict[Connector, list[tuple[str, Message]]]:
        """The messages for each connector, each with the name there of its queue, or lane."""
        groups: dict[Connector, list[tuple[str, Message]]] = {}
        for message in messages:
            connector, name = self.place(message.header.queue)
            lanes = self._lanes.get(message.header.queue)
            if lanes is not None:
                name = lanes.of(message.header)
            groups.setdefault(connector, []).append((name, message))
        return groups

    def grouped(
        self, items: Iterable[T], queue: Callable[[T], str]
    ) -> dict[Connector, list[tuple[str, T]]]:
        """The items of each connector, each with its queue's name there."""
        groups: dict[Connector, list[tuple[str, T]]] = {}
        for item in items:
            connector, name = self.place(queue(item))
            groups.setdefault(connector, []).append((name, item))
        return groups

    def alias(self, connector: Connector, name: str) -> str | None:
        """What the app calls a connector's queue; None when it has no name for it."""
        alias = self._aliases.get((connector.key, name))
        if alias is None and not connector.key and name not in self._routes:
            return name
        return alias

    def written(self, message: Message, name: str) -> Message:
        """The message as its transport stores it."""
        route = self._routes.get(message.header.queue)
        if route is not None and route.plain and message.header.attempt == 1:
            message = Message(message.header, payload_of(message))
        return renamed(message, name)

    def beside(self, delivery: Delivery, message: Message) -> str:
        """What the message's queue is called at the connector of the delivery."""
        queue = message.header.queue
        if queue == delivery.queue:
            return str(delivery.receipt.queue)
        if self.key(queue) != self.key(delivery.queue):
            raise NotSupported(
                f"a further attempt of a task of {delivery.queue} cannot go to {queue}: it is at "
                "another broker"
            )
        return self.place(queue).name

    def grave(self, delivery: Delivery) -> str:
        """What the queue of its dead letter is called at its connector."""
        route = self._routes.get(delivery.queue)
        if route is None:
            return delivery.queue
        return self.place(route.dead_letters).name

    def adopted(self, connector: Connector, deliveries: Iterable[Delivery]) -> list[Delivery]:
        """Deliveries of a transport under the app's names for their queues."""
        deliveries = list(deliveries)
        if self._lanes:
            self._note_served(connector, deliveries)
        return [
            Delivery(
                each.id,
                alias := self._aliases.get((connector.key, each.queue), each.queue),
                self._frame(alias, each),
                each.deliveries,
                each.lost,
                each,
            )
            for each in deliveries
        ]

    def _note_served(self, connector: Connector, deliveries: Iterable[Delivery]) -> None:
        served: dict[str, list[str]] = {}
        for each in deliveries:
            alias = self._aliases.get((connector.key, each.queue))
            if alias in self._lanes:
                served.setdefault(alias, []).append(each.queue)
        for alias, names in served.items():
            self._lanes[alias].served(names)

    def shown(self, queue: str, stored: StoredMessage) -> StoredMessage:
        """A message of a transport as the app would get it from this queue."""
        return msgspec.structs.replace(stored, queue=queue, frame=self._frame(queue, stored))

    def _frame(self, alias: str, message: Delivery | StoredMessage) -> bytes:
        """The message's own frame; a plain message of another program becomes a call."""
        route = self._routes.get(alias)
        if route is None or route.task is None:
            return message.frame
        return call_of(route.task, alias, message.id, message.frame, self._clock.time())


def renamed(message: Message, queue: str) -> Message:
    """The message as its transport has it; the frame, which that does not read, stays."""
    if message.header.queue == queue:
        return message
    return Message(msgspec.structs.replace(message.header, queue=queue), message.frame)
