"""A transport that fails on purpose, the same way each time.

    transport = FaultyTransport(MemoryTransport("x"), FaultPlan(seed=7, rate=0.1))

A plan decides by the name of a call and its number among the calls of that name,
not by time or thread: the third `send` of seed 7 fails alike in every run. In an
app, name it in the broker's mapping (`seed` and `rate` may be left out):

    broker = {
        "type": "taskline.testing.faults:FaultyTransport",
        "inner": "sqlite:///test.db", "seed": 7, "rate": 0.1,
    }
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, TypeVar, get_args

import msgspec

from taskline.backends.base import Backend
from taskline.clock import Clock, ManualClock
from taskline.errors import ConfigurationError, TransportError
from taskline.message import DeadLetter, Delivery, Message, Outcome, join, new_id, split
from taskline.registry import Spec, options_of
from taskline.transports import open_transport
from taskline.transports.base import QueueStats, StoredMessage, Transport

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")

Kind: TypeAlias = Literal["before", "after", "twice", "lease", "delay"]
"""`before`, `after`: raise a retryable `TransportError` before the call took effect, or
after. `twice`: send the same messages twice. `lease`: let the leases of what was received
end at once. `delay`: let time pass before the call."""

KINDS: tuple[Kind, ...] = get_args(Kind)
CALLS = ("send", "receive", "ack", "release", "replace", "extend", "bury", "recover", "requeue")
"""The calls that a plan lets fail unless it is told otherwise."""

_ONLY_FOR = {"twice": ("send",), "lease": ("receive",)}


class Fault(NamedTuple):
    """What happened to the call of this name and number (the first is 1)."""

    call: str
    number: int
    kind: Kind


class FaultPlan:
    """Which call fails, and how."""

    def __init__(
        self,
        seed: int,
        *,
        rate: float = 0.05,
        kinds: Collection[Kind] = KINDS,
        calls: Collection[str] = CALLS,
    ) -> None:
        """A share of `rate` of the calls named in `calls` fails, each in one of the `kinds`."""
        self.seed = seed
        self.rate = rate
        self.kinds = tuple(kinds)
        self.calls = frozenset(calls)
        self._exactly: Mapping[tuple[str, int], Kind] | None = None

    @classmethod
    def exactly(cls, faults: Mapping[tuple[str, int], Kind]) -> Self:
        """These faults and no others, by the call's name and number (the first is 1)."""
        plan = cls(0, rate=0.0)
        plan._exactly = dict(faults)
        return plan

    def fault(self, call: str, number: int) -> Kind | None:
        """What happens to this call."""
        if self._exactly is not None:
            return self._exactly.get((call, number))
        if call not in self.calls:
            return None
        dice = random.Random(f"{self.seed}/{call}/{number}")
        if dice.random() >= self.rate:
            return None
        fitting = [kind for kind in self.kinds if call in _ONLY_FOR.get(kind, (call,))]
        return dice.choice(fitting) if fitting else None


