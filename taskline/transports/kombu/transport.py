"""`kombu+<any kombu URL>`: RabbitMQ, SQS and whatever else kombu speaks to.

Who receives has a connection of its own; what it holds is its own as long as that
connection lives, and the broker gives it to others when it ends. All else is said over
a few connections that are taken and put back. What leaves a queue to be stored again (a
retry, a dead letter, what is handed back) is stored first and then acknowledged.
"""

from __future__ import annotations

import contextlib
import logging
import random
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from hashlib import sha256
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec

from taskline import amqp as wrapped
from taskline.clock import SYSTEM_CLOCK, Clock
from taskline.errors import ConfigurationError, TransportError
from taskline.message import DEFAULT_PRIORITY, DeadLetter, Delivery, Header, Message, Outcome
from taskline.redis.interrupt import Interrupt
from taskline.registry import Spec
from taskline.transports.base import Capabilities, QueueStats, StoredMessage, Transport
from taskline.transports.kombu import letters
from taskline.transports.kombu.letters import Letters
from taskline.transports.kombu.link import INTERNAL, OWN, Link, Parcel, Taken
from taskline.transports.kombu.location import Location, locate

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger("taskline.kombu")

ID, DELIVERIES, LOST, DUE = "taskline-id", "taskline-deliveries", "taskline-lost", "taskline-eta"
"""Headers: the task's id; handings-over before this copy, and those of them that were lost;
when it is due (Unix seconds)."""
IDLE = 4
"""Connections that are kept though nobody uses them."""
PAUSE = 0.05
"""Seconds before a send is tried again; longer each time."""
SLACK = 0.01
"""Seconds that a message may come early: what a timer and a clock differ by."""
KEPT = ("correlation_id", "reply_to", "message_id")
"""Properties that go with a message when it is stored anew."""

_serial = count(1)
P = TypeVar("P")


class Held(NamedTuple):
    """What this transport took and has not settled."""

    taken: Taken
    delivery: Delivery


