"""What the test cases for transports stand on: connections, messages, and taking them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any, TypeAlias

import pytest

from taskline.clock import Clock
from taskline.message import DEFAULT_PRIORITY, DeadLetter, Delivery, Header, Message
from taskline.testing.cases.backend import MakeBackend
from taskline.testing.cases.base import Suite, connections
from taskline.transports.base import QueueStats, Transport

MakeTransport: TypeAlias = Callable[[Clock], Transport]
Connect: TypeAlias = Callable[..., Transport]

QUEUE = "mail"
LONG = 600.0
"""Seconds: a lease that does not end within a test unless the test moves the clock."""

_sequence = count(1)


def message(
    id: str | None = None,
    queue: str = QUEUE,
    *,
    priority: int = DEFAULT_PRIORITY,
    eta: float | None = None,
    sent: float = 0.0,
    frame: bytes | None = None,
) -> Message:
    """A message that no worker could decode: a transport never looks into a frame."""
    header = Header(
        v=1,
        id=id or f"m{next(_sequence):07d}",
        task="t",
        queue=queue,
        sent=sent,
        priority=priority,
        eta=eta,
    )
    return Message(header, header.id.encode() if frame is None else frame)


def messages(number: int, queue: str = QUEUE, **fields: Any) -> list[Message]:
    return [message(None, queue, **fields) for _ in range(number)]


def letter(delivery: Delivery, *, reason: str = "no such task", at: float = 0.0) -> DeadLetter:
    return DeadLetter(
        id=delivery.id, queue=delivery.queue, reason=reason, at=at, frame=delivery.frame
    )


def ids(things: Sequence[Any]) -> list[str]:
    """The ids of messages, deliveries, dead letters or stored messages."""
    return [thing.header.id if isinstance(thing, Message) else thing.id for thing in things]


class TransportSuite(Suite):
    """The fixtures that a plug-in author overrides, and those made of them."""

    @pytest.fixture
    def make_transport(self) -> MakeTransport:
        """A function of a clock that opens one more connection to the test's own empty store."""
        pytest.fail("override the fixture make_transport: see docs/testing.md", pytrace=False)

    @pytest.fixture
    def make_shared_backend(self) -> MakeBackend | None:
        """A function of a clock that opens a backend whose outcomes `ack` can store, if any."""
        return None

    @pytest.fixture
    def connect(self, make_transport: MakeTransport, clock: Clock) -> Iterator[Connect]:
        """Opens one more connection, which is closed after the test."""
        yield from connections(make_transport, clock)

    @pytest.fixture
    def transport(self, connect: Connect) -> Transport:
        return connect()

    @pytest.fixture
    def other(self, connect: Connect) -> Transport:
        """A second connection to the same store."""
        return connect()

    def need(self, transport: Transport, capability: str) -> None:
        """Skip the test unless the transport declares the capability."""
        if not getattr(transport.capabilities, capability):
            pytest.skip(f"the {transport.scheme} transport declares {capability}=False")

    def receive(
        self,
        transport: Transport,
        queues: str | Sequence[str] = QUEUE,
        *,
        limit: int = 1000,
        lease: float = LONG,
        consumer: str = "worker-1",
    ) -> list[Delivery]:
        """What there is now."""
        names = [queues] if isinstance(queues, str) else queues
        return transport.receive(names, limit, lease, 0, consumer)

    def take(
        self,
        transport: Transport,
        number: int = 1,
        queues: str | Sequence[str] = QUEUE,
        *,
        lease: float = LONG,
        consumer: str = "worker-1",
    ) -> list[Delivery]:
        """Exactly this many messages, in the order of their handing-over."""
        taken: list[Delivery] = []

        def enough() -> bool:
            taken.extend(
                self.receive(
                    transport, queues, limit=number - len(taken), lease=lease, consumer=consumer
                )
            )
            return len(taken) >= number

        self.until(enough)
        assert len(taken) == number, "more messages than the limit"
        return taken

    def take_one(self, transport: Transport, **options: Any) -> Delivery:
        return self.take(transport, 1, **options)[0]

    def taken_after(
        self, transport: Transport, clock: Clock, seconds: float, since: float
    ) -> Delivery:
        """The message that is handed over when seconds have passed since then, and not before."""

        def take() -> list[Delivery]:
            return self.receive(transport, limit=1, consumer="worker-2")

        return self.after(clock, seconds, take, since)[0]

    def assert_empty(self, transport: Transport, queues: str | Sequence[str] = QUEUE) -> None:
        assert ids(self.receive(transport, queues)) == []

    def stats(self, transport: Transport, queue: str = QUEUE) -> QueueStats:
        (found,) = transport.stats([queue])
        return found

    def counts(self, transport: Transport, *queues: str) -> dict[str, list[int | None]]:
        """The queues' numbers, without the age that grows."""
        exact = transport.capabilities.random_access
        return {
            each.queue: [each.ready, each.delayed, each.leased, each.dead] if exact else [each.dead]
            for each in transport.stats(queues)
        }

    def assert_counts(self, transport: Transport, queue: str = QUEUE, **counts: int) -> None:
        """The queue's numbers, where the transport knows them; those not named are zero."""
        found = self.stats(transport, queue)
        exact = transport.capabilities.random_access
        for state in ("ready", "delayed", "leased", "dead") if exact else ("dead",):
            known = getattr(found, state)
            assert known is None or known == counts.get(state, 0), f"{state} in {found}"

    def maintained(self, transport: Transport, state: str) -> int | None:
        """The count after upkeep, which idle workers do about once a second."""
        transport.maintain()
        number: int | None = getattr(self.stats(transport), state)
        return number

    def lose(self, transport: Transport, clock: Clock) -> tuple[Delivery, Delivery]:
        """A message is taken, its lease ends, and another worker takes it.

        Returns the delivery that is lost and the one that is held.
        """
        self.need(transport, "leases")
        since = clock.monotonic()
        old = self.take_one(transport, lease=self.span)
        new = self.taken_after(transport, clock, self.span, since)
        assert new.id == old.id
        return old, new
