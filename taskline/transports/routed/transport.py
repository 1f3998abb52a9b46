"""Several transports as one: each queue by its own connector, under its own name there.

What the app calls a queue is its alias; the transport of its connector knows it by
another name, perhaps. A delivery's receipt is the delivery that the transport made.

Threads: as the seam says; `receive` has some of its own. A connector that does not
answer holds back nobody else's queues.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from taskline.clock import SYSTEM_CLOCK, Clock
from taskline.errors import NotSupported, TasklineError, TransportError
from taskline.message import DeadLetter, Delivery, Message, Outcome
from taskline.transports.base import Capabilities, QueueStats, StoredMessage, Transport
from taskline.transports.routed.connector import Connector
from taskline.transports.routed.lanes import in_turn, together
from taskline.transports.routed.names import Names, renamed
from taskline.transports.routed.receiver import Receiver

if TYPE_CHECKING:
    from taskline.backends.base import Backend
    from taskline.queueing import Route

T = TypeVar("T")


class RoutedTransport(Transport):
    """See the module's docstring.

    `connectors` has for each key what opens its transport; the one of the key "" has
    all queues that `routes` does not name. `served`, where given, are the queues that
    this one is opened for: their connectors alone are asked by `ping` and `recover`.
    """

    scheme = "routed"

    def __init__(
        self,
        connectors: Mapping[str, Callable[[], Transport]],
        routes: Mapping[str, Route],
        clock: Clock = SYSTEM_CLOCK,
        served: Collection[str] | None = None,
    ) -> None:
        super().__init__(clock)
        self._connectors = {
            key: Connector(key, open_one, clock) for key, open_one in connectors.items()
        }
        self._names = Names(self._connectors, routes, clock)
        self._receiver = Receiver(self._names, clock, self.release)
        keys = connectors if served is None else {self._names.key(queue) for queue in served}
        self._asked = [self._connectors[key] for key in connectors if key in keys]
        self._alone = next(iter(self._connectors.values())) if len(connectors) == 1 else None
        """The connector, where there is but one: queues have other names, or lanes."""
        self._closed = False

    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]
        """What all of them have."""
        each = [connector.transport.capabilities for connector in self._connectors.values()]
        return Capabilities(
            **{
                name: all(getattr(one, name) for one in each)
                for name in Capabilities.__struct_fields__
                if name != "outbox"
            },
            outbox=each[0].outbox,
        )

    @property
    def ahead(self) -> int:  # type: ignore[override]
        """What the least of them allows."""
        return min(connector.transport.ahead for connector in self._connectors.values())

    # Sending

    def send(self, messages: Sequence[Message]) -> None:
        self.begin_send(messages)()

    def begin_send(self, messages: Sequence[Message]) -> Callable[[], None]:
        """Each broker takes its messages or does not, whatever becomes of those for others."""
        groups = {
            connector: [self._names.written(message, name) for name, message in group]
            for connector, group in self._names.outgoing(messages).items()
        }
        begun: list[tuple[str, Callable[[], None]]] = []
        for connector, there in groups.items():
            try:
                begun.append((connector.name, connector.transport.begin_send(there)))
            except TasklineError as error:
                begun.append((connector.name, partial(_refuse, error)))
        return partial(_finish, begun)

    def send_within(self, transaction: Any, messages: Sequence[Message]) -> None:
        home = self._connectors[""]
        groups = self._names.outgoing(messages)
        if set(groups) - {home}:
            raise NotSupported(
                "a transaction of yours is with the broker, but a message in it is for a queue of "
                "another connector: send that one after the commit"
            )
        group = groups.get(home, [])
        home.transport.send_within(
            transaction, [self._names.written(message, name) for name, message in group]
        )

    # Receiving

    def prepare(self, queues: Sequence[str], lease: float, consumer: str) -> None:
        for connector, names in self._there(queues).items():
            connector.transport.prepare(names, lease, consumer)

    def _there(self, queues: Sequence[str]) -> dict[Connector, list[str]]:
        """These queues by where they are, with their names there."""
        there: dict[Connector, list[str]] = {}
        for connector, name in self._names.places(queues):
            there.setdefault(connector, []).append(name)
        return there

    def receive(
        self, queues: Sequence[str], limit: int, lease: float, wait: float, consumer: str
    ) -> list[Delivery]:
        self._check_open()
        found = self._receiver.receive(queues, limit, lease, wait, consumer)
        if self._alone is not None:
            self.newest_revocation = self._alone.transport.newest_revocation
        return found

    def interrupt(self) -> None:
        self._receiver.interrupt()

    # What is held

    def _tell(
        self,
        items: Sequence[T],
        delivery: Callable[[T], Delivery],
        call: Callable[[Transport, Sequence[tuple[str, T]]], list[Delivery]],
    ) -> list[Delivery]:
        self._check_open()
        outer = {id(delivery(item).receipt): delivery(item) for item in items}
        lost: list[Delivery] = []
        for connector, group in self._names.grouped(
            items, lambda item: delivery(item).queue
        ).items():
            refused = connector.tell(partial(_flipped, call, group))
            lost += [outer[id(each)] for each in refused if id(each) in outer]
        return lost

    def ack(
        self, deliveries: Sequence[Delivery], outcomes: Sequence[Outcome] = ()
    ) -> list[Delivery]:
        if outcomes and self._alone is not None:
            return self._ack_alone(self._alone, deliveries, outcomes)
        return self._tell(
            deliveries, _itself, lambda there, some: there.ack([each.receipt for _, each in some])
        )

    def shares(self, backend: Backend) -> bool:
        return self._alone is not None and self._alone.transport.shares(backend)

    def _ack_alone(
        self, connector: Connector, deliveries: Sequence[Delivery], outcomes: Sequence[Outcome]
    ) -> list[Delivery]:
        """Nothing is owed that has outcomes: they are stored now, or this raises."""
        self._check_open()
        outer = {id(each.receipt): each for each in deliveries}
        held = [each.receipt for each in deliveries]
        lost = connector.attempt(lambda there: there.ack(held, outcomes))
        return [outer[id(each)] for each in lost]

    def release(self, deliveries: Sequence[Delivery], delay: float = 0.0) -> list[Delivery]:
        return self._tell(
            deliveries,
            _itself,
            lambda there, some: there.release([each.receipt for _, each in some], delay),
        )

    def replace(self, pairs: Sequence[tuple[Delivery, Message]]) -> list[Delivery]:
        """A successor stays at the connector of its delivery."""

        def call(
            there: Transport, some: Sequence[tuple[str, tuple[Delivery, Message]]]
        ) -> list[Delivery]:
            return there.replace(
                [
                    (delivery.receipt, renamed(message, self._names.beside(delivery, message)))
                    for _, (delivery, message) in some
                ]
            )

        return self._tell(pairs, _first, call)

    def extend(self, deliveries: Sequence[Delivery], lease: float) -> list[Delivery]:
        """Where a connector does not answer nothing is lost yet: its leases may hold still."""
        outer = {id(each.receipt): each for each in deliveries}
        lost: list[Delivery] = []
        for connector, group in self._names.grouped(deliveries, lambda each: each.queue).items():
            held = [each.receipt for _, each in group]
            try:
                refused = connector.attempt(partial(_extend, held, lease))
            except TransportError as error:
                if not error.retryable:
                    raise
                continue
            lost += [outer[id(each)] for each in refused]
        return lost

    def bury(self, burials: Sequence[tuple[Delivery, DeadLetter]]) -> list[Delivery]:
        def call(
            there: Transport, some: Sequence[tuple[str, tuple[Delivery, DeadLetter]]]
        ) -> list[Delivery]:
            return there.bury(
                [
                    (
                        delivery.receipt,
                        msgspec.structs.replace(letter, queue=self._names.grave(delivery)),
                    )
                    for _, (delivery, letter) in some
                ]
            )

        return self._tell(burials, _first, call)

    def recover(self, consumer: str, started: Collection[str]) -> int:
        return self._of_the_dead(lambda one: one.transport.recover(consumer, started))

    def recover_all(self, dead: Mapping[str, Collection[str]]) -> int:
        return self._of_the_dead(lambda one: one.transport.recover_all(dead))

    def inherit(self, queues: Sequence[str], place: str, started: Collection[str]) -> int:
        there = self._there(queues)

        def inherit(connector: Connector) -> int:
            names = there.get(connector)
            transport = connector.transport
            # What serves none of these queues any more has no place for it.
            return (
                transport.inherit(names, place, started)
                if names
                else transport.recover(place, started)
            )

        return self._of_the_dead(inherit)

    def _of_the_dead(self, call: Callable[[Connector], int]) -> int:
        count, errors = 0, []
        for connector in self._asked:
            try:
                count += call(connector)
            except TransportError as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return count

    # For people

    def stats(self, queues: Sequence[str] | None = None) -> list[QueueStats]:
        found: list[QueueStats] = []
        if queues is not None:
            there: dict[Connector, list[str]] = {}
            for connector, name in self._names.places(queues):
                there.setdefault(connector, []).append(name)
            for connector, names in there.items():
                found += self._named(connector, connector.transport.stats(names))
        else:
            for connector in self._connectors.values():
                found += self._named(connector, connector.transport.stats())
        return sorted(together(found), key=lambda each: each.queue)

    def _named(self, connector: Connector, stats: Iterable[QueueStats]) -> list[QueueStats]:
        """Those of a connector that the app has a name for, under that name."""
        named = []
        for each in stats:
            alias = self._names.alias(connector, each.queue)
            if alias is not None:
                named.append(msgspec.structs.replace(each, queue=alias))
        return named

    def peek(self, queue: str, limit: int = 10, offset: int = 0) -> list[StoredMessage]:
        places = self._names.places([queue])
        if len(places) == 1:
            connector, name = places[0]
            found = connector.transport.peek(name, limit, offset)
        else:
            each = [place.connector.transport.peek(place.name, limit + offset) for place in places]
            found = in_turn(each)[offset : offset + limit]
        return [self._names.shown(queue, one) for one in found]

    def purge(self, queue: str) -> int:
        return sum(
            place.connector.transport.purge(place.name) for place in self._names.places([queue])
        )

    def delete(self, ids: Sequence[str]) -> list[str]:
        return [key for each in self._transports() for key in each.delete(ids)]

    def dead_letters(
        self, queue: str | None = None, limit: int = 100, offset: int = 0
    ) -> list[DeadLetter]:
        if queue is not None:
            connector, name = self._names.place(queue)
            return self._letters(connector, connector.transport.dead_letters(name, limit, offset))
        each = [
            self._letters(connector, connector.transport.dead_letters(None, limit + offset, 0))
            for connector in self._connectors.values()
        ]
        newest_first = heapq.merge(*each, key=lambda letter: letter.at, reverse=True)
        return list(islice(newest_first, offset, offset + limit))

    def _letters(self, connector: Connector, letters: Iterable[DeadLetter]) -> list[DeadLetter]:
        return [
            msgspec.structs.replace(
                each, queue=self._names.alias(connector, each.queue) or each.queue
            )
            for each in letters
        ]

    def dead_letter(self, id: str) -> DeadLetter | None:
        for connector in self._connectors.values():
            letter = connector.transport.dead_letter(id)
            if letter is not None:
                return self._letters(connector, [letter])[0]
        return None

    def requeue(self, messages: Sequence[Message]) -> list[str]:
        """One whose dead letter is at another broker is sent before that is removed."""
        requeued: list[str] = []
        for connector, group in self._names.outgoing(messages).items():
            there = [renamed(message, name) for name, message in group]
            done = connector.transport.requeue(there)
            requeued += done
            requeued += self._carry(connector, [m for m in there if m.header.id not in done])
        return requeued

    def _carry(self, to: Connector, messages: Sequence[Message]) -> list[str]:
        carried: list[str] = []
        others = [connector.transport for connector in self._connectors.values() if connector != to]
        for message in messages:
            header = message.header
            for transport in others:
                letter = transport.dead_letter(header.id)
                if letter is not None:
                    count = max(header.deliveries, letter.deliveries)
                    counted = msgspec.structs.replace(header, deliveries=count)
                    to.transport.send([Message(counted, message.frame)])
                    transport.purge_dead([header.id])
                    carried.append(header.id)
        return carried

    def purge_dead(self, ids: Sequence[str]) -> int:
        return sum(each.purge_dead(ids) for each in self._transports())

    def _transports(self) -> list[Transport]:
        return [connector.transport for connector in self._connectors.values()]

    def ping(self) -> None:
        self._check_open()
        for connector in self._asked:
            connector.transport.ping()

    def info(self) -> dict[str, Any]:
        """That of the broker, and of the other connectors in `connectors`."""
        infos = {c.name: c.transport.info() for c in self._connectors.values()}
        first, *_ = infos.values()
        return {
            "transport": self.scheme,
            "address": ", ".join(str(each["address"]) for each in infos.values()),
            "version": first["version"],
            "connectors": infos,
        }

    def parts(self) -> dict[str, Transport]:
        return {each.name: each.transport for each in self._connectors.values()}

    def maintain(self) -> None:
        for connector in self._asked:
            if not connector.down:
                connector.transport.maintain()

    def close(self) -> None:
        self._closed = True
        for connector in self._connectors.values():
            connector.close()

    def _check_open(self) -> None:
        if self._closed:
            raise TransportError("the connections are closed: open others", retryable=False)


def _refuse(error: TasklineError) -> None:
    raise error


def _finish(begun: Sequence[tuple[str, Callable[[], None]]]) -> None:
    """Wait for all sends, each with its connector's name, and then raise what failed of them."""
    refused: list[tuple[str, TasklineError]] = []
    for name, wait in begun:
        try:
            wait()
        except TasklineError as error:
            refused.append((name, error))
    if not refused:
        return
    first = refused[0][1]
    if len(begun) == 1:
        raise first
    reasons = "; ".join(f"{name}: {error}" for name, error in refused)
    raise TransportError(
        f"{len(refused)} of {len(begun)} connectors did not take their messages: {reasons}",
        retryable=all(getattr(error, "retryable", False) for _, error in refused),
    ) from first


def _extend(held: Sequence[Delivery], lease: float, transport: Transport) -> list[Delivery]:
    return transport.extend(held, lease)


def _flipped(call: Callable[[Transport, Any], list[Delivery]], some: Any, there: Transport) -> Any:
    return call(there, some)


def _itself(delivery: Delivery) -> Delivery:
    return delivery


def _first(pair: tuple[Delivery, Any]) -> Delivery:
    return pair[0]
