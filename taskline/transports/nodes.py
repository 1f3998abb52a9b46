"""A store that is one server, or several that know nothing of each other.

Of several, a message is on the server that its id picks or, while that one does not
answer, on the next. A server that does not answer is left out for a time; what it could
not be told meanwhile it is told when it answers.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from binascii import crc32
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from itertools import islice
from typing import Any, ClassVar, Generic, TypeVar

from taskline.clock import Clock
from taskline.errors import TransportError
from taskline.message import DeadLetter, Delivery, Message, Outcome
from taskline.peer import ask_all
from taskline.transports.base import Capabilities, QueueStats, StoredMessage, Transport
from taskline.transports.member import Member, S

RECHECK = 1.0
"""Seconds after which a waiter looks though nothing woke it."""
PAUSE = 0.1
"""Seconds between rounds of a send while no node answers."""

T = TypeVar("T")


class NodesTransport(Transport, Generic[S]):
    """A transport whose verbs are those of a store for each of its members."""

    distributes = True
    product: ClassVar[str]
    """What a server is called in errors."""

    def __init__(self, members: Sequence[Member[S]], patience: float, clock: Clock) -> None:
        """`patience`: the seconds for which a send is tried."""
        super().__init__(clock)
        self._members = list(members)
        self._alone = self._members[0] if len(self._members) == 1 else None
        if self._alone is None:
            self.capabilities = Capabilities(priority=False, ordering=False)
        self._patience = patience
        self._turn = random.randrange(len(self._members))

    # Sending

    def send(self, messages: Sequence[Message]) -> None:
        if self._alone is not None:
            self._alone.store.send(messages, self._patience)
            return
        groups: dict[int, list[Message]] = {}
        for message in messages:
            home = crc32(message.header.id.encode()) % len(self._members)
            groups.setdefault(home, []).append(message)
        for home, group in groups.items():
            self._send_to_one(home, group)

    def _send_to_one(self, home: int, messages: Sequence[Message]) -> None:
        """To the node `home` or, if it does not answer, to the next that does."""
        until = self.clock.monotonic() + self._patience
        while True:
            ring = self._members[home:] + self._members[:home]
            ring.sort(key=lambda each: not each.usable())  # those left out, if no other takes it
            lasting = True
            for member in ring:
                try:
                    member.attempt(partial(member.store.send, messages, 0.0))
                    return
                except TransportError as caught:
                    error = caught
                    lasting &= not caught.retryable
                    if caught.retryable:
                        member.doubt([message.header.id for message in messages])
            if lasting or self.clock.monotonic() + PAUSE > until:
                raise TransportError(
                    f"no {self.product} node takes the message; the last one tried: {error}",
                    retryable=not lasting,
                )
            self.clock.sleep(PAUSE * random.uniform(0.5, 1.0))

    # Receiving

    def _claim(
        self, queues: Sequence[str], limit: int, lease: float, consumer: str
    ) -> tuple[list[Delivery], float]:
        """What there is now, and the seconds until there may be more."""
        if self._alone is not None:
            return self._alone.store.take(queues, limit, lease, consumer)
        return self._claim_in_turn(queues, limit, lease, consumer)

    def _claim_in_turn(
        self, queues: Sequence[str], limit: int, lease: float, consumer: str
    ) -> tuple[list[Delivery], float]:
        """Begin with another node each time, so that all are drained alike."""
        self._turn = (self._turn + 1) % len(self._members)
        ring = self._members[self._turn :] + self._members[: self._turn]
        taken: list[Delivery] = []
        soonest = float("inf")
        for queue in queues:
            for member in ring:
                if len(taken) >= limit or not member.usable():
                    continue
                rest = limit - len(taken)
                try:
                    found, after = member.attempt(
                        partial(member.store.take, [queue], rest, lease, consumer)
                    )
                except TransportError as error:
                    if not error.retryable:
                        raise
                    continue
                taken += found
                soonest = min(soonest, after)
        if not taken and all(member.down for member in ring):
            names = ", ".join(member.address for member in ring)
            raise TransportError(f"none of the {self.product} nodes answers: {names}")
        return taken, soonest

    def _until_probe(self, seconds: float) -> float:
        """So many seconds, or fewer if a server that is down is to be tried before."""
        probes = [each.probe_at for each in self._members if each.down]
        if not probes:
            return seconds
        return max(0.01, min(seconds, min(probes) - self.clock.monotonic()))

    # What is held. A node that does not answer is told when it does.

    @abstractmethod
    def _number(self, delivery: Delivery) -> int:
        """The place, among the members, of the one that a delivery is from."""

    def _on_each(
        self, items: Sequence[T], receipt: Callable[[T], Delivery], work: Callable[..., Any]
    ) -> list[Delivery]:
        """Call `work(store, some)` for the items of each node; returns what was lost."""
        if self._alone is not None:
            alone: list[Delivery] = work(self._alone.store, items)
            return alone
        groups: dict[int, list[T]] = {}
        for item in items:
            groups.setdefault(self._number(receipt(item)), []).append(item)
        lost: list[Delivery] = []
        for number, group in groups.items():
            member = self._members[number]
            later = partial(work, member.store, group)
            if not member.usable():
                member.owe(later)
                continue
            try:
                lost += member.attempt(later)
            except TransportError as error:
                if not error.retryable:
                    raise
                member.owe(later)
        return lost

    def ack(
        self, deliveries: Sequence[Delivery], outcomes: Sequence[Outcome] = ()
    ) -> list[Delivery]:
        return self._on_each(deliveries, _itself, lambda store, some: store.ack(some, outcomes))

    def release(self, deliveries: Sequence[Delivery], delay: float = 0.0) -> list[Delivery]:
        return self._on_each(deliveries, _itself, lambda store, some: store.release(some, delay))

    def replace(self, pairs: Sequence[tuple[Delivery, Message]]) -> list[Delivery]:
        return self._on_each(pairs, _first, lambda store, some: store.replace(some))

    def extend(self, deliveries: Sequence[Delivery], lease: float) -> list[Delivery]:
        return self._on_each(deliveries, _itself, lambda store, some: store.extend(some, lease))

    def bury(self, burials: Sequence[tuple[Delivery, DeadLetter]]) -> list[Delivery]:
        return self._on_each(burials, _first, lambda store, some: store.bury(some))

    def recover(self, consumer: str, started: Collection[str]) -> int:
        if self._alone is not None:
            return self._alone.store.recover(consumer, started)
        total = 0
        for member in self._members:
            later = partial(member.store.recover, consumer, started)
            try:
                total += member.attempt(later)
            except TransportError:
                member.owe(later)
        return total

    # For people

    def _ask_all(self, work: Callable[[S], T]) -> list[T]:
        """The answers of all nodes; those that do not answer are left out, unless none does."""
        if self._alone is not None:
            return [work(self._alone.store)]
        return ask_all(self._members, lambda member: work(member.store))

    def stats(self, queues: Sequence[str] | None = None) -> list[QueueStats]:
        if queues is not None and not queues:
            return []
        found: dict[str, QueueStats] = {}
        for each in _joined(self._ask_all(lambda store: store.stats(queues))):
            stats = found.setdefault(each.queue, QueueStats(queue=each.queue))
            for name in ("ready", "delayed", "leased", "dead"):
                setattr(stats, name, getattr(stats, name) + getattr(each, name))
            ages = [age for age in (stats.oldest, each.oldest) if age is not None]
            stats.oldest = max(ages, default=None)
        return [found[name] for name in sorted(found)]

    def peek(self, queue: str, limit: int = 10, offset: int = 0) -> list[StoredMessage]:
        if self._alone is not None:
            return self._alone.store.peek(queue, limit, offset)
        found = _joined(self._ask_all(lambda store: store.peek(queue, limit + offset, 0)))
        order = {"ready": 0, "delayed": 1, "leased": 2}
        line = sorted(found, key=lambda each: (order[each.state], each.due or 0.0))
        return line[offset : offset + limit]

    def purge(self, queue: str) -> int:
        return sum(self._ask_all(lambda store: store.purge(queue)))

    def delete(self, ids: Sequence[str]) -> list[str]:
        deleted = _joined(self._ask_all(lambda store: store.delete(ids)))
        return list(dict.fromkeys(deleted))

    def dead_letters(
        self, queue: str | None = None, limit: int = 100, offset: int = 0
    ) -> list[DeadLetter]:
        if self._alone is not None:
            return self._alone.store.dead_letters(queue, limit, offset)
        found = _joined(self._ask_all(lambda store: store.dead_letters(queue, limit + offset, 0)))
        newest_first = sorted(found, key=lambda letter: -letter.at)
        return list(islice(newest_first, offset, offset + limit))

    def dead_letter(self, id: str) -> DeadLetter | None:
        found = self._ask_all(lambda store: store.dead_letter(id))
        return next((letter for letter in found if letter is not None), None)

    def requeue(self, messages: Sequence[Message]) -> list[str]:
        patience = self._patience if self._alone is not None else 0.0
        done = set(_joined(self._ask_all(lambda store: store.requeue(messages, patience))))
        return [message.header.id for message in messages if message.header.id in done]

    def purge_dead(self, ids: Sequence[str]) -> int:
        return sum(self._ask_all(lambda store: store.purge_dead(ids)))

    def ping(self) -> None:
        """At least one node must answer; none may be one that would lose messages."""
        if self._alone is not None:
            self._alone.store.check()
            return
        errors = []
        for member in self._members:
            try:
                member.attempt(member.store.check)
            except TransportError as error:
                if not error.retryable:
                    raise
                errors.append(error)
        if len(errors) == len(self._members):
            raise errors[-1]

    def info(self) -> dict[str, Any]:
        if self._alone is not None:
            about = self._alone.store.about()
            return {"transport": self.scheme, "address": self._alone.address, **about}
        nodes = []
        for member in self._members:
            try:
                nodes.append({"address": member.address, **member.attempt(member.store.about)})
            except TransportError as error:
                nodes.append({"address": member.address, "error": str(error)})
        versions = sorted({str(node.get("version", "")) for node in nodes} - {""})
        return {
            "transport": self.scheme,
            "address": " ".join(member.address for member in self._members),
            "version": ", ".join(versions),
            "nodes": nodes,
        }

    def maintain(self) -> None:
        """Make ready what came due and what was lost in all queues, also those nobody serves."""
        self._ask_all(lambda store: store.maintain())

    def close(self) -> None:
        for member in self._members:
            member.close()


def _itself(delivery: Delivery) -> Delivery:
    return delivery


def _first(pair: tuple[Delivery, Any]) -> Delivery:
    return pair[0]


def _joined(lists: Iterable[Iterable[T]]) -> list[T]:
    return [item for some in lists for item in some]
