"""`kombu+<any kombu URL>`: RabbitMQ, SQS and whatever else kombu speaks to.

Who receives has a connection of its own; what it holds is its own as long as that
connection lives, and the broker gives it to others when it ends. All else is said over
a few connections that are taken and put back. What leaves a queue to be stored again (a
retry, a dead letter, what is handed back) is stored first and then acknowledged.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from taskline.clock import SYSTEM_CLOCK, Clock
from taskline.errors import ConfigurationError, TransportError
from taskline.message import DEFAULT_PRIORITY, DeadLetter, Delivery, Message, Outcome
from taskline.redis.interrupt import Interrupt
from taskline.registry import Spec
from taskline.transports.base import Capabilities, QueueStats, StoredMessage, Transport
from taskline.transports.kombu import letters
from taskline.transports.kombu.letters import Letters
from taskline.transports.kombu.link import INTERNAL, Link, Parcel, Taken
from taskline.transports.kombu.links import Holding, Links
from taskline.transports.kombu.location import Location, locate
from taskline.transports.kombu.parcels import DELIVERIES, LOST, Parcels, due, number, read

if TYPE_CHECKING:
    from typing_extensions import Self

PAUSE = 0.05
"""Seconds before a send is tried again; longer each time."""
SLACK = 0.01
"""Seconds that a message may come early: what a timer and a clock differ by."""


class KombuTransport(Transport):
    """One broker that kombu speaks to; see the module's docstring."""

    scheme = "kombu"

    def __init__(self, location: Location, clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__(clock)
        self._given = self.location = location
        self._kind = str(location.connection().transport.driver_type)
        self.is_amqp = self._kind == "amqp"
        if location.url.startswith("librabbitmq:"):
            raise ConfigurationError("librabbitmq has no publisher confirms: write amqp://")
        self._set_priorities(10)
        self._links = Links(self.location, self._kind, clock)
        self._holding = Holding(self._links)
        self._known: set[str] = set()
        """Queues that are in the broker's list of names."""
        self._interrupt = Interrupt()

    @classmethod
    def from_spec(cls, spec: Spec, clock: Clock) -> Self:
        """A URL, or a mapping with `url`; see `taskline.transports.kombu.location.locate`."""
        return cls(locate(spec), clock)

    def speak(self, protocol: str, queues: Collection[str] | None = None) -> None:
        """Celery's messages have headers and properties beside their bodies: kombu carries them.

        Its queues are made as Celery makes them.
        """
        if queues is None:
            self._set_priorities(0)
        elif self._given.priorities is None:
            bare = frozenset(self.location.prefix + queue for queue in queues)
            self.location = msgspec.structs.replace(self.location, bare=bare)
        self._links.location = self.location

    def _set_priorities(self, most: int) -> None:
        """Have so many of them, unless the location says how many."""
        self.location = self._given
        if self.location.priorities is None:
            self.location = msgspec.structs.replace(self.location, priorities=most)
        self.capabilities = _capabilities(self._kind, self.location)
        self._parcels = Parcels(self.location, self._kind, self.capabilities.priority, self.clock)

    # Sending

    def send(self, messages: Sequence[Message]) -> None:
        """Raises when not all are confirmed; those that were may be stored all the same."""
        self._publish(
            [
                self._parcels.message(message.header, message.frame, message.header.deliveries)
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
                with self._links.talk() as link:
                    self._make_known(link, {each.queue for each in parcels if not each.reply})
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

    # Receiving

    def receive(
        self, queues: Sequence[str], limit: int, lease: float, wait: float, consumer: str
    ) -> list[Delivery]:
        """What is taken is held until the connection ends, whatever the lease: see the docs."""
        prefix = self.location.prefix
        names = [prefix + queue for queue in queues]
        until = self.clock.monotonic() + wait
        while True:
            with self._holding.receiving(lease) as link:
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
        with self._links.talk() as link:
            self._make_known(link, names)

    def _begin(self, link: Link, taken: list[Taken], limit: int, lease: float) -> list[Delivery]:
        """Deliveries of what was taken; what is not to be handed over now is stored anew."""
        deliveries: list[Delivery] = []
        again: list[tuple[Taken, Parcel]] = []
        for each in taken:
            headers = each.headers
            before, lost = int(number(headers, DELIVERIES)), int(number(headers, LOST))
            early = due(headers) - self.clock.time()
            if each.redelivered and not each.counted:
                # That it was handed over before is all that the broker tells: we count.
                again.append((each, self._parcels.again(each, before + 1, lost + 1, first=True)))
            elif early > SLACK:
                again.append((each, self._parcels.again(each, before, lost, early)))
            elif len(deliveries) >= limit:
                again.append((each, self._parcels.again(each, before, lost, first=True)))
            else:
                queue = each.queue.removeprefix(self.location.prefix)
                named, frame = read(each, queue)
                delivery = Delivery(
                    named,
                    queue,
                    frame,
                    before + each.redelivered + 1,
                    lost + each.redelivered,
                    self._holding.receipt(each),
                )
                self._holding.hold(each, delivery)
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

    def ack(
        self, deliveries: Sequence[Delivery], outcomes: Sequence[Outcome] = ()
    ) -> list[Delivery]:
        mine, lost = self._holding.find(deliveries, deliveries, check=False)
        return lost + self._holding.done([held for _, held in mine])

    def release(self, deliveries: Sequence[Delivery], delay: float = 0.0) -> list[Delivery]:
        """To the end of its queue, or first where that has priorities."""
        mine, lost = self._holding.find(deliveries, deliveries, check=True)
        self._publish(
            [
                self._parcels.again(held.taken, held.delivery.deliveries, held.delivery.lost, delay)
                for _, held in mine
            ]
        )
        return lost + self._holding.done([held for _, held in mine])

    def replace(self, pairs: Sequence[tuple[Delivery, Message]]) -> list[Delivery]:
        """The successor is stored first: a crash in between leaves both, never none."""
        mine, lost = self._holding.find(pairs, [delivery for delivery, _ in pairs], check=True)
        self._publish(
            [
                self._parcels.message(message.header, message.frame, held.delivery.deliveries)
                for (_, message), held in mine
            ]
        )
        return lost + self._holding.done([held for _, held in mine])

    def bury(self, burials: Sequence[tuple[Delivery, DeadLetter]]) -> list[Delivery]:
        """The letter is stored first: a crash in between leaves both, never none."""
        mine, lost = self._holding.find(burials, [delivery for delivery, _ in burials], check=True)
        prefix = self.location.prefix
        self._publish(
            [letters.parcel(prefix, letter, held.delivery.deliveries) for (_, letter), held in mine]
        )
        return lost + self._holding.done([held for _, held in mine])

    def extend(self, deliveries: Sequence[Delivery], lease: float) -> list[Delivery]:
        """Keep the connection alive, and with it what it holds."""
        return self._holding.extend(deliveries, lease)

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
        with self._links.talk() as link:
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
        with self._links.talk() as link:
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
        with self._links.talk() as link:
            return self._letters(link, queue).list()[offset : offset + limit]

    def dead_letter(self, id: str) -> DeadLetter | None:
        """Reads all dead letters."""
        with self._links.talk() as link:
            return next((each for each in self._letters(link).list() if each.id == id), None)

    def requeue(self, messages: Sequence[Message]) -> list[str]:
        """Reads all dead letters. A crash leaves both the letter and the message, never none."""
        if not messages:
            return []
        wanted = {message.header.id: message for message in messages}

        def instead(letter: str, deliveries: int) -> Parcel:
            message = wanted[letter]
            most = max(deliveries, message.header.deliveries)
            return self._parcels.message(message.header, message.frame, most)

        with self._links.talk() as link:
            self._make_known(
                link, {self.location.prefix + message.header.queue for message in messages}
            )
            done = self._letters(link).take(wanted, instead)
        return [each for each in wanted if each in done]

    def purge_dead(self, ids: Sequence[str]) -> int:
        """Reads all dead letters."""
        if not ids:
            return 0
        with self._links.talk() as link:
            return len(self._letters(link).take(set(ids), lambda letter, deliveries: None))

    def ping(self) -> None:
        """Stores a message, and takes it again."""
        with self._links.talk() as link:
            link.check(f"{self.location.prefix}{INTERNAL}queues")

    def info(self) -> dict[str, Any]:
        with self._links.talk() as link:
            return {
                "transport": self.scheme,
                "address": str(self.location),
                "version": f"{link.product} {link.version}".strip(),
                "kombu": self._kind,
            }

    def maintain(self) -> None:
        """Move what came due, where the broker does not do that by itself."""
        if not self.is_amqp:
            with self._holding.receiving(30.0) as link:
                link.upkeep()

    def close(self) -> None:
        self._interrupt.set()
        self._links.close()
        self._holding.close()


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


def _with(capabilities: Capabilities, **changes: bool) -> Capabilities:
    return msgspec.structs.replace(capabilities, **changes)