class FaultyTransport(Transport):
    """Passes every call on to `inner`, except for what the plan does to it.

    `delay` is in seconds; a `ManualClock` is moved by it, other clocks sleep.
    `faults` tells what has happened so far.
    """

    scheme = "faulty"

    def __init__(self, inner: Transport, plan: FaultPlan, *, delay: float = 0.05) -> None:
        super().__init__(inner.clock)
        self.inner = inner
        self.plan = plan
        self.delay = delay
        self.capabilities = inner.capabilities
        self.faults: list[Fault] = []
        self._numbers: Counter[str] = Counter()
        self._lock = threading.Lock()

    @classmethod
    def from_spec(cls, spec: Spec, clock: Clock) -> Self:
        """A mapping with `inner` (any broker), and if wanted `seed`, `rate` and `delay`."""
        options = options_of(spec, "inner", seed=int, rate=float, delay=float)
        if "inner" not in options:
            raise ConfigurationError("the faulty transport needs 'inner', the broker that it wraps")
        plan = FaultPlan(options.get("seed", 0), rate=options.get("rate", 0.05))
        inner = open_transport(options["inner"], clock=clock)
        return cls(inner, plan, delay=options.get("delay", 0.05))

    def _call(self, name: str, call: Callable[[], T]) -> T:
        with self._lock:
            self._numbers[name] += 1
            number = self._numbers[name]
            kind = self.plan.fault(name, number)
            if kind is not None:
                self.faults.append(Fault(name, number, kind))
        if kind == "delay":
            if isinstance(self.clock, ManualClock):
                self.clock.advance(self.delay)
            else:
                self.clock.sleep(self.delay)
        if kind == "before":
            raise TransportError(f"planned fault: {name} no. {number} did not take effect")
        answer = call()
        if kind == "twice":
            answer = call()
        if kind == "lease" and isinstance(answer, list):
            self.inner.extend(answer, 0.0)
        if kind == "after":
            raise TransportError(f"planned fault: {name} no. {number} took effect all the same")
        return answer

    def send(self, messages: Sequence[Message]) -> None:
        self._call("send", lambda: self.inner.send(messages))

    def send_within(self, transaction: Any, messages: Sequence[Message]) -> None:
        self.inner.send_within(transaction, messages)

    def prepare(self, queues: Sequence[str], lease: float, consumer: str) -> None:
        self.inner.prepare(queues, lease, consumer)

    def receive(
        self, queues: Sequence[str], limit: int, lease: float, wait: float, consumer: str
    ) -> list[Delivery]:
        return self._call(
            "receive", lambda: self.inner.receive(queues, limit, lease, wait, consumer)
        )

    @property
    def newest_revocation(self) -> int | None:  # type: ignore[override]
        return self.inner.newest_revocation

    def interrupt(self) -> None:
        self.inner.interrupt()

    def ack(
        self, deliveries: Sequence[Delivery], outcomes: Sequence[Outcome] = ()
    ) -> list[Delivery]:
        return self._call("ack", lambda: self.inner.ack(deliveries, outcomes))

    def shares(self, backend: Backend) -> bool:
        return self.inner.shares(backend)

    def release(self, deliveries: Sequence[Delivery], delay: float = 0.0) -> list[Delivery]:
        return self._call("release", lambda: self.inner.release(deliveries, delay))

    def replace(self, pairs: Sequence[tuple[Delivery, Message]]) -> list[Delivery]:
        return self._call("replace", lambda: self.inner.replace(pairs))

    def extend(self, deliveries: Sequence[Delivery], lease: float) -> list[Delivery]:
        return self._call("extend", lambda: self.inner.extend(deliveries, lease))

    def bury(self, burials: Sequence[tuple[Delivery, DeadLetter]]) -> list[Delivery]:
        return self._call("bury", lambda: self.inner.bury(burials))

    def recover(self, consumer: str, started: Collection[str]) -> int:
        return self._call("recover", lambda: self.inner.recover(consumer, started))

    def inherit(self, queues: Sequence[str], place: str, started: Collection[str]) -> int:
        return self._call("inherit", lambda: self.inner.inherit(queues, place, started))

    def stats(self, queues: Sequence[str] | None = None) -> list[QueueStats]:
        return self._call("stats", lambda: self.inner.stats(queues))

    def peek(self, queue: str, limit: int = 10, offset: int = 0) -> list[StoredMessage]:
        return self._call("peek", lambda: self.inner.peek(queue, limit, offset))

    def purge(self, queue: str) -> int:
        return self._call("purge", lambda: self.inner.purge(queue))

    def delete(self, ids: Sequence[str]) -> list[str]:
        return self._call("delete", lambda: self.inner.delete(ids))

    def dead_letters(
        self, queue: str | None = None, limit: int = 100, offset: int = 0
    ) -> list[DeadLetter]:
        return self._call("dead_letters", lambda: self.inner.dead_letters(queue, limit, offset))

    def dead_letter(self, id: str) -> DeadLetter | None:
        return self._call("dead_letter", lambda: self.inner.dead_letter(id))

    def requeue(self, messages: Sequence[Message]) -> list[str]:
        return self._call("requeue", lambda: self.inner.requeue(messages))

    def purge_dead(self, ids: Sequence[str]) -> int:
        return self._call("purge_dead", lambda: self.inner.purge_dead(ids))

    def ping(self) -> None:
        self._call("ping", self.inner.ping)

    def info(self) -> dict[str, Any]:
        return {**self.inner.info(), "transport": self.scheme, "faults": len(self.faults)}

    def maintain(self) -> None:
        self._call("maintain", self.inner.maintain)

    def close(self) -> None:
        self.inner.close()


