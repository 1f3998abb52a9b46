"""The transport: queues are topics, workers a consumer group, a lease is membership of it.

`docs/transports/kafka.md` tells how it is laid out and what a log cannot do. The parts:
`sender` writes; `member` receives, and `receipts` settles, with `assignment` and `partition`
for the bookkeeping; `delays` moves on what waits; `dead` keeps the dead letters; `eviction`
hands back what a dead process held.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from taskline.clock import SYSTEM_CLOCK, Clock
from taskline.errors import TransportError
from taskline.kafka.client import VERSION
from taskline.kafka.cluster import Cluster
from taskline.kafka.errors import TooLarge
from taskline.kafka.location import AUTO, NEVER, Location, locate
from taskline.message import DEFAULT_PRIORITY, DeadLetter, Delivery, Message, Outcome
from taskline.registry import Spec
from taskline.transports.base import Capabilities, QueueStats, StoredMessage, Transport
from taskline.transports.kafka.dead import DeadLetters
from taskline.transports.kafka.delays import Delays, delayed, need_delays
from taskline.transports.kafka.eviction import Place, evict, new_name, take_place
from taskline.transports.kafka.member import Member
from taskline.transports.kafka.records import (
    DELIVERIES,
    ID,
    LOST,
    Headers,
    headers_of,
    key_of,
    texts_of,
)
from taskline.transports.kafka.sender import Outgoing, Sender

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger("taskline.kafka")

TRIM_EVERY = 60.0
"""Seconds between deletions of records that are done."""


class KafkaTransport(Transport):
    """See the module. Connections are opened when they are used; `_lock` guards the opening."""

    scheme = "kafka"
    ahead = 4000
    capabilities = Capabilities(
        priority=False,
        ordering=False,
        peek=False,
        delete=False,
        idempotent=False,
        shared=False,
        random_access=False,
        any_name=False,
        inherits=True,
    )

    def __init__(self, location: Location, clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__(clock)
        self.location = location
        if location.priorities > 1:
            self.capabilities = msgspec.structs.replace(self.capabilities, priority=True)
        self._cluster = Cluster(location)
        there = location.of_producers()
        # Where we send to, if that is somewhere else.
        self._sending = self._cluster if there.brokers == location.brokers else Cluster(there)
        self._dead = DeadLetters(location, self._cluster, clock)
        self._lock = threading.Lock()
        self._sender: Sender | None = None
        self._member: Member | None = None
        self._delays: Delays | None = None
        self._topics: dict[tuple[str, int], str] = {}
        """Those that this connection has sent to, by queue and priority."""
        self._served: set[str] = set()
        """Queues, and patterns of them, that it has got ready to receive from."""
        self._interrupted = False
        self._named = ""
        """What begins the names of our memberships: see `inherit`."""
        self._place = Place()
        """The names of a dead one's that are now ours, until they are used."""
        self._trim_at = clock.monotonic() + TRIM_EVERY
        self._trimmed: dict[tuple[str, int], int] = {}

    @classmethod
    def from_spec(cls, spec: Spec, clock: Clock) -> Self:
        """Open one for a URL or a mapping; nothing is connected yet."""
        return cls(locate(spec), clock)

    # ---- sending

    def send(self, messages: Sequence[Message]) -> None:
        if messages:
            self.begin_send(messages)()

    def begin_send(self, messages: Sequence[Message]) -> Callable[[], None]:
        return self._to_send().begin([self._record(each) for each in messages])

    def _to_send(self) -> Sender:
        if self._sender is None:
            with self._lock:
                if self._sender is None:
                    self._sender = Sender(self._sending.location, self._look_again)
        return self._sender

    def _look_again(self) -> None:
        """A message was not stored: perhaps somebody has deleted its topic."""
        self._topics = {}
        self._sending.forget()

    def _topic(self, queue: str, priority: int) -> str:
        """The topic of a message, which is there from now on, and among those that are known."""
        location = self.location
        topic = location.topic(queue, location.level(priority))
        self._sending.need(topic)
        if priority != DEFAULT_PRIORITY and location.priorities == 1:
            log.warning(
                "priority=%d of messages to queue %r has no effect: Kafka has none within a topic;"
                " ?priorities=3 makes a topic for each of three levels",
                priority,
                queue,
            )
        self._topics[queue, priority] = topic
        return topic

    def _record(self, message: Message, deliveries: int = 0, *, again: bool = False) -> Outgoing:
        """The record of a message: for its queue's topic, or for the delay topic.

        `again`: it was received, and is written where it came from.
        """
        header = message.header
        queue, priority = header.queue, header.priority
        cluster = self._sending
        if again and cluster is not self._cluster:
            cluster = self._cluster
            topic = self.location.topic(queue, self.location.level(priority))
            cluster.need(topic)
        else:
            topic = self._topics.get((queue, priority)) or self._topic(queue, priority)
        headers = headers_of(header, deliveries)
        key = key_of(message)
        if header.eta is not None and header.eta > (now := self.clock.time()):
            need_delays(cluster)
            return delayed(self.location, topic, message.frame, headers, key, header.eta, now)
        return Outgoing(topic, message.frame, headers, key)

    # ---- working

    def prepare(self, queues: Sequence[str], lease: float, consumer: str) -> None:
        need_delays(self._cluster)  # what is missing, or is wrong, is told before work begins
        if self.location.create_topics == NEVER:
            self._dead.need()
        for queue in queues:
            if queue not in self._served and self.location.pattern(queue) is None:
                topics = self.location.topics(queue)
                for topic in topics:
                    self._cluster.need(topic)
                self._cluster.tell_of_retention(topics)
            self._served.add(queue)
        if self._member is None:
            is_heir = bool(self._place.member)
            member = self._join(lease, consumer)  # what librdkafka does not take is told now
            if is_heir:  # a place that nobody is in would hold up the others
                member.subscribe(queues)

    def receive(
        self, queues: Sequence[str], limit: int, lease: float, wait: float, consumer: str
    ) -> list[Delivery]:
        if not self._served.issuperset(queues):
            self.prepare(queues, lease, consumer)
        member = self._member
        if member is None or member.assignment.over:
            member = self._join(lease, consumer)
        return member.receive(queues, limit, lease, wait, consumer)

    def _join(self, lease: float, consumer: str) -> Member:
        with self._lock:
            old, self._member = self._member, None
        if old is not None:
            old.close()
        place, self._place = self._place, Place()
        instance = place.member or new_name(self._named or consumer)
        member = Member(self._cluster, instance, lease, self.clock)
        with self._lock:
            self._member = member
            if self._interrupted:
                self._interrupted = False
                member.interrupt()
            if self._delays is None:
                self._delays = Delays(
                    self.location,
                    self._cluster,
                    self._dead,
                    instance,
                    self.clock,
                    place.mover,
                )
        return member

    def interrupt(self) -> None:
        with self._lock:
            member = self._member
            self._interrupted = member is None
        if member is not None:
            member.interrupt()

    def ack(
        self, deliveries: Sequence[Delivery], outcomes: Sequence[Outcome] = ()
    ) -> list[Delivery]:
        member = self._member
        return list(deliveries) if member is None else member.receipts.ack(deliveries)

    def release(self, deliveries: Sequence[Delivery], delay: float = 0.0) -> list[Delivery]:
        member = self._member
        if member is None:
            return list(deliveries)
        if delay <= 0:
            return member.receipts.give_back(deliveries)
        if deliveries:
            need_delays(self._cluster)
        now, keys = self.clock.time(), member.assignment.keys(deliveries)

        def wait(delivery: Delivery) -> Outgoing:
            headers: Headers = [
                (ID, delivery.id.encode()),
                (DELIVERIES, b"%d" % delivery.deliveries),
                (LOST, b"%d" % delivery.lost),
                *texts_of(delivery.frame),
            ]
            topic, key = delivery.receipt.topic, keys.get(delivery.id)
            return delayed(self.location, topic, delivery.frame, headers, key, now + delay, now)

        return self._move(deliveries, wait)

    def replace(self, pairs: Sequence[tuple[Delivery, Message]]) -> list[Delivery]:
        member = self._member
        if member is None:
            return [delivery for delivery, _ in pairs]
        records = {
            id(delivery): self._record(message, delivery.deliveries, again=True)
            for delivery, message in pairs
        }
        return self._move([each for each, _ in pairs], lambda each: records[id(each)])

    def extend(self, deliveries: Sequence[Delivery], lease: float) -> list[Delivery]:
        member = self._member
        return list(deliveries) if member is None else member.receipts.extend(deliveries, lease)

    def bury(self, burials: Sequence[tuple[Delivery, DeadLetter]]) -> list[Delivery]:
        member = self._member
        if member is None:
            return [delivery for delivery, _ in burials]
        if burials:
            self._dead.need()
        record = self._dead.record
        records = {id(delivery): record(delivery, letter) for delivery, letter in burials}
        return self._move([each for each, _ in burials], lambda each: records[id(each)])

    def _move(
        self, deliveries: Sequence[Delivery], make: Callable[[Delivery], Outgoing]
    ) -> list[Delivery]:
        """As `Receipts.move`. What is too large for its topic holds up nothing else: it stays where
        it is, and comes again when its lease has ended."""
        member = self._member
        if member is None:
            return list(deliveries)
        try:
            return member.receipts.move(deliveries, make)
        except TooLarge as error:
            if len(deliveries) > 1:
                half = len(deliveries) // 2
                return self._move(deliveries[:half], make) + self._move(deliveries[half:], make)
            if error.retryable:
                raise
            (delivery,) = deliveries
            log.error(
                "message %s of %d bytes is too large for topic %r, and runs again: raise its "
                "max.message.bytes (%s)",
                delivery.id,
                len(delivery.frame),
                make(delivery).topic,
                error,
            )
            return [delivery]

    def recover(self, consumer: str, started: Collection[str]) -> int:
        return self.recover_all({consumer: started})

    def recover_all(self, dead: Mapping[str, Collection[str]]) -> int:
        member = self._member
        own = 0
        if member is not None:
            own = sum(member.assignment.recover(each, set(dead[each])) for each in dead)
        return own + evict(
            self.location,
            self._cluster,
            self.clock,
            {each: set(started) for each, started in dead.items()},
            but="" if member is None else member.assignment.instance,
        )

    def inherit(self, queues: Sequence[str], place: str, started: Collection[str]) -> int:
        self._named = place
        self._place, count = take_place(
            self.location, self._cluster, self.clock, queues, place, set(started)
        )
        return count

    # ---- looking

    def stats(self, queues: Sequence[str] | None = None) -> list[QueueStats]:
        there = self._cluster.topics()
        marks = self._cluster.group_marks(self.location.group, there)
        names = set(self._all_queues(there, marks) if queues is None else queues)
        topics = {topic: name for name in names for topic in self.location.topics(name)}
        ends = self._cluster.ends(topic for topic in topics if topic in there)
        ready = dict.fromkeys(names, 0)
        for (topic, number), (first, after) in ends.items():
            known = marks.get((topic, number))
            at = first if known is None else max(first, known.offset)
            beyond = 0 if known is None else known.upper - known.offset - len(known.unfinished)
            ready[topics[topic]] += max(0, after - at - max(0, beyond))
        dead = dict.fromkeys(names, 0)
        for letter in self._dead.all().values():
            if queues is None and letter.queue not in dead:
                ready[letter.queue] = dead[letter.queue] = 0
            if letter.queue in dead:
                dead[letter.queue] += 1
        return [
            QueueStats(queue=name, ready=ready[name], delayed=None, leased=None, dead=dead[name])
            for name in sorted(ready)
        ]

    def _all_queues(self, there: Collection[str], marks: Collection[tuple[str, int]]) -> list[str]:
        """With a prefix, all topics that have it; else those that this group has to do with."""
        location = self.location
        known = {topic for topic, _ in marks} | {*self._topics.values()}
        named = (queue for queue in self._served if location.pattern(queue) is None)
        known.update(topic for queue in named for topic in location.topics(queue))
        return [
            location.queue(topic)
            for topic in there
            if topic.startswith(location.prefix)
            and not location.queue(topic).startswith("_")
            and (location.prefix or topic in known)
        ]

    def peek(self, queue: str, limit: int = 10, offset: int = 0) -> list[StoredMessage]:
        raise self._refuse("show messages without handing them over: read the topic instead")

    def purge(self, queue: str) -> int:
        """Delete the records of the topic that are there now. What is delayed stays."""
        (stats,) = self.stats([queue])
        member = self._member
        held = 0
        if member is not None:
            held = member.assignment.held_of(queue)
            member.assignment.forget_ready(queue)
        ends = self._cluster.ends(self.location.topics(queue))
        self._cluster.delete_before({place: after for place, (_, after) in ends.items()})
        return max(0, (stats.ready or 0) - held)

    def delete(self, ids: Sequence[str]) -> list[str]:
        if not ids:
            return []
        raise self._refuse("delete one message: revoke the task, and its worker drops it")

    def dead_letters(
        self, queue: str | None = None, limit: int = 100, offset: int = 0
    ) -> list[DeadLetter]:
        found = [each for each in self._dead.all().values() if queue is None or each.queue == queue]
        return found[::-1][offset : offset + limit]

    def dead_letter(self, id: str) -> DeadLetter | None:
        return self._dead.all().get(id)

    def requeue(self, messages: Sequence[Message]) -> list[str]:
        by_id = {each.header.id: each for each in messages}
        return self._dead.take(
            list(by_id), lambda letter, handed: self._record(by_id[letter.id], handed, again=True)
        )

    def purge_dead(self, ids: Sequence[str]) -> int:
        return len(self._dead.take(ids, lambda letter, handed: None))

    def ping(self) -> None:
        self._cluster.describe()
        if self._sending is not self._cluster:
            self._sending.describe()

    def info(self) -> dict[str, Any]:
        return {
            "transport": self.scheme,
            "address": self.location.brokers,
            "version": VERSION,
            "group": self.location.group,
            **self._cluster.describe(),
        }

    def maintain(self) -> None:
        """Delete what is done from the topics, where the broker keeps everything until then."""
        now, member = self.clock.monotonic(), self._member
        keeps = self.location.retention < 0 and self.location.create_topics == AUTO
        if member is None or not keeps or now < self._trim_at:
            return
        self._trim_at = now + TRIM_EVERY
        done = {
            place: offset
            for place, offset in member.assignment.done().items()
            if offset > self._trimmed.get(place, 0)
        }
        try:
            self._cluster.delete_before(done)
        except TransportError as error:
            log.warning("what is done stays in its topics: %s", error)
        self._trimmed.update(done)

    def close(self) -> None:
        with self._lock:
            member, self._member = self._member, None
            sender, self._sender = self._sender, None
            delays, self._delays = self._delays, None
        if delays is not None:
            delays.close()
        for each in (member, sender):
            if each is not None:
                each.close()
        if delays is not None:
            delays.join()
        self._dead.close()
        self._sending.close()
        self._cluster.close()
