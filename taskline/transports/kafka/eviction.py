"""Handing back at once what a dead worker process held: another takes its place.

A static member's name (group.instance.id) may be taken by a new member at any time: the
broker gives it the partitions and refuses the old one from then on. Who does that in the
name of a dead process reads what that one may have held, and writes down what was lost.

Then it leaves the group, which gives the partitions to the living (`evict`), or the process
that replaces the dead one goes on under that name (`take_place`): to the group nothing has
happened then. Without a rebalance nobody waits for anybody, also where many die at a time.
"""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from confluent_kafka import OFFSET_END, KafkaError, KafkaException, TopicPartition

from taskline.clock import Clock
from taskline.errors import TransportError
from taskline.kafka.client import new_consumer, new_producer
from taskline.kafka.cluster import Cluster
from taskline.kafka.errors import asking
from taskline.kafka.location import Location
from taskline.kafka.marks import Marks, decode, encode
from taskline.transports.kafka.leaving import leave
from taskline.transports.kafka.partition import Partition
from taskline.transports.kafka.records import entry_of

if TYPE_CHECKING:
    from confluent_kafka import Consumer

log = logging.getLogger("taskline.kafka")

POLL = 0.01
BATCH = 500
MOVER = 2.0
"""Seconds for taking over a mover of delayed messages: a group that several have left by dying
hands nothing over before their sessions end, and then others have its lines without our help."""
HEIR = 2
"""Times `timeout` in which a place is taken: others who died at that time may have nobody who does
that for them, and the group hands nothing over before their sessions end."""


def name_of(consumer: str) -> str:
    """What the names of all memberships of a consumer begin with."""
    digest = hashlib.sha256(consumer.encode()).hexdigest()[:12]
    return f"{re.sub(r'[^a-zA-Z0-9_-]', '_', consumer)[:80]}.{digest}."


def new_name(consumer: str) -> str:
    """A name (group.instance.id) for one more membership of a consumer."""
    return name_of(consumer) + secrets.token_hex(4)


def memberships(cluster: Cluster, group: str, consumer: str) -> dict[str, list[TopicPartition]]:
    """The names of a consumer's memberships of a group, and what each has there."""
    start = name_of(consumer)
    members = cluster.members(group)
    return {each: places for each, places in members.items() if each.startswith(start)}


def evict(
    location: Location,
    cluster: Cluster,
    clock: Clock,
    dead: Mapping[str, Collection[str]],
    but: str = "",
) -> int:
    """Put all memberships of dead consumers, `but` one, out of the groups.

    All at the same time: a rebalance that has begun waits for every member, so none of them could
    be taken over before the last. See `Transport.recover_all`.
    """
    handing_back: list[Callable[[], int]] = []
    group, movers = location.group, location.delay_topic
    for consumer, started in dead.items():
        for instance, places in memberships(cluster, group, consumer).items():
            if instance != but:
                takeover = _Takeover(cluster, clock, group, instance, location.timeout)
                handing_back.append(partial(takeover.run, _topics(places, location), started))
        for instance in memberships(cluster, movers, consumer):
            if not (but and instance.startswith(but)):
                handing_back.append(partial(_put_out_mover, cluster, clock, instance))
    return _at_the_same_time(handing_back)


def _at_the_same_time(works: list[Callable[[], int]]) -> int:
    """The sum of what these return, each in a thread of its own."""
    if len(works) < 2:
        return sum(work() for work in works)
    with ThreadPoolExecutor(len(works), "taskline-kafka-takeover") as threads:
        return sum([each.result() for each in [*map(threads.submit, works)]])


def _put_out_mover(cluster: Cluster, clock: Clock, instance: str) -> int:
    location = cluster.location
    within = min(MOVER, location.timeout)
    try:
        takeover = _Takeover(cluster, clock, location.delay_topic, instance, within)
        takeover.run([location.delay_topic], ())
    except TransportError as error:
        log.info("%s; its lines go to another when its session ends", error)
    return 0


class Place(NamedTuple):
    """What a dead consumer was called in the groups; empty where it is no member of one."""

    member: str = ""
    mover: str = ""


def take_place(
    location: Location,
    cluster: Cluster,
    clock: Clock,
    queues: Iterable[str],
    consumer: str,
    started: Collection[str],
) -> tuple[Place, int]:
    """Take over what a dead consumer held, and stay: the caller joins the groups by its names.

    Returns also how many messages that were. `queues` are those that the caller serves: it gets
    what it is assigned here. See `Transport.inherit`.
    """
    topics = sorted(location.subscription(queues))
    found = memberships(cluster, location.group, consumer)
    movers = memberships(cluster, location.delay_topic, consumer)
    place = Place(next(iter(found), ""), next(iter(movers), ""))
    # A process that was put out and joined anew may still be in the group twice, and dead twice.
    count = _at_the_same_time(
        [
            partial(
                _Takeover(cluster, clock, location.group, each, HEIR * location.timeout).run,
                topics if each == place.member else _topics(places, location),
                started,
                stay=each == place.member,
            )
            for each, places in found.items()
        ]
    )
    return place, count


