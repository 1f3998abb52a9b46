"""Several transports as one: each queue by its own connector, under its own name there.

What the app calls a queue is its alias; the transport of its connector knows it by
another name, perhaps. A delivery's receipt is the delivery that the transport made.

Threads: as the seam says. A `receive` that waits has a thread for each connector,
which waits there on its behalf; when it returns none of them is in a transport.
A connector that does not answer holds back nobody else's queues: it is asked again
after `PAUSE`, and what it missed, such as acknowledgements, is told to it then.
"""

from __future__ import annotations

import heapq
import logging
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from itertools import groupby, islice
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec

from taskline.clock import SYSTEM_CLOCK, Clock
from taskline.errors import NotSupported, SerializationError, TransportError
from taskline.message import (
    VERSION,
    DeadLetter,
    Delivery,
    Header,
    Message,
    Outcome,
    join,
    split,
)
from taskline.transports.base import Capabilities, QueueStats, StoredMessage, Transport

if TYPE_CHECKING:
    from taskline.queueing import Route

log = logging.getLogger("taskline.transports")

PAUSE = 1.0
"""Seconds for which a connector that did not answer is left alone."""

T = TypeVar("T")


class Waiter:
    """A thread that waits in `receive` of one connector, whenever it is told to."""

    def __init__(self, name: str) -> None:
        self._orders: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def do(self, work: Callable[[], None]) -> None:
        """Have this done in the thread."""
        self._orders.put(work)

    def end(self) -> None:
        """Let the thread end, when it has done what it was told before."""
        self._orders.put(None)

    def _run(self) -> None:
        while (work := self._orders.get()) is not None:
            work()


class Connector:
    """One transport, opened when it is first needed, and what it is still owed."""

    def __init__(self, key: str, open_one: Callable[[], Transport], clock: Clock) -> None:
        self.key = key
        self.name = key or "broker"
        self._open = open_one
        self._clock = clock
        self._lock = threading.Lock()
        self._opened: Transport | None = None
        self._waiter: Waiter | None = None
        self._owed: list[Callable[[], object]] = []
        self._error: TransportError | None = None
        self._again_at = 0.0

    @property
    def transport(self) -> Transport:
        with self._lock:
            if self._opened is None:
                self._opened = self._open()
            return self._opened

    @property
    def down(self) -> bool:
        """Whether it did not answer a moment ago, and is left alone for now."""
        return self._error is not None and self._clock.monotonic() < self._again_at

    def attempt(self, call: Callable[[Transport], T]) -> T:
        """The call's answer, after what is owed. Raises `TransportError`, at once while it is down.

        For the I/O thread alone.
        """
        if self._error is not None and self.down:
            raise self._error
        try:
            self._pay()
            answer = call(self.transport)
        except TransportError as error:
            self.failed(error)
            raise
        self.answered()
        return answer

    def _pay(self) -> None:
        while self._owed:
            try:
                self._owed[0]()
            except TransportError as error:
                if error.retryable:
                    raise
                log.error("the connector %s: %s; some tasks will run again", self.name, error)
            del self._owed[0]

    def failed(self, error: TransportError) -> None:
        """Leave it alone for a while, if that may help."""
        if not error.retryable:
            return
        if self._error is None:
            log.error("the connector %s: %s; trying until it works", self.name, error)
        self._error, self._again_at = error, self._clock.monotonic() + PAUSE

    def answered(self) -> None:
        """It works."""
        if self._error is not None:
            log.info("the connector %s answers again", self.name)
            self._error = None

    def tell(self, call: Callable[[Transport], list[Delivery]]) -> list[Delivery]:
        """What was lost of what the call is about; when it cannot be told now, it will be."""
        try:
            return self.attempt(call)
        except TransportError as error:
            if not error.retryable:
                raise
            self._owed.append(lambda: call(self.transport))
            return []

    def waiter(self) -> Waiter:
        """Its thread for waiting."""
        if self._waiter is None:
            self._waiter = Waiter(f"taskline-wait-{self.name}")
        return self._waiter

    def close(self) -> None:
        """Tell it what it is still owed, if it answers, and close it."""
        with self._lock:
            opened = self._opened
        try:
            self._pay()
        except TransportError as error:
            log.warning("the connector %s: %s; some tasks will run again", self.name, error)
        with self._lock:
            self._opened = None
        if self._waiter is not None:
            self._waiter.end()
            self._waiter = None
        if opened is not None:
            opened.close()


