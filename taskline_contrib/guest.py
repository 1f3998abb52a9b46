"""A transport made of another library's connectors, which know less than the seam asks for.

Such a connector stores bytes, hands them over one by one, and is told when one is done.
What Taskline needs besides is in the frame (the id, the attempt, the eta), or is kept by
the process that has the message: one that is to be tried again later waits there,
unacknowledged. What cannot be had at all is declared, or refused with `NotSupported`.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from abc import abstractmethod
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import msgspec

from taskline.clock import SYSTEM_CLOCK, Clock
from taskline.errors import (
    ConfigurationError,
    NotSupported,
    SerializationError,
    TasklineError,
    TransportError,
)
from taskline.message import DeadLetter, Delivery, Header, Message, Outcome, new_id, split
from taskline.transports.base import Capabilities, QueueStats, StoredMessage, Transport

DEAD = "-dead"
"""Ends the names of the queues of dead letters."""


class GuestTransport(Transport):
    """Subclasses say how one message is stored, taken, and done with.

    Receipts are numbers of this object's own: each serves once. The connector's own
    time-out decides when a message of a worker that died comes again; a task that runs
    longer than it runs twice.
    """

    capabilities = Capabilities(
        delay=False,
        priority=False,
        ordering=False,
        fencing=False,
        blocking=False,
        peek=False,
        delete=False,
        idempotent=False,
        leases=False,
    )

    def __init__(self, clock: Clock = SYSTEM_CLOCK, *, poll: float = 0.2) -> None:
        """`poll`: seconds between two looks into queues that are empty."""
        super().__init__(clock)
        self._poll = poll
        self._woken = threading.Event()
        self._numbers = itertools.count(1)
        self._held: dict[int, tuple[str, Any]] = {}
        """By our receipt: the queue, and what the connector knows the message by. The I/O
        thread's."""
        self._later: list[tuple[float, int, Delivery]] = []
        """A heap of what waits here for its time. The I/O thread's."""
        self._closed = False

    @abstractmethod
    def _put(self, queue: str, data: bytes) -> None:
        """Store one message; raise `TransportError` if it is not stored. Any thread."""

    @abstractmethod
    def _take(self, queue: str, limit: int) -> Sequence[tuple[Any, bytes]]:
        """Up to `limit` messages, each with what `_done` needs; soon empty if there are none."""

    @abstractmethod
    def _done(self, queue: str, context: Any) -> None:
        """The message need not come again."""

    @abstractmethod
    def _failed(self, queue: str, context: Any) -> None:
        """The message cannot be processed. It was kept as a dead letter."""

    @abstractmethod
    def _left(self, queue: str, context: Any) -> None:
        """The message is left, neither done nor failed, because this object is closed."""

    def send(self, messages: Sequence[Message]) -> None:
        """One by one: when one cannot be stored, those before it are."""
        self._check_open()
        now = self.clock.time()
        for message in messages:
            if message.header.eta is not None and message.header.eta > now:
                raise self._refuse("delay messages: send without countdown and eta")
        for message in messages:
            self._put(message.header.queue, bytes(message.frame))

    def receive(
        self, queues: Sequence[str], limit: int, lease: float, wait: float, consumer: str
    ) -> list[Delivery]:
        self._check_open()
        until = self.clock.monotonic() + wait
        while True:
            taken = self._due(queues, limit)
            for queue in queues:
                if len(taken) >= limit:
                    break
                for context, data in self._take(queue, limit - len(taken)):
                    delivery = self._delivery(queue, context, data)
                    if delivery is not None and len(taken) < limit:
                        taken.append(delivery)
                    elif delivery is not None:  # it gave more than it was asked for
                        self._wait(0.0, delivery)
            left = until - self.clock.monotonic()
            if taken or left <= 0 or self._woken.is_set():
                self._woken.clear()
                return taken
            self._woken.wait(self.clock.bound(min(left, self._poll)))

    def _due(self, queues: Collection[str], limit: int) -> list[Delivery]:
        now = self.clock.time()
        found: list[Delivery] = []
        while self._later and self._later[0][0] <= now and len(found) < limit:
            found.append(heapq.heappop(self._later)[2])
        return found

    def _delivery(self, queue: str, context: Any, data: bytes) -> Delivery | None:
        """What was taken, as a delivery; None when it has to wait for its time."""
        receipt = next(self._numbers)
        self._held[receipt] = (queue, context)
        header = _header(data)
        if header is None:
            return Delivery(new_id(), queue, data, 1, 0, receipt)
        delivery = Delivery(header.id, queue, data, header.deliveries + 1, 0, receipt)
        if header.eta is not None and header.eta > self.clock.time():
            self._wait(header.eta, delivery)
            return None
        return delivery

    def _wait(self, until: float, delivery: Delivery) -> None:
        heapq.heappush(self._later, (until, delivery.receipt, delivery))

    def interrupt(self) -> None:
        """Ends a wait of ours, not one in which the connector itself waits."""
        self._woken.set()

    def ack(
        self, deliveries: Sequence[Delivery], outcomes: Sequence[Outcome] = ()
    ) -> list[Delivery]:
        held, lost = self._split(deliveries)
        for delivery in held:
            self._finish(delivery)
        return lost

    def release(self, deliveries: Sequence[Delivery], delay: float = 0.0) -> list[Delivery]:
        """Stored anew, at the end of the queue; or kept here for so long."""
        held, lost = self._split(deliveries)
        for delivery in held:
            if delay > 0:
                self._wait(self.clock.time() + delay, self._anew(delivery, delivery.frame))
            else:
                self._put(delivery.queue, bytes(delivery.frame))
                self._finish(delivery)
        return lost

    def replace(self, pairs: Sequence[tuple[Delivery, Message]]) -> list[Delivery]:
        """A successor that is due later waits here, and its predecessor unacknowledged."""
        _, lost = self._split([delivery for delivery, _ in pairs])
        now = self.clock.time()
        for delivery, message in pairs:
            if delivery in lost:
                continue
            eta = message.header.eta
            if eta is not None and eta > now:
                self._wait(eta, self._anew(delivery, message.frame))
            else:
                self._put(message.header.queue, bytes(message.frame))
                self._finish(delivery)
        return lost

    def _anew(self, delivery: Delivery, frame: bytes) -> Delivery:
        """The next handing-over of a message that stays here."""
        receipt = next(self._numbers)
        self._held[receipt] = self._held.pop(delivery.receipt)
        return Delivery(
            delivery.id, delivery.queue, frame, delivery.deliveries + 1, delivery.lost, receipt
        )

    def extend(self, deliveries: Sequence[Delivery], lease: float) -> list[Delivery]:
        """Only tells which are held here: the connector's time-out cannot be renewed."""
        return self._split(deliveries)[1]

    def bury(self, burials: Sequence[tuple[Delivery, DeadLetter]]) -> list[Delivery]:
        """As JSON into the queue `{queue}-dead`, from which any consumer can take it."""
        _, lost = self._split([delivery for delivery, _ in burials])
        for delivery, letter in burials:
            if delivery not in lost:
                self._put(letter.queue + DEAD, msgspec.json.encode(letter))
                self._failed(*self._held[delivery.receipt])
                del self._held[delivery.receipt]
        return lost

    def _split(self, deliveries: Sequence[Delivery]) -> tuple[list[Delivery], list[Delivery]]:
        """Those that are held, and the others."""
        self._check_open()
        held = [each for each in deliveries if each.receipt in self._held]
        return held, [each for each in deliveries if each.receipt not in self._held]

    def _finish(self, delivery: Delivery) -> None:
        self._done(*self._held[delivery.receipt])
        del self._held[delivery.receipt]

    def recover(self, consumer: str, started: Collection[str]) -> int:
        """None: what a dead worker held comes again when the connector's time-out is over."""
        return 0

    def stats(self, queues: Sequence[str] | None = None) -> list[QueueStats]:
        """Of the named queues: which ones there are, the connector does not tell."""
        return [
            QueueStats(queue=name, ready=None, delayed=None, leased=None, dead=None)
            for name in sorted(queues or ())
        ]

    def peek(self, queue: str, limit: int = 10, offset: int = 0) -> list[StoredMessage]:
        raise self._refuse("show messages without taking them")

    def delete(self, ids: Sequence[str]) -> list[str]:
        raise self._refuse("delete a message by its id")

    def dead_letters(
        self, queue: str | None = None, limit: int = 100, offset: int = 0
    ) -> list[DeadLetter]:
        raise self._refuse_letters("list dead letters")

    def dead_letter(self, id: str) -> DeadLetter | None:
        raise self._refuse_letters("find a dead letter")

    def requeue(self, messages: Sequence[Message]) -> list[str]:
        raise self._refuse_letters("requeue dead letters")

    def purge_dead(self, ids: Sequence[str]) -> int:
        raise self._refuse_letters("delete dead letters")

    def _refuse_letters(self, what: str) -> NotSupported:
        return self._refuse(f"{what}: they are messages of the queue QUEUE{DEAD}; consume that")

    def close(self) -> None:
        """What waits here for its time goes back: stored anew with its eta, which still holds."""
        if self._closed:
            return
        for _, _, delivery in self._later:
            self._put(delivery.queue, bytes(delivery.frame))
            self._finish(delivery)
        self._later = []
        for queue, context in self._held.values():
            self._left(queue, context)
        self._held = {}
        self._closed = True
        self._woken.set()
        self._shut()

    @abstractmethod
    def _shut(self) -> None:
        """Close the connectors."""

    def _check_open(self) -> None:
        if self._closed:
            raise TransportError(
                f"the {self.scheme} transport is closed: open another", retryable=False
            )