def _topics(places: list[TopicPartition], location: Location) -> list[str]:
    """What to subscribe to in order to get these places: any topic there is where there are none,
    or the broker does not tell them, as while a rebalance is under way."""
    return sorted({each.topic for each in places}) or [location.delay_topic]


def _revoked(consumer: Consumer, places: list[TopicPartition]) -> None:
    consumer.incremental_unassign(places)


class _Takeover:
    """One member's place, taken."""

    def __init__(
        self, cluster: Cluster, clock: Clock, group: str, instance: str, within: float
    ) -> None:
        location = cluster.location
        self._cluster = cluster
        self._location = location
        self._clock = clock
        self._group = group
        self._instance = instance
        self._within = within
        self._end = clock.monotonic() + within
        self._found: dict[tuple[str, int], tuple[Partition, int]] | None = None
        """The partitions, each with the offset below which messages may have been held."""

    def run(self, topics: list[str], started: Collection[str], *, stay: bool = False) -> int:
        """`stay`: the name is not given up, for who joins by it next."""
        location = self._location
        settings: dict[str, Any] = {"transactional.id": self._instance}
        with asking(location, "hand back what a dead process held"):
            consumer = new_consumer(
                location,
                **{
                    **location.consumer,
                    "group.id": self._group,
                    "group.instance.id": self._instance,
                    "partition.assignment.strategy": "cooperative-sticky",
                    "session.timeout.ms": 6000,
                    "heartbeat.interval.ms": 100,
                    "fetch.wait.max.ms": 10,
                },
            )
            try:
                consumer.subscribe(topics, on_assign=self._assigned, on_revoke=_revoked)
                # While it joins, and before `_assigned` is called, which asks what was committed:
                # a transaction that the dead one left open would hide that.
                new_producer(location, **settings).init_transactions(self._within)
                while self._found is None:
                    self._poll(consumer)
                recovered = 0
                if self._group == location.group:
                    recovered = self._put_down(consumer, started)
                if stay:
                    return recovered  # to close a static member does not tell the group
                leave(
                    consumer,
                    topics,
                    {"on_assign": self._assigned, "on_revoke": _revoked},
                    poll=lambda: self._poll(consumer),
                    gone=lambda: self._instance not in self._cluster.members(self._group),
                    clock=self._clock,
                    within=self._within,
                )
                return recovered
            finally:
                consumer.close()

    def _assigned(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        found: dict[tuple[str, int], tuple[Partition, int]] = {}
        timeout = self._location.timeout
        known = consumer.committed(places, timeout=timeout) if places else []
        for place in known:
            marks = Marks(0, 0, 0, {})
            if place.offset >= 0:
                marks = decode(place.offset, place.metadata)
            below = marks.offset
            if marks.reach > marks.offset:
                _, high = consumer.get_watermark_offsets(place, timeout=timeout)
                below = min(marks.reach, high)
            partition = Partition(
                place.topic,
                place.partition,
                self._location.queue(place.topic),
                marks._replace(reach=marks.offset),
            )
            if below > marks.offset:
                found[place.topic, place.partition] = (partition, below)
        starts = {place: partition.position for place, (partition, _) in found.items()}
        consumer.incremental_assign(
            [
                TopicPartition(topic, n, starts.get((topic, n), OFFSET_END))
                for topic, n in ((each.topic, each.partition) for each in places)
            ]
        )
        self._found = {**(self._found or {}), **found}

    def _poll(self, consumer: Consumer) -> None:
        first = consumer.poll(POLL)
        if self._clock.monotonic() > self._end:
            raise TransportError(
                f"Kafka at {self._location.brokers} has not handed over the partitions of "
                f"{self._instance} within {self._within:g} s"
            )
        for record in [first, *consumer.consume(BATCH, 0)] if first is not None else ():
            error = record.error()
            place = (record.topic() or "", record.partition() or 0)
            known = (self._found or {}).get(place)
            if error is not None:
                if error.fatal():
                    raise KafkaException(error)
                if error.code() == KafkaError._PARTITION_EOF and known is not None:
                    # Not beyond: what is there was passed over, and is not finished for that.
                    known[0].reached(min(record.offset() or 0, known[1]))
            elif known is not None and (record.offset() or 0) < known[1]:
                known[0].add(entry_of(record))
            elif known is not None:
                known[0].reached(known[1])

    def _put_down(self, consumer: Consumer, started: Collection[str]) -> int:
        """Read what may have been held, and write down what is to be known of it."""
        found = self._found or {}
        while any(partition.position < below for partition, below in found.values()):
            self._poll(consumer)
        recovered = 0
        offsets = []
        for partition, below in found.values():
            recovered += partition.put_down(below, started)
            marks = partition.marks(closing=True)
            text, _ = encode(marks)
            offsets.append(
                TopicPartition(partition.topic, partition.number, marks.offset, metadata=text)
            )
        if offsets:
            consumer.commit(offsets=offsets, asynchronous=False)
        return recovered