class KombuTransport(Transport):
    """One broker that kombu speaks to; see the module's docstring."""

    scheme = "kombu"

    def __init__(self, location: Location, clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__(clock)
        self._given = location
        self.location = _settled(location, 10)
        self._speaks_celery = False
        self._kind = str(location.connection().transport.driver_type)
        self.is_amqp = self._kind == "amqp"
        if location.url.startswith("librabbitmq:"):
            raise ConfigurationError("librabbitmq has no publisher confirms: write amqp://")
        self.capabilities = _capabilities(self._kind, self.location)
        self._idle: deque[Link] = deque()
        self._receiver: Link | None = None
        self._held: dict[Any, Held] = {}
        """By receipt: the number of the link that took it, and its tag there."""
        self._number = 0
        self._known: set[str] = set()
        """Queues that are in the broker's list of names."""
        self._interrupt = Interrupt()
        self._closed = False

    @classmethod
    def from_spec(cls, spec: Spec, clock: Clock) -> Self:
        """A URL, or a mapping with `url`; see `taskline.transports.kombu.location.locate`."""
        return cls(locate(spec), clock)

    def speak(self, protocol: str) -> None:
        """Celery's messages have headers and properties beside their bodies: kombu carries them."""
        self._speaks_celery = protocol == "celery"
        self.location = _settled(self._given, 0 if self._speaks_celery else 10)
        self.capabilities = _capabilities(self._kind, self.location)

    # Links

    def _link(self, lease: float | None = None) -> Link:
        """A link that is not open yet; with a lease, one that receives."""
        location = self.location
        if self.is_amqp:
            from taskline.transports.kombu.amqp import AMQPLink

            beat = 0 if lease is None else int(max(1.0, min(location.heartbeat, lease / 3)))
            options: dict[str, Any] = {
                "read_timeout": location.timeout,
                "write_timeout": location.timeout,
                "client_properties": {"connection_name": "taskline"},
            }
            return AMQPLink(location, self.clock, location.connection(beat, **options))
        from taskline.transports.kombu.polling import PollingLink, options_for

        options = options_for(self._kind, lease)
        return PollingLink(location, self.clock, location.connection(**options))

    @contextlib.contextmanager
    def _talk(self) -> Iterator[Link]:
        """A link for one conversation that is not about what is held."""
        try:
            link = self._idle.pop()
        except IndexError:
            link = self._link()
        with link.talking():
            yield link
        if len(self._idle) < IDLE and not self._closed:
            self._idle.append(link)
        else:
            link.close()

    @contextlib.contextmanager
    def _receiving(self, lease: float) -> Iterator[Link]:
        """The link that holds what was received; what fails ends it and all that it holds."""
        link = self._receiver
        if link is None:
            link = self._receiver = self._link(lease)
            self._number = next(_serial)
        try:
            with link.talking():
                yield link
        except BaseException:
            self._drop()
            raise

    def _drop(self) -> None:
        """The receiving link has ended: the broker has what it held."""
        link, self._receiver = self._receiver, None
        self._held.clear()
        if link is not None:
            link.drop()

    # Sending

    def send(self, messages: Sequence[Message]) -> None:
        """Raises when not all are confirmed; those that were may be stored all the same."""
        self._publish(
            [
                self._parcel(message.header, message.frame, message.header.deliveries)
                for message in messages
            ]
        )

    def _publish(self, parcels: list[Parcel]) -> None:
        """Store them all, trying again while the time lasts."""
        if not parcels:
            return
        until = self.clock.monotonic() + self.location.timeout
        pause = PAUSE
        while True:
            try:
                with self._talk() as link:
                    self._make_known(link, {parcel.queue for parcel in parcels})
                    link.publish(parcels)
                return
            except TransportError as error:
                if not error.retryable or self.clock.monotonic() + pause > until:
                    raise
            self.clock.sleep(pause * random.uniform(0.5, 1.0))
            pause *= 2

    def _make_known(self, link: Link, names: Collection[str]) -> None:
        """Put names of queues at the broker into its list."""
        prefix = self.location.prefix
        internal = prefix + INTERNAL
        new = {name for name in names if name not in self._known and not name.startswith(internal)}
        if new:
            letters.read_names(link, prefix, [name.removeprefix(prefix) for name in new])
            self._known |= new

    def _parcel(self, header: Header, frame: bytes, deliveries: int, lost: int = 0) -> Parcel:
        delay = 0.0 if header.eta is None else header.eta - self.clock.time()
        headers: dict[str, Any] = {ID: header.id, DELIVERIES: deliveries, LOST: lost}
        if delay > 0:
            headers[DUE] = header.eta
        queue, priority = self.location.prefix + header.queue, self._priority(header.priority)
        if not frame.startswith(wrapped.MARK):
            return Parcel(queue, frame, headers, priority, max(0.0, delay))
        envelope, body = wrapped.unwrap(frame)
        if not self.is_amqp:
            # Nobody but Taskline's workers would fetch it from where it waits.
            delay = 0.0
        return Parcel(
            queue,
            body,
            {**envelope.headers, **headers},
            priority,
            max(0.0, delay),
            envelope.content_type,
            envelope.content_encoding,
            {key: each for key, each in envelope.properties.items() if key in KEPT},
        )

    def _priority(self, priority: int) -> int | None:
        """Taskline's priority as kombu's transport has it."""
        if not self.capabilities.priority:
            return None
        return 9 - priority if self._kind == "redis" else priority

    def _again(
        self, taken: Taken, deliveries: int, lost: int, delay: float = 0.0, first: bool = False
    ) -> Parcel:
        """A copy of what was taken; `first` in its queue, if that has priorities."""
        headers = {
            key: value
            for key, value in taken.headers.items()
            if not key.startswith(("taskline-", "x-")) or key == ID
        }
        headers.update({DELIVERIES: deliveries, LOST: lost})
        if delay > 0:
            headers[DUE] = self.clock.time() + delay
        priority = taken.properties.get("priority")
        if first and self.is_amqp and self.capabilities.priority:
            priority = self.location.priorities
        return Parcel(
            taken.queue,
            taken.body,
            headers,
            priority,
            delay,
            taken.content_type,
            taken.content_encoding,
            {key: taken.properties[key] for key in KEPT if taken.properties.get(key)},
        )

    # Receiving

    def receive(
        self, queues: Sequence[str], limit: int, lease: float, wait: float, consumer: str
    ) -> list[Delivery]:
        """What is taken is held until the connection ends, whatever the lease: see the docs."""
        prefix = self.location.prefix
        names = [prefix + queue for queue in queues]
        until = self.clock.monotonic() + wait
        while True:
            with self._receiving(lease) as link:
                for name in names:
                    link.declare(name)
                if not self._known.issuperset(names):
                    self._make_known_apart(names)
                link.upkeep()
                taken: list[Taken] = []
                for name in names:
                    if len(taken) < limit:
                        taken += link.get(name, limit - len(taken))
                interrupted = self._interrupt.spent()
                left = until - self.clock.monotonic()
                if not taken and left > 0 and not interrupted:
                    taken = link.wait(names, left, self._interrupt)
                    interrupted = self._interrupt.spent()
                deliveries = self._begin(link, taken, limit, lease)
            if deliveries or interrupted or self.clock.monotonic() >= until:
                return deliveries

    def _make_known_apart(self, names: Sequence[str]) -> None:
        with self._talk() as link:
            self._make_known(link, names)

    def _begin(self, link: Link, taken: list[Taken], limit: int, lease: float) -> list[Delivery]:
        """Deliveries of what was taken; what is not to be handed over now is stored anew."""
        deliveries: list[Delivery] = []
        again: list[tuple[Taken, Parcel]] = []
        for each in taken:
            headers = each.headers
            before, lost = int(_number(headers, DELIVERIES)), int(_number(headers, LOST))
            early = _due(headers) - self.clock.time()
            if each.redelivered and not each.counted:
                # That it was handed over before is all that the broker tells: we count.
                again.append((each, self._again(each, before + 1, lost + 1, first=True)))
            elif early > SLACK:
                again.append((each, self._again(each, before, lost, early)))
            elif len(deliveries) >= limit:
                again.append((each, self._again(each, before, lost, first=True)))
            else:
                queue = each.queue.removeprefix(self.location.prefix)
                named, frame = _message(each, queue)
                delivery = Delivery(
                    named,
                    queue,
                    frame,
                    before + each.redelivered + 1,
                    lost + each.redelivered,
                    (self._number, each.tag),
                )
                self._held[delivery.receipt] = Held(each, delivery)
                deliveries.append(delivery)
        if again:
            self._publish([parcel for _, parcel in again])
            link.ack([each.tag for each, _ in again])
        if deliveries:
            link.begin([delivery.receipt[1] for delivery in deliveries], lease)
        return deliveries

    def interrupt(self) -> None:
        self._interrupt.set()

    # What is held

    def _settle(
        self, items: Sequence[P], deliveries: Sequence[Delivery], *, check: bool
    ) -> tuple[list[tuple[P, Held]], list[Delivery]]:
        """Those of the items whose delivery is held, with what is held; and the others' deliveries.

        With `check` the broker is asked whether it still sees us as the holder.
        """
        if (
            check
            and self._receiver is not None
            and any(d.receipt in self._held for d in deliveries)
        ):
            with contextlib.suppress(TransportError), self._receiving(0.0) as link:
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

    def _done(self, held: Sequence[Held]) -> list[Delivery]:
        """Acknowledge; returns those of which the broker may not know it."""
        if not held:
            return []
        try:
            with self._receiving(0.0) as link:
                link.ack([each.taken.tag for each in held])
        except TransportError as error:
            # The broker gives the messages to others, unless it has understood before.
            log.info("%s", error)
            return [each.delivery for each in held]
        for each in held:
            self._held.pop(each.delivery.receipt, None)
        return []

    def ack(
        self, deliveries: Sequence[Delivery], outcomes: Sequence[Outcome] = ()
    ) -> list[Delivery]:
        mine, lost = self._settle(deliveries, deliveries, check=False)
        return lost + self._done([held for _, held in mine])

    def release(self, deliveries: Sequence[Delivery], delay: float = 0.0) -> list[Delivery]:
        """To the end of its queue, or first where that has priorities."""
        mine, lost = self._settle(deliveries, deliveries, check=True)
        self._publish(
            [
                self._again(held.taken, held.delivery.deliveries, held.delivery.lost, delay)
                for _, held in mine
            ]
        )
        return lost + self._done([held for _, held in mine])

    def replace(self, pairs: Sequence[tuple[Delivery, Message]]) -> list[Delivery]:
        """The successor is stored first: a crash in between leaves both, never none."""
        mine, lost = self._settle(pairs, [delivery for delivery, _ in pairs], check=True)
        self._publish(
            [
                self._parcel(message.header, message.frame, held.delivery.deliveries)
                for (_, message), held in mine
            ]
        )
        return lost + self._done([held for _, held in mine])

    def bury(self, burials: Sequence[tuple[Delivery, DeadLetter]]) -> list[Delivery]:
        """The letter is stored first: a crash in between leaves both, never none."""
        mine, lost = self._settle(burials, [delivery for delivery, _ in burials], check=True)
        prefix = self.location.prefix
        self._publish(
            [letters.parcel(prefix, letter, held.delivery.deliveries) for (_, letter), held in mine]
        )
        return lost + self._done([held for _, held in mine])

    def extend(self, deliveries: Sequence[Delivery], lease: float) -> list[Delivery]:
        """Keep the connection alive, and with it what it holds."""
        mine, lost = self._settle(deliveries, deliveries, check=False)
        if not mine:
            return lost
        try:
            with self._receiving(lease) as link:
                gone = set(link.beat([held.taken.tag for _, held in mine], lease))
        except TransportError as error:
            log.info("%s", error)
            return list(deliveries)
        for _, held in mine:
            if held.taken.tag in gone:
                lost.append(held.delivery)
                del self._held[held.delivery.receipt]
        return lost

    def recover(self, consumer: str, started: Collection[str]) -> int:
        """None: the broker hands back by itself what a dead process held."""
        return 0

    # For people

    def _queues(self, link: Link) -> list[str]:
        """The names of all queues, as users know them."""
        prefix = self.location.prefix
        names = {name.removeprefix(prefix) for name in self._known}
        return sorted(names | letters.read_names(link, prefix))

    def stats(self, queues: Sequence[str] | None = None) -> list[QueueStats]:
        """What is ready and dead; how much is delayed or held no broker of kombu's tells."""
        if queues is not None and not queues:
            return []
        prefix = self.location.prefix
        with self._talk() as link:
            return [
                QueueStats(
                    queue=name,
                    ready=link.count(prefix + name),
                    delayed=None,
                    leased=None,
                    dead=link.count(letters.dead_queue(prefix, name)),
                )
                for name in sorted(set(queues) if queues is not None else self._queues(link))
            ]

    def peek(self, queue: str, limit: int = 10, offset: int = 0) -> list[StoredMessage]:
        raise self._refuse("show messages without taking them: kombu's brokers have no way to")

    def purge(self, queue: str) -> int:
        """Reads all that is delayed."""
        with self._talk() as link:
            name = self.location.prefix + queue
            return link.purge(name) + link.purge_delayed(name)

    def delete(self, ids: Sequence[str]) -> list[str]:
        if not ids:
            return []
        raise self._refuse("delete a message by its id: revoke the task instead")

    def _letters(self, link: Link, queue: str | None = None) -> Letters:
        known = self._queues(link) if queue is None else [queue]
        return Letters(link, self.location.prefix, known)

    def dead_letters(
        self, queue: str | None = None, limit: int = 100, offset: int = 0
    ) -> list[DeadLetter]:
        """Reads all dead letters of the queue, or of all queues."""
        with self._talk() as link:
            return self._letters(link, queue).list()[offset : offset + limit]

    def dead_letter(self, id: str) -> DeadLetter | None:
        """Reads all dead letters."""
        with self._talk() as link:
            return next((each for each in self._letters(link).list() if each.id == id), None)

    def requeue(self, messages: Sequence[Message]) -> list[str]:
        """Reads all dead letters. A crash leaves both the letter and the message, never none."""
        if not messages:
            return []
        wanted = {message.header.id: message for message in messages}

        def instead(letter: str, deliveries: int) -> Parcel:
            message = wanted[letter]
            most = max(deliveries, message.header.deliveries)
            return self._parcel(message.header, message.frame, most)

        with self._talk() as link:
            self._make_known(
                link, {self.location.prefix + message.header.queue for message in messages}
            )
            done = self._letters(link).take(wanted, instead)
        return [each for each in wanted if each in done]

    def purge_dead(self, ids: Sequence[str]) -> int:
        """Reads all dead letters."""
        if not ids:
            return 0
        with self._talk() as link:
            return len(self._letters(link).take(set(ids), lambda letter, deliveries: None))

    def ping(self) -> None:
        """Stores a message, and takes it again."""
        with self._talk() as link:
            link.check(f"{self.location.prefix}{INTERNAL}queues")

    def info(self) -> dict[str, Any]:
        with self._talk() as link:
            return {
                "transport": self.scheme,
                "address": str(self.location),
                "version": f"{link.product} {link.version}".strip(),
                "kombu": self._kind,
            }

    def maintain(self) -> None:
        """Move what came due, where the broker does not do that by itself."""
        if not self.is_amqp:
            with self._receiving(30.0) as link:
                link.upkeep()

    def close(self) -> None:
        self._closed = True
        self._interrupt.set()
        while self._idle:
            self._idle.pop().close()
        link, self._receiver = self._receiver, None
        self._held.clear()
        if link is not None:
            link.close()


def _settled(location: Location, priorities: int) -> Location:
    """The location with its number of priorities."""
    if location.priorities is not None:
        return location
    return msgspec.structs.replace(location, priorities=priorities)


def _message(taken: Taken, queue: str) -> tuple[str, bytes]:
    """The id and the frame of a message, wrapped if it is not Taskline's own."""
    headers = taken.headers
    if taken.content_type == OWN:
        known = str(headers.get(ID) or _unknown(taken))
        return known.encode(errors="replace").decode(), taken.body
    theirs = {key: value for key, value in headers.items() if not key.startswith("taskline-")}
    properties = {key: taken.properties[key] for key in KEPT if taken.properties.get(key)}
    properties["queue"] = queue
    envelope = wrapped.Envelope(theirs, taken.content_type, taken.content_encoding, properties)
    found = headers.get("id") or headers.get(ID) or properties.get("correlation_id")
    known = str(found or _unknown(taken))
    known = known.encode(errors="replace").decode()
    try:
        return known, wrapped.wrap(envelope, taken.body)
    except (ValueError, TypeError, RecursionError):  # headers that JSON cannot carry at all
        return known, wrapped.wrap(wrapped.Envelope(), taken.body)


def _capabilities(kind: str, location: Location) -> Capabilities:
    """What Taskline relies on of each kind of broker."""
    none = Capabilities(
        priority=False,
        ordering=False,
        fencing=False,
        blocking=False,
        peek=False,
        delete=False,
        idempotent=False,
        durable=False,
        leases=False,
    )
    if kind == "amqp":
        priority = (
            location.queue_type == "classic" and (location.priorities or 0) >= DEFAULT_PRIORITY
        )
        return _with(none, fencing=True, blocking=True, durable=True, priority=priority)
    return _with(none, durable=kind in ("redis", "sqs"))


def _unknown(taken: Taken) -> str:
    """An id for a message that has none, the same each time it is handed over."""
    return "unknown-" + sha256(taken.body).hexdigest()[:32]


def _number(headers: dict[str, Any], name: str) -> float:
    """A header of ours; 0 for what somebody else may have written there."""
    found = headers.get(name, 0)
    return found if isinstance(found, (int, float)) and abs(found) < 1e12 else 0


def _due(headers: dict[str, Any]) -> float:
    """When a message is due, Unix seconds; by Taskline's header, or by Celery's."""
    if DUE in headers:
        return _number(headers, DUE)
    if "eta" in headers and ID not in headers:
        with contextlib.suppress(ValueError):
            return wrapped.moment(headers["eta"]) or 0.0
    return 0.0


def _with(capabilities: Capabilities, **changes: bool) -> Capabilities:
    return msgspec.structs.replace(capabilities, **changes)