class _Stay(NamedTuple):
    """A queue at its connector."""

    connector: Connector
    name: str


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
        self._routes = routes
        self._aliases = {(route.connector, route.name): alias for alias, route in routes.items()}
        keys = connectors if served is None else {self._key(queue) for queue in served}
        self._asked = [self._connectors[key] for key in connectors if key in keys]
        self._state = threading.Condition()
        self._interrupted = False
        self._waiting: list[Connector] = []
        """Those in whose `receive` a thread waits; guarded by `_state`."""
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

    def _key(self, queue: str) -> str:
        route = self._routes.get(queue)
        return route.connector if route is not None else ""

    def _stay(self, queue: str) -> _Stay:
        route = self._routes.get(queue)
        if route is None:
            return _Stay(self._connectors[""], queue)
        return _Stay(self._connectors[route.connector], route.name)

    def _grouped(
        self, items: Iterable[T], queue: Callable[[T], str]
    ) -> dict[Connector, list[tuple[str, T]]]:
        """The items of each connector, each with its queue's name there."""
        groups: dict[Connector, list[tuple[str, T]]] = {}
        for item in items:
            connector, name = self._stay(queue(item))
            groups.setdefault(connector, []).append((name, item))
        return groups

    # Sending

    def send(self, messages: Sequence[Message]) -> None:
        for connector, group in self._grouped(messages, _queue_of).items():
            connector.transport.send([self._written(message, name) for name, message in group])

    def _written(self, message: Message, name: str) -> Message:
        """The message as its transport stores it."""
        route = self._routes.get(message.header.queue)
        if route is not None and route.plain and message.header.attempt == 1:
            message = Message(message.header, _payload(message))
        return _renamed(message, name)

    def send_within(self, transaction: Any, messages: Sequence[Message]) -> None:
        home = self._connectors[""]
        groups = self._grouped(messages, _queue_of)
        if set(groups) - {home}:
            raise NotSupported(
                "a transaction of yours is with the broker, but a message in it is for a queue of "
                "another connector: send that one after the commit"
            )
        group = groups.get(home, [])
        home.transport.send_within(
            transaction, [self._written(message, name) for name, message in group]
        )

    # Receiving

    def receive(
        self, queues: Sequence[str], limit: int, lease: float, wait: float, consumer: str
    ) -> list[Delivery]:
        self._check_open()
        stays = [self._stay(queue) for queue in queues]
        until = self.clock.monotonic() + wait
        taken: list[Delivery] = []
        while True:
            taken = taken or self._look(stays, limit, lease, consumer)
            left = until - self.clock.monotonic()
            with self._state:
                if taken or self._interrupted or left <= 0:
                    self._interrupted = False
                    return taken
            taken = self._wait(stays, limit, lease, left, consumer)

    def _look(
        self, stays: Sequence[_Stay], limit: int, lease: float, consumer: str
    ) -> list[Delivery]:
        """What there is now, in the order of the queues."""
        taken: list[Delivery] = []
        errors = []
        runs = [
            (connector, [stay.name for stay in run])
            for connector, run in groupby(stays, key=lambda stay: stay.connector)
        ]
        for connector, names in runs:
            if len(taken) >= limit:
                break
            ask = partial(_ask, names, limit - len(taken), lease, 0.0, consumer)
            try:
                taken += self._adopted(connector, connector.attempt(ask))
            except TransportError as error:
                if not error.retryable:
                    self._hand_back(taken)
                    raise
                errors.append(error)
        if len(errors) == len(runs) > 0:
            raise errors[0]
        return taken

    def _wait(
        self, stays: Sequence[_Stay], limit: int, lease: float, seconds: float, consumer: str
    ) -> list[Delivery]:
        """What comes first within so many seconds; another look is due when nothing came."""
        names: dict[Connector, list[str]] = {}
        for stay in stays:
            names.setdefault(stay.connector, []).append(stay.name)
        up = [connector for connector in names if not connector.down]
        most = max(1, limit // max(1, len(up)))
        if len(up) < len(names):
            seconds = min(seconds, PAUSE)
        answers: SimpleQueue[tuple[Connector, list[Delivery], Exception | None]] = SimpleQueue()

        def wait_at(connector: Connector) -> None:
            found: list[Delivery] = []
            wrong: Exception | None = None
            try:
                found = _ask(names[connector], most, lease, seconds, consumer, connector.transport)
            except Exception as error:
                wrong = error
            answers.put((connector, found, wrong))

        with self._state:
            if self._interrupted:
                return []
            self._waiting = up
        for connector in up:
            connector.waiter().do(partial(wait_at, connector))
        taken: list[Delivery] = []
        failure: Exception | None = None
        for number in range(len(up)):
            connector, found, wrong = answers.get()
            if number == 0:
                with self._state:
                    others, self._waiting = self._waiting, []
                for other in others:
                    if other is not connector:
                        other.transport.interrupt()
            taken += self._adopted(connector, found)
            if isinstance(wrong, TransportError) and wrong.retryable:
                connector.failed(wrong)
            elif wrong is not None:
                failure = wrong
        if failure is not None:
            self._hand_back(taken)
            raise failure
        self._hand_back(taken[limit:])
        return taken[:limit]

    def _hand_back(self, deliveries: Sequence[Delivery]) -> None:
        """Release what came although it cannot be taken: it was never begun."""
        if deliveries:
            self.release(deliveries)

    def _adopted(self, connector: Connector, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Deliveries of a transport under the app's names for their queues."""
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

    def _frame(self, alias: str, delivery: Delivery) -> bytes:
        """The message's own frame; a plain message of another program becomes a call."""
        route = self._routes.get(alias)
        if route is None or route.task is None or _is_frame(delivery.frame):
            return delivery.frame
        try:
            payload = bytes(msgspec.json.encode(msgspec.json.decode(delivery.frame)))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return delivery.frame
        header = Header(VERSION, delivery.id, route.task, alias, self.clock.time())
        return join(header, b"[[" + payload + b"],{}]")

    def interrupt(self) -> None:
        with self._state:
            self._interrupted = True
            waiting = list(self._waiting)
        for connector in waiting:
            connector.transport.interrupt()

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
        for connector, group in self._grouped(items, lambda item: delivery(item).queue).items():
            refused = connector.tell(partial(_flipped, call, group))
            lost += [outer[id(each)] for each in refused if id(each) in outer]
        return lost

    def ack(
        self, deliveries: Sequence[Delivery], outcomes: Sequence[Outcome] = ()
    ) -> list[Delivery]:
        return self._tell(
            deliveries, _itself, lambda there, some: there.ack([each.receipt for _, each in some])
        )

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
                    (delivery.receipt, _renamed(message, self._name_beside(delivery, message)))
                    for _, (delivery, message) in some
                ]
            )

        return self._tell(pairs, _first, call)

    def _name_beside(self, delivery: Delivery, message: Message) -> str:
        """What the message's queue is called at the connector of the delivery."""
        queue = message.header.queue
        if queue == delivery.queue:
            return str(delivery.receipt.queue)
        if self._key(queue) != self._key(delivery.queue):
            raise NotSupported(
                f"a further attempt of a task of {delivery.queue} cannot go to {queue}: it is at "
                "another broker"
            )
        return self._stay(queue).name

    def extend(self, deliveries: Sequence[Delivery], lease: float) -> list[Delivery]:
        """Where a connector does not answer nothing is lost yet: its leases may hold still."""
        outer = {id(each.receipt): each for each in deliveries}
        lost: list[Delivery] = []
        for connector, group in self._grouped(deliveries, lambda each: each.queue).items():
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
                        msgspec.structs.replace(letter, queue=self._grave(delivery)),
                    )
                    for _, (delivery, letter) in some
                ]
            )

        return self._tell(burials, _first, call)

    def _grave(self, delivery: Delivery) -> str:
        route = self._routes.get(delivery.queue)
        if route is None:
            return delivery.queue
        return self._stay(route.dead_letters).name

    def recover(self, consumer: str, started: Collection[str]) -> int:
        count, errors = 0, []
        for connector in self._asked:
            try:
                count += connector.transport.recover(consumer, started)
            except TransportError as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return count

    # For people

    def stats(self, queues: Sequence[str] | None = None) -> list[QueueStats]:
        found: list[QueueStats] = []
        if queues is not None:
            for connector, group in self._grouped(queues, str).items():
                found += self._named(connector, connector.transport.stats([n for n, _ in group]))
            return sorted(found, key=lambda each: each.queue)
        for connector in self._connectors.values():
            found += self._named(connector, connector.transport.stats())
        return sorted(found, key=lambda each: each.queue)

    def _named(self, connector: Connector, stats: Iterable[QueueStats]) -> list[QueueStats]:
        """Those of a connector that the app has a name for, under that name."""
        named = []
        for each in stats:
            alias = self._alias(connector, each.queue)
            if alias is not None:
                named.append(msgspec.structs.replace(each, queue=alias))
        return named

    def _alias(self, connector: Connector, name: str) -> str | None:
        """What the app calls a connector's queue; None when it has no name for it."""
        alias = self._aliases.get((connector.key, name))
        if alias is None and not connector.key and name not in self._routes:
            return name
        return alias

    def peek(self, queue: str, limit: int = 10, offset: int = 0) -> list[StoredMessage]:
        connector, name = self._stay(queue)
        found = connector.transport.peek(name, limit, offset)
        return [msgspec.structs.replace(each, queue=queue) for each in found]

    def purge(self, queue: str) -> int:
        connector, name = self._stay(queue)
        return connector.transport.purge(name)

    def delete(self, ids: Sequence[str]) -> list[str]:
        return [key for each in self._transports() for key in each.delete(ids)]

    def dead_letters(
        self, queue: str | None = None, limit: int = 100, offset: int = 0
    ) -> list[DeadLetter]:
        if queue is not None:
            connector, name = self._stay(queue)
            return self._letters(connector, connector.transport.dead_letters(name, limit, offset))
        each = [
            self._letters(connector, connector.transport.dead_letters(None, limit + offset, 0))
            for connector in self._connectors.values()
        ]
        newest_first = heapq.merge(*each, key=lambda letter: letter.at, reverse=True)
        return list(islice(newest_first, offset, offset + limit))

    def _letters(self, connector: Connector, letters: Iterable[DeadLetter]) -> list[DeadLetter]:
        return [
            msgspec.structs.replace(each, queue=self._alias(connector, each.queue) or each.queue)
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
        for connector, group in self._grouped(messages, _queue_of).items():
            there = [_renamed(message, name) for name, message in group]
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


def _ask(
    names: Sequence[str],
    limit: int,
    lease: float,
    wait: float,
    consumer: str,
    transport: Transport,
) -> list[Delivery]:
    return transport.receive(names, limit, lease, wait, consumer)


def _extend(held: Sequence[Delivery], lease: float, transport: Transport) -> list[Delivery]:
    return transport.extend(held, lease)


def _flipped(call: Callable[[Transport, Any], list[Delivery]], some: Any, there: Transport) -> Any:
    return call(there, some)


def _renamed(message: Message, queue: str) -> Message:
    """The message as its transport has it; the frame, which that does not read, stays."""
    if message.header.queue == queue:
        return message
    return Message(msgspec.structs.replace(message.header, queue=queue), message.frame)


def _payload(message: Message) -> bytes:
    """The one argument of a call, as JSON; raises `TransportError` for what has another form."""
    frame = message.frame.partition(b"\n")[2] if message.frame[:1] == b"~" else message.frame
    header, body = split(frame)
    if header.serializer == "json" and not header.compression:
        args, kwargs = msgspec.json.decode(body)
        if len(args) == 1 and not kwargs:
            return msgspec.json.encode(args[0])
    raise TransportError(
        f"{header.task}: the queue {message.header.queue} carries plain JSON: call with one "
        "positional argument and no serializer",
        retryable=False,
    )


def _queue_of(message: Message) -> str:
    return message.header.queue


def _itself(delivery: Delivery) -> Delivery:
    return delivery


def _first(pair: tuple[Delivery, Any]) -> Delivery:
    return pair[0]


def _is_frame(frame: bytes) -> bool:
    """Whether these bytes are a message of Taskline's, signed or not."""
    if frame[:1] == b"~":
        frame = frame.partition(b"\n")[2]
    try:
        split(frame)
    except SerializationError:
        return False
    return True
