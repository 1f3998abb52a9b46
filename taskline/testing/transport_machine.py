"""Random histories of a transport, compared with a model of what its messages may be.

`transport_machine(make, clock)` gives a hypothesis state machine; the transport
conformance suite runs it. Needs hypothesis (`pip install 'taskline[testing]'`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from taskline.clock import ManualClock
from taskline.message import DeadLetter, Delivery, Header, Message
from taskline.transports.base import Transport

READY, DELAYED, LEASED, DEAD, GONE = "ready", "delayed", "leased", "dead", "gone"
QUEUE_COUNT = 2
ABOVE_ANY_LEASE = 1000.0

_runs = count(1)

pick = st.integers(0, 2**32)
seconds = st.sampled_from([3.0, 0.5, 10.0, 40.0])
connections = st.integers(0, 1)
batch = st.tuples(
    st.integers(0, QUEUE_COUNT - 1),
    st.sampled_from([5, 0, 9]),
    st.sampled_from([0.0, 0.0, 0.0, 3.0, 10.0]),
)
"""The queue, the priority and the delay of messages."""


@dataclass
class Stored:
    """What the model knows of a message."""

    id: str
    queue: str
    priority: int
    frame: bytes
    place: int
    """Its place in the line; the order among those of one queue and priority."""
    state: str = READY
    due: float = 0.0
    """When a delayed message comes due, or a lease ends."""
    deliveries: int = 0
    lost: set[int] = field(default_factory=lambda: {0})
    """What the next handing-over may say; more than one number where the seam leaves it open."""
    receipt: Any = None
    consumer: str = ""
    strayed: bool = False
    """It was delayed, or its lease ended: its place in the line is not promised any more."""


class TransportMachine(RuleBasedStateMachine):
    """Sends, takes, does and undoes, and moves the clock; see `transport_machine`."""

    make: Callable[[ManualClock], Transport]
    clock: ManualClock

    def __init__(self) -> None:
        super().__init__()
        self.run = next(_runs)
        self.transports: list[Transport] = []
        self.messages: dict[str, Stored] = {}
        self.held: list[Delivery] = []
        """All deliveries of this history, those that are over too."""
        self.places = count()
        self.queues = [f"run{self.run}-{number}" for number in range(QUEUE_COUNT)]
        self.consumers = [f"run{self.run}-worker-{number}" for number in range(2)]

    # What the model says.

    def now(self) -> float:
        return self.clock.time()

    def state(self, stored: Stored) -> str:
        """Its state now. A message whose lease ended is ready: nobody holds it."""
        if stored.state in (DELAYED, LEASED) and stored.due <= self.now():
            return READY
        return stored.state

    def ended(self, stored: Stored) -> bool:
        """Whether its lease ended and it was not handed over since."""
        return stored.state == LEASED and stored.due <= self.now()

    def known(self) -> list[Stored]:
        return [each for each in self.messages.values() if each.state != GONE]

    def some(self, things: Sequence[Any], choice: int, most: int = 4) -> list[Any]:
        """Up to `most` of the things, chosen by a number."""
        if not things:
            return []
        first, number = choice % len(things), 1 + choice // 7 % most
        return [things[(first + each) % len(things)] for each in range(min(number, len(things)))]

    def message(self, id: str, queue: str, priority: int, delay: float, frame: bytes) -> Message:
        eta = self.now() + delay if delay else None
        header = Header(
            v=1, id=id, task="t", queue=queue, sent=self.now(), priority=priority, eta=eta
        )
        return Message(header, frame)

    def stored_as(self, message: Message) -> Stored:
        header = message.header
        return Stored(
            header.id,
            header.queue,
            header.priority,
            message.frame,
            next(self.places),
            state=READY if header.eta is None else DELAYED,
            due=header.eta or 0.0,
            strayed=header.eta is not None,
        )

    def holds(self, delivery: Delivery) -> bool | None:
        """Whether a delivery is held; None when its lease ended and either answer is right."""
        stored = self.messages[delivery.id]
        if stored.state != LEASED or stored.receipt != delivery.receipt:
            return False
        return None if self.ended(stored) else True

    def answer(self, given: Sequence[Delivery], lost: Sequence[Delivery]) -> list[Stored]:
        """Compare the deliveries called lost with the model; returns what was held."""
        refused = {each.receipt for each in lost}
        assert len(lost) == len(refused), "a delivery was called lost twice"
        held = []
        for delivery in given:
            expected = self.holds(delivery)
            accepted = delivery.receipt not in refused
            assert expected is None or expected == accepted, f"{delivery.id}: {accepted=}"
            if accepted:
                held.append(self.messages[delivery.id])
        return held

    # What happens. Few rules with many ways each: hypothesis leaves some rules out of a
    # history, and one without `receive` tells little.

    @initialize(batches=st.lists(batch, min_size=2, max_size=3))
    def begin(self, batches: list[tuple[int, int, float]]) -> None:
        make = type(self).make
        self.transports = [make(self.clock), make(self.clock)]
        for each in batches:
            self.send(each, 3, 0)

    @rule(kind=batch, number=st.integers(1, 4), connection=connections)
    def send_some(self, kind: tuple[int, int, float], number: int, connection: int) -> None:
        self.send(kind, number, connection)

    def send(self, kind: tuple[int, int, float], number: int, connection: int) -> None:
        queue, priority, delay = kind
        sent = []
        for _ in range(number):
            name = f"run{self.run}-m{len(self.messages)}"
            message = self.message(name, self.queues[queue], priority, delay, name.encode())
            self.messages[name] = self.stored_as(message)
            sent.append(message)
        self.transports[connection].send(sent)

    @rule(
        queues=st.permutations(range(QUEUE_COUNT)),
        only=st.booleans(),
        limit=st.integers(1, 6),
        lease=seconds,
        who=connections,
    )
    def receive(self, queues: list[int], only: bool, limit: int, lease: float, who: int) -> None:
        names = [self.queues[each] for each in queues][: 1 if only else None]
        taken = self.transports[who].receive(names, limit, lease, 0, self.consumers[who])
        self.check_order(names, limit, taken)
        for delivery in taken:
            self.hand_over(delivery, lease, self.consumers[who])

    def check_order(self, names: list[str], limit: int, taken: Sequence[Delivery]) -> None:
        capabilities = self.transports[0].capabilities
        ready = [s for s in self.known() if s.queue in names and self.state(s) == READY]
        assert {each.id for each in taken} <= {each.id for each in ready}, "not ready"
        if not capabilities.ordering:
            assert len(taken) <= limit
            return
        assert len(taken) == min(limit, len(ready))
        got = [self.messages[each.id] for each in taken]

        def rank(stored: Stored) -> tuple[int, int]:
            return (names.index(stored.queue), -stored.priority if capabilities.priority else 0)

        ranks = [rank(each) for each in got]
        assert ranks == sorted(rank(each) for each in ready)[: len(got)], "queue or priority"
        for each in set(ranks):
            line = sorted(
                (s for s in ready if rank(s) == each and not s.strayed), key=lambda s: s.place
            )
            out = [s.id for s in got if rank(s) == each and not s.strayed]
            assert out == [s.id for s in line][: len(out)], "not first in, first out"

    def hand_over(self, delivery: Delivery, lease: float, consumer: str) -> None:
        stored = self.messages[delivery.id]
        lost = {each + 1 for each in stored.lost} if self.ended(stored) else stored.lost
        assert (delivery.queue, bytes(delivery.frame)) == (stored.queue, stored.frame)
        assert delivery.deliveries == stored.deliveries + 1
        assert delivery.lost in lost, f"{delivery.lost=}, not in {lost}"
        stored.strayed |= stored.state == LEASED
        stored.state, stored.due = LEASED, self.now() + lease
        stored.deliveries, stored.lost = delivery.deliveries, {delivery.lost}
        stored.receipt, stored.consumer = delivery.receipt, consumer
        self.held.append(delivery)

    @rule(
        verb=st.sampled_from(["bury", "ack", "release", "extend", "replace", "recover"]),
        choice=pick,
        stale=st.sampled_from([False, False, True]),
        kind=batch,
        lease=seconds,
    )
    def work(
        self, verb: str, choice: int, stale: bool, kind: tuple[int, int, float], lease: float
    ) -> None:
        """What a worker does with some of what it holds, or once held."""
        transport = self.transports[choice % 2]
        if not any(self.holds(each) for each in self.held):
            self.receive(list(range(QUEUE_COUNT)), False, 4, lease, choice % 2)
        if verb == "recover":
            self.recover(transport, self.consumers[choice % 3 % 2], choice)
            return
        live = [each for each in self.held if self.holds(each) is not False] or self.held
        given = self.some(self.held if stale else live, choice)
        queue, priority, delay = kind
        if verb == "ack":
            for stored in self.answer(given, transport.ack(given)):
                stored.state = GONE
        elif verb == "release":
            for stored in self.answer(given, transport.release(given, delay)):
                stored.strayed |= bool(delay)
                stored.state, stored.due = (DELAYED if delay else READY), self.now() + delay
        elif verb == "extend":
            for stored in self.answer(given, transport.extend(given, lease)):
                stored.due = self.now() + lease
        elif verb == "replace":
            successors = {
                each.id: self.message(
                    each.id, self.queues[queue], priority, delay, b"%d" % each.deliveries
                )
                for each in given
            }
            pairs = [(each, successors[each.id]) for each in given]
            for stored in self.answer(given, transport.replace(pairs)):
                self.succeed(stored, successors[stored.id])
        else:
            burials = [
                (each, DeadLetter(id=each.id, queue=each.queue, reason="r", at=self.now()))
                for each in given
            ]
            for stored in self.answer(given, transport.bury(burials)):
                stored.state = DEAD

    def succeed(self, stored: Stored, message: Message) -> None:
        self.messages[stored.id] = successor = self.stored_as(message)
        successor.deliveries = stored.deliveries

    def recover(self, transport: Transport, consumer: str, choice: int) -> None:
        mine = [s for s in self.known() if s.state == LEASED and s.consumer == consumer]
        started = {each.id for each in self.some(mine, choice)}
        surely = [each for each in mine if not self.ended(each)]
        number = transport.recover(consumer, started)
        assert len(surely) <= number <= len(mine)
        for stored in mine:
            # One whose lease had ended may have been counted for that before.
            if stored.id in started:
                stored.lost = {each + 1 for each in stored.lost}
            elif self.ended(stored):
                stored.lost = stored.lost | {each + 1 for each in stored.lost}
            stored.strayed |= self.ended(stored)
            stored.state, stored.receipt = READY, None

    @rule(
        verb=st.sampled_from(
            ["requeue", "requeue", "send_again", "delete", "purge_dead", "purge", "maintain"]
        ),
        choice=pick,
        kind=batch,
    )
    def manage(self, verb: str, choice: int, kind: tuple[int, int, float]) -> None:
        """What people and producers do, and the upkeep."""
        transport = self.transports[choice % 2]
        chosen = self.some(list(self.messages.values()), choice)
        if verb == "requeue":
            self.requeue(transport, choice, kind[2])
        elif verb == "send_again":
            self.send_again(transport, chosen[0], self.queues[kind[0]])
        elif verb == "delete" and transport.capabilities.delete:
            waiting = [each for each in chosen if self.waits(each)]
            deleted = transport.delete([each.id for each in chosen])
            self.remove(waiting, sorted(deleted) == sorted(each.id for each in waiting))
        elif verb == "purge_dead":
            dead = [each for each in chosen if each.state == DEAD]
            self.remove(dead, transport.purge_dead([s.id for s in chosen]) == len(dead))
        elif verb == "purge":
            name = self.queues[kind[0]]
            waiting = [s for s in self.known() if s.queue == name and self.waits(s)]
            self.remove(waiting, transport.purge(name) == len(waiting))
        else:
            transport.maintain()

    def waits(self, stored: Stored) -> bool:
        return self.state(stored) in (READY, DELAYED)

    def remove(self, removed: list[Stored], agreed: bool) -> None:
        assert agreed, f"should have removed {[each.id for each in removed]}"
        for stored in removed:
            stored.state = GONE

    def send_again(self, transport: Transport, stored: Stored, queue: str) -> None:
        again = self.message(stored.id, queue, 9, 0.0, b"again")
        if stored.state == DEAD:
            return
        transport.send([again])
        if stored.state == GONE:
            self.messages[stored.id] = self.stored_as(again)

    def requeue(self, transport: Transport, choice: int, delay: float) -> None:
        letters = [each for each in self.known() if each.state == DEAD]
        chosen = self.some(letters, choice) + self.some(list(self.messages.values()), choice, 1)
        batch = {s.id: self.message(s.id, s.queue, s.priority, delay, s.frame) for s in chosen}
        dead = {each.id for each in chosen if each.state == DEAD}
        assert set(transport.requeue(list(batch.values()))) == dead
        for name, message in batch.items():
            if name in dead:
                self.succeed(self.messages[name], message)

    @rule(by=seconds, to=st.sampled_from(["somewhere", "before an event", "after an event"]))
    def move_the_clock(self, by: float, to: str) -> None:
        """Never exactly to a due time or a lease's end, which may count as either."""
        events = [s.due - self.now() for s in self.known() if s.state in (DELAYED, LEASED)]
        coming = min((event for event in events if event > 1 / 32), default=None)
        if coming is not None and to != "somewhere":
            by = coming + (-1 / 32 if to == "before an event" else 0.0)
        self.clock.advance(by + 1 / 64)

    # What holds at all times.

    @invariant()
    def counts_agree(self) -> None:
        if not self.transports:
            return
        for found in self.transports[0].stats(self.queues):
            mine = [each for each in self.known() if each.queue == found.queue]
            moved = sum(each.state != self.state(each) for each in mine)
            for state in (READY, DELAYED, LEASED, DEAD):
                told = getattr(found, state)
                exact = sum(self.state(each) == state for each in mine)
                # What came due or lost its lease may be counted where it was until it is taken.
                assert told is None or abs(told - exact) <= moved, f"{state}: {told}, not {exact}"

    @invariant()
    def dead_letters_agree(self) -> None:
        if not self.transports:
            return
        for queue in self.queues:
            told = [each.id for each in self.transports[1].dead_letters(queue, limit=1000)]
            dead = [s.id for s in self.known() if s.state == DEAD and s.queue == queue]
            assert sorted(told) == sorted(dead)

    @invariant()
    def peek_agrees(self) -> None:
        if not self.transports or not self.transports[0].capabilities.peek:
            return
        for queue in self.queues:
            told = [each.id for each in self.transports[1].peek(queue, limit=1000)]
            there = [s.id for s in self.known() if s.queue == queue and s.state != DEAD]
            assert sorted(told) == sorted(there)

    def teardown(self) -> None:
        """In the end every message that is neither done nor dead is handed over once more."""
        try:
            if self.transports and sys.exc_info()[0] is None:
                self.drain(self.transports[1])
        finally:
            for transport in self.transports:
                transport.close()

    def drain(self, transport: Transport) -> None:
        self.clock.advance(ABOVE_ANY_LEASE)
        alive = {each.id for each in self.known() if each.state != DEAD}
        while taken := transport.receive(self.queues, 50, ABOVE_ANY_LEASE, 0, "end"):
            for delivery in taken:
                assert delivery.id in alive, f"{delivery.id} is handed over once too often"
                alive.remove(delivery.id)
                self.hand_over(delivery, ABOVE_ANY_LEASE, "end")
            assert list(transport.ack(taken)) == []
        assert not alive, f"never handed over again: {sorted(alive)}"
        transport.purge_dead(list(self.messages))


def transport_machine(
    make: Callable[[ManualClock], Transport], clock: ManualClock
) -> type[TransportMachine]:
    """The state machine for connections that `make` opens to one store, under this clock.

    Every history uses queues and ids of its own, so that all may share the store.
    """
    return type(
        "TransportMachine",
        (TransportMachine,),
        {"make": staticmethod(make), "clock": clock},
    )