def _header(data: bytes) -> Header | None:
    """The header of a frame, signed or not; None when it is none."""
    if data[:1] == b"~":
        data = data.partition(b"\n")[2]
    try:
        return split(data)[0]
    except SerializationError:
        return None


@contextmanager
def told(what: str) -> Iterator[None]:
    """Errors of a connector, which may be of any kind, as a `TransportError` that may pass."""
    try:
        yield
    except TasklineError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        raise TransportError(f"{what}: {type(error).__name__}: {text}") from error


def load(scheme: str, option: str, path: Any) -> Any:
    """What stands at a dotted path, `package.module.Class`; anything else is returned as it is."""
    if not isinstance(path, str):
        return path
    module, _, name = path.replace(":", ".").rpartition(".")
    if not module:
        raise ConfigurationError(
            f"{scheme} option {option}={path!r} names no module: write package.module.Class"
        )
    try:
        return getattr(import_module(module), name)
    except (ImportError, ValueError, AttributeError) as error:
        raise ConfigurationError(f"{scheme} option {option}={path!r}: {error}") from error
    except Exception as error:
        text = " ".join(str(error).split())
        raise ConfigurationError(
            f"{scheme} option {option}={path!r}: importing {module} failed: "
            f"{type(error).__name__}: {text}"
        ) from error
