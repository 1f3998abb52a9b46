"""Fencing: a delivery whose lease has ended can do no harm."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from taskline.clock import Clock
from taskline.message import Delivery
from taskline.testing.cases.transport import (
    LONG,
    QUEUE,
    TransportSuite,
    ids,
    letter,
    message,
    messages,
)
from taskline.transports.base import Transport

Verb = Callable[[Transport, Sequence[Delivery]], Sequence[Delivery]]

VERBS: dict[str, Verb] = {
    "ack": lambda transport, held: transport.ack(held),
    "release": lambda transport, held: transport.release(held),
    "release later": lambda transport, held: transport.release(held, 5),
    "replace": lambda transport, held: transport.replace(
        [(each, message(each.id, queue="successors")) for each in held]
    ),
    "extend": lambda transport, held: transport.extend(held, LONG),
    "bury": lambda transport, held: transport.bury([(each, letter(each)) for each in held]),
}
"""All that a worker can do with what it holds."""

every_verb = pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)


class Fencing(TransportSuite):
    @every_verb
    def test_a_delivery_that_another_worker_has_now_can_do_nothing(
        self, transport: Transport, other: Transport, clock: Clock, verb: Verb
    ) -> None:
        """A worker was paused beyond its lease: it is told, and the new holder is unharmed."""
        self.need(transport, "leases")
        transport.send([message()])
        since = clock.monotonic()
        old = self.take_one(transport, lease=self.span)
        new = self.after(clock, self.span, lambda: self.receive(other, lease=self.span), since)[0]
        assert ids(verb(transport, [old])) == [old.id]
        self.assert_counts(transport, leased=1)
        self.assert_empty(transport, "successors")
        assert transport.dead_letter(old.id) is None
        # Nor did it prolong what the new holder has, or cut it short.
        again = self.taken_after(transport, clock, self.span, since + self.span)
        assert (again.id, again.deliveries, again.lost) == (old.id, 3, 2)
        assert ids(other.ack([new])) == [new.id]

    @every_verb
    def test_a_late_worker_does_not_disturb_the_one_that_took_over(
        self, transport: Transport, other: Transport, clock: Clock, verb: Verb
    ) -> None:
        transport.send([message()])
        old, new = self.lose(transport, clock)
        assert ids(verb(other, [old])) == [old.id]
        assert list(transport.extend([new], LONG)) == []
        assert list(transport.ack([new])) == []
        self.assert_counts(transport)

    @every_verb
    def test_of_a_batch_only_what_was_lost_is_refused(
        self, transport: Transport, other: Transport, clock: Clock, verb: Verb
    ) -> None:
        self.need(transport, "leases")
        self.need(transport, "shared")
        transport.send(messages(4))
        since = clock.monotonic()
        held = self.take(transport, 4, lease=self.span)
        assert list(transport.extend([held[0], held[2]], LONG * 10)) == []
        self.after(clock, self.span, lambda: self.receive(other, limit=1), since)
        self.take(other, 1)
        refused = verb(transport, held)
        assert sorted(ids(refused)) == sorted([held[1].id, held[3].id])

    @every_verb
    @pytest.mark.parametrize("first", [verb for verb in VERBS if verb != "extend"])
    def test_a_delivery_serves_once(self, transport: Transport, first: str, verb: Verb) -> None:
        transport.send([message()])
        held = self.take_one(transport)
        assert list(VERBS[first](transport, [held])) == []
        before = self.counts(transport, QUEUE, "successors")
        assert ids(verb(transport, [held])) == [held.id]
        assert self.counts(transport, QUEUE, "successors") == before

    @every_verb
    def test_a_delivery_of_a_former_message_of_this_id_is_refused(
        self, transport: Transport, other: Transport, verb: Verb
    ) -> None:
        """The counts of both begin at one; the receipts have to differ all the same."""
        transport.send([message("order-42")])
        old = self.take_one(transport)
        transport.ack([old])
        transport.send([message("order-42")])
        new = self.take_one(other)
        assert ids(verb(transport, [old])) == ["order-42"]
        assert list(other.ack([new])) == []

    @every_verb
    def test_a_delivery_that_was_recovered_is_refused(
        self, transport: Transport, other: Transport, verb: Verb
    ) -> None:
        self.need(transport, "leases")
        transport.send([message()])
        held = self.take_one(transport, consumer="paused")
        assert other.recover("paused", [held.id]) == 1
        again = self.take_one(other)
        assert ids(verb(transport, [held])) == [held.id]
        assert list(other.ack([again])) == []

    @every_verb
    def test_an_ended_lease_that_nobody_took_over_is_refused_or_honoured(
        self, transport: Transport, clock: Clock, verb: Verb
    ) -> None:
        """Either is safe; what is not is to say one thing and do the other."""
        self.need(transport, "leases")
        transport.send([message()])
        held = self.take_one(transport, lease=self.span)
        self.let_pass(clock, self.span + 0.1)
        refused = ids(verb(transport, [held]))
        if refused:
            assert refused == [held.id]
            again = self.take_one(transport)
            assert (again.id, again.lost) == (held.id, 1)
            self.assert_empty(transport, "successors")
            assert transport.dead_letter(held.id) is None
        elif verb not in (VERBS["release"], VERBS["release later"]):
            self.assert_empty(transport)

    def test_the_receipt_is_what_proves_a_delivery(
        self, transport: Transport, clock: Clock
    ) -> None:
        transport.send([message()])
        old, new = self.lose(transport, clock)
        forged = Delivery(
            new.id, new.queue, new.frame, new.deliveries, new.lost, receipt=old.receipt
        )
        assert ids(transport.ack([forged])) == [new.id]
        assert list(transport.ack([new])) == []