class RepeatingTransport(FaultyTransport):
    """Repeats every message: each is sent again, once, when its end was acknowledged.

    So may a producer that did not hear that its message was stored, or a broker.
    """

    scheme = "repeating"

    def __init__(self, inner: Transport) -> None:
        super().__init__(inner, FaultPlan.exactly({}))
        self.repeated: list[str] = []

    @classmethod
    def from_spec(cls, spec: Spec, clock: Clock) -> Self:
        """A mapping with `inner` (any broker)."""
        return cls(open_transport(options_of(spec, "inner")["inner"], clock=clock))

    def ack(
        self, deliveries: Sequence[Delivery], outcomes: Sequence[Outcome] = ()
    ) -> list[Delivery]:
        lost = self.inner.ack(deliveries, outcomes)
        self._again(deliveries)
        return lost

    def bury(self, burials: Sequence[tuple[Delivery, DeadLetter]]) -> list[Delivery]:
        lost = self.inner.bury(burials)
        self._again([delivery for delivery, _ in burials])
        return lost

    def _again(self, deliveries: Sequence[Delivery]) -> None:
        fresh = [each for each in deliveries if each.id not in self.repeated]
        self.repeated += [each.id for each in fresh]
        self.inner.send([Message(split(each.frame)[0], each.frame) for each in fresh])


class CopyingTransport(FaultyTransport):
    """Stores every message twice, side by side, as a log does that cannot tell them apart."""

    scheme = "copying"

    def __init__(self, inner: Transport) -> None:
        super().__init__(inner, FaultPlan.exactly({}))
        self.capabilities = msgspec.structs.replace(inner.capabilities, idempotent=False)

    @classmethod
    def from_spec(cls, spec: Spec, clock: Clock) -> Self:
        """A mapping with `inner` (any broker)."""
        return cls(open_transport(options_of(spec, "inner")["inner"], clock=clock))

    def send(self, messages: Sequence[Message]) -> None:
        copies = []
        for message in messages:
            header, body = split(message.frame)
            for number in range(2):
                sent = header.sent + number / 1_000_000
                copy = msgspec.structs.replace(header, sent=sent)
                stored = msgspec.structs.replace(copy, id=f"{header.id}#{new_id()}")
                copies.append(Message(stored, join(copy, body)))
        self.inner.send(copies)

    def receive(
        self, queues: Sequence[str], limit: int, lease: float, wait: float, consumer: str
    ) -> list[Delivery]:
        found = self.inner.receive(queues, limit, lease, wait, consumer)
        for delivery in found:
            delivery.receipt = (delivery.id, delivery.receipt)
            delivery.id = delivery.id.partition("#")[0]
        return found

    def ack(
        self, deliveries: Sequence[Delivery], outcomes: Sequence[Outcome] = ()
    ) -> list[Delivery]:
        return self._mapped(deliveries, self.inner.ack)

    def shares(self, backend: Backend) -> bool:
        return False

    def extend(self, deliveries: Sequence[Delivery], lease: float) -> list[Delivery]:
        return self._mapped(deliveries, lambda inner: self.inner.extend(inner, lease))

    def release(self, deliveries: Sequence[Delivery], delay: float = 0.0) -> list[Delivery]:
        return self._mapped(deliveries, lambda inner: self.inner.release(inner, delay))

    def bury(self, burials: Sequence[tuple[Delivery, DeadLetter]]) -> list[Delivery]:
        letters = dict(burials)
        return self._mapped(
            [delivery for delivery, _ in burials],
            lambda inner: self.inner.bury(list(zip(inner, letters.values(), strict=True))),
        )

    def _mapped(
        self,
        deliveries: Sequence[Delivery],
        call: Callable[[Sequence[Delivery]], list[Delivery]],
    ) -> list[Delivery]:
        inner = {
            msgspec.structs.replace(each, id=each.receipt[0], receipt=each.receipt[1]): each
            for each in deliveries
        }
        return [inner[lost] for lost in call(list(inner))]
