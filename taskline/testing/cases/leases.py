"""Leases: how long a delivery is held, how it ends, and what becomes of the message."""

from __future__ import annotations

import pytest

from taskline.clock import Clock
from taskline.testing.cases.transport import (
    LONG,
    QUEUE,
    Connect,
    TransportSuite,
    ids,
    letter,
    message,
    messages,
)
from taskline.transports.base import Transport


class Leases(TransportSuite):
    def test_a_held_message_is_not_handed_over_until_its_lease_ends(
        self, transport: Transport, other: Transport, clock: Clock
    ) -> None:
        self.need(transport, "leases")
        transport.send([message()])
        since = clock.monotonic()
        held = self.take_one(transport, lease=self.span)
        again = self.taken_after(other, clock, self.span, since)
        assert again.id == held.id
        assert bytes(again.frame) == bytes(held.frame)
        assert (again.deliveries, again.lost) == (2, 1)

    def test_each_lease_lost_is_counted(self, transport: Transport, clock: Clock) -> None:
        self.need(transport, "leases")
        transport.send([message()])
        since = clock.monotonic()
        self.take_one(transport, lease=self.span)
        for lost in (1, 2, 3):
            (again,) = self.after(
                clock, self.span, lambda: self.receive(transport, lease=self.span), since
            )
            since += self.span
            assert (again.deliveries, again.lost) == (lost + 1, lost)

    def test_a_renewed_lease_ends_later(
        self, transport: Transport, other: Transport, clock: Clock
    ) -> None:
        self.need(transport, "leases")
        self.need(transport, "shared")
        transport.send(sent := messages(2))
        since = clock.monotonic()
        kept, left = self.take(transport, 2, lease=self.span)
        assert list(transport.extend([kept], self.span * 2)) == []
        assert self.taken_after(other, clock, self.span, since).id == left.id
        if self.manual_clock:
            assert self.taken_after(other, clock, self.span, since).id == kept.id
        else:
            # How much of it is left is not known here.
            assert self.take_one(other).id == kept.id
        assert sorted(ids([kept, left])) == sorted(ids(sent))

    def test_a_lease_renewed_again_and_again_never_ends(
        self, transport: Transport, other: Transport, clock: Clock
    ) -> None:
        """A ten-hour task runs once under a short lease."""
        self.need(transport, "leases")
        transport.send([message()])
        held = self.take_one(transport, lease=self.span)
        for _ in range(5):
            self.let_pass(clock, self.span * 0.6)
            assert list(transport.extend([held], self.span)) == []
            self.assert_empty(other)
        assert list(transport.ack([held])) == []
        self.let_pass(clock, self.span)
        self.assert_empty(other)

    def test_a_renewal_counts_from_now_and_may_shorten(
        self, transport: Transport, other: Transport, clock: Clock
    ) -> None:
        self.need(transport, "leases")
        transport.send([message()])
        held = self.take_one(transport, lease=LONG)
        since = clock.monotonic()
        assert list(transport.extend([held], self.span)) == []
        assert self.taken_after(other, clock, self.span, since).id == held.id

    def test_a_message_that_is_done_is_gone(self, transport: Transport, clock: Clock) -> None:
        self.need(transport, "leases")
        transport.send([message()])
        held = self.take_one(transport, lease=self.span)
        assert list(transport.ack([held])) == []
        self.let_pass(clock, self.span + 0.1)
        self.assert_empty(transport)
        self.assert_counts(transport)

    def test_what_is_done_outlives_the_connection(
        self, transport: Transport, other: Transport
    ) -> None:
        self.need(transport, "leases")
        transport.send(sent := messages(2))
        done, held = self.take(transport, 2)
        transport.ack([done])
        transport.close()
        self.assert_empty(other)
        if other.capabilities.delete:
            assert other.delete(ids(sent)) == []
        recovered = other.recover("worker-1", [])
        assert recovered == 1 or not other.capabilities.shared
        assert self.take_one(other).id == held.id

    def test_the_deliveries_of_a_message_only_ever_grow(
        self, transport: Transport, clock: Clock
    ) -> None:
        """Whatever happens to it: the number of deliveries is a fencing token."""
        self.need(transport, "leases")
        transport.send([message()])
        held = self.take_one(transport)
        assert (held.deliveries, held.lost) == (1, 0)
        transport.release([held])
        held = self.take_one(transport)
        assert (held.deliveries, held.lost) == (2, 0)
        transport.recover("worker-1", [held.id])
        since = clock.monotonic()
        held = self.take_one(transport, lease=self.span)
        assert (held.deliveries, held.lost) == (3, 1)
        held = self.taken_after(transport, clock, self.span, since)
        assert (held.deliveries, held.lost) == (4, 2)
        transport.replace([(held, message(held.id))])
        held = self.take_one(transport)
        assert (held.deliveries, held.lost) == (5, 0)
        transport.bury([(held, letter(held))])
        transport.requeue([message(held.id)])
        held = self.take_one(transport)
        assert held.deliveries == 6


class Connections(TransportSuite):
    """Where there are no leases, what is held is held by a connection."""

    def only_here(self, transport: Transport) -> None:
        if transport.capabilities.leases:
            pytest.skip(f"the {transport.scheme} transport has leases")
        self.need(transport, "durable")

    def test_what_a_connection_held_is_handed_over_again_when_it_ends(
        self, transport: Transport, other: Transport
    ) -> None:
        self.only_here(transport)
        transport.send(sent := messages(3))
        done, *_ = self.take(transport, 3)
        assert list(transport.ack([done])) == []
        transport.close()
        again = self.take(other, 2)
        assert sorted([done.id, *ids(again)]) == sorted(ids(sent))
        assert [(each.deliveries, each.lost) for each in again] == [(2, 1), (2, 1)]
        assert list(other.ack(again)) == []
        self.assert_empty(other)

    def test_each_loss_is_counted(self, connect: Connect) -> None:
        """Poison is told from what was unlucky by how often it was lost."""
        first = connect()
        self.only_here(first)
        first.send([message()])
        for lost in range(4):
            holder = connect()
            held = self.take_one(holder)
            assert (held.deliveries, held.lost) == (lost + 1, lost)
            holder.close()

    def test_what_was_given_back_was_not_lost(self, transport: Transport, other: Transport) -> None:
        self.only_here(transport)
        transport.send([message()])
        transport.release([self.take_one(transport)])
        transport.close()
        held = self.take_one(other)
        assert (held.deliveries, held.lost) == (2, 0)

    def test_losses_are_forgotten_by_another_attempt(
        self, transport: Transport, other: Transport
    ) -> None:
        self.only_here(transport)
        transport.send([message()])
        self.take_one(transport)
        transport.close()
        held = self.take_one(other)
        assert held.lost == 1
        assert list(other.replace([(held, message(held.id))])) == []
        again = self.take_one(other)
        assert (again.deliveries, again.lost) == (held.deliveries + 1, 0)

    def test_a_receipt_ends_with_its_connection(
        self, transport: Transport, other: Transport
    ) -> None:
        self.only_here(transport)
        transport.send([message()])
        old = self.take_one(transport)
        transport.close()
        new = self.take_one(other)
        assert ids(transport.ack([old])) == [old.id]
        assert ids(transport.extend([old], LONG)) == [old.id]
        assert list(other.ack([new])) == []

    def test_what_is_held_is_not_handed_over_to_another(
        self, transport: Transport, other: Transport, clock: Clock
    ) -> None:
        self.only_here(transport)
        transport.send([message()])
        held = self.take_one(transport, lease=self.span)
        for _ in range(3):
            self.let_pass(clock, self.span / 2)
            assert list(transport.extend([held], self.span)) == []
            self.assert_empty(other)
        assert list(transport.ack([held])) == []
        self.assert_empty(other)


class Release(TransportSuite):
    def test_what_is_given_back_is_there_for_another(
        self, transport: Transport, other: Transport
    ) -> None:
        transport.send([message()])
        held = self.take_one(transport)
        assert list(transport.release([held])) == []
        again = self.take_one(other)
        assert (again.id, again.deliveries, again.lost) == (held.id, 2, 0)
        assert list(other.ack([again])) == []

    @pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0]])
    def test_it_keeps_its_place(self, transport: Transport, order: list[int]) -> None:
        self.need(transport, "ordering")
        transport.send(sent := messages(5))
        held = self.take(transport, 3)
        for number in order:
            transport.release([held[number]])
        assert ids(self.take(transport, 5)) == ids(sent)

    def test_it_keeps_its_place_when_workers_give_back_in_any_order(
        self, transport: Transport, other: Transport
    ) -> None:
        self.need(transport, "ordering")
        transport.send(sent := messages(6))
        first, second = self.take(transport, 2), self.take(other, 2)
        transport.release(first)
        other.release(second)
        transport.send(more := messages(2))
        assert ids(self.take(transport, 8)) == ids([*sent, *more])

    def test_it_keeps_its_priority(self, transport: Transport) -> None:
        self.need(transport, "priority")
        transport.send([urgent := message(priority=9), message(priority=1)])
        held = self.take(transport, 2)
        transport.release(list(reversed(held)))
        assert self.take_one(transport).id == urgent.header.id

    def test_it_may_be_due_later(
        self, transport: Transport, other: Transport, clock: Clock
    ) -> None:
        self.need(transport, "delay")
        transport.send([message()])
        held = self.take_one(transport)
        since = clock.monotonic()
        assert list(transport.release([held], self.span)) == []
        self.assert_counts(transport, delayed=1)
        again = self.taken_after(other, clock, self.span, since)
        assert (again.id, again.deliveries, again.lost) == (held.id, 2, 0)


class Replace(TransportSuite):
    def test_the_successor_takes_the_place_of_the_message(self, transport: Transport) -> None:
        transport.send([message()])
        held = self.take_one(transport)
        successor = message(held.id, frame=b"attempt 2")
        assert list(transport.replace([(held, successor)])) == []
        self.assert_counts(transport, ready=1)
        again = self.take_one(transport)
        assert (again.id, bytes(again.frame)) == (held.id, b"attempt 2")
        assert (again.deliveries, again.lost) == (2, 0)
        assert list(transport.ack([again])) == []
        self.assert_empty(transport)

    def test_losses_are_forgotten(self, transport: Transport, clock: Clock) -> None:
        transport.send([message()])
        _, held = self.lose(transport, clock)
        assert held.lost == 1
        transport.replace([(held, message(held.id))])
        again = self.take_one(transport)
        assert (again.deliveries, again.lost) == (held.deliveries + 1, 0)

    def test_the_successor_is_due_at_its_eta(self, transport: Transport, clock: Clock) -> None:
        self.need(transport, "delay")
        transport.send([message()])
        held = self.take_one(transport)
        since = clock.monotonic()
        transport.replace([(held, message(held.id, eta=clock.time() + self.span))])
        self.assert_counts(transport, delayed=1)
        assert self.taken_after(transport, clock, self.span, since).deliveries == 2

    def test_the_successor_has_its_own_queue_and_priority(self, transport: Transport) -> None:
        self.need(transport, "priority")
        transport.send([message(), message("last", queue="b", priority=2)])
        held = self.take_one(transport)
        transport.replace([(held, message(held.id, queue="b", priority=3))])
        self.assert_empty(transport)
        assert ids(self.take(transport, 2, "b")) == [held.id, "last"]

    def test_many_in_one_batch(self, transport: Transport) -> None:
        transport.send(messages(200))
        held = self.take(transport, 200)
        pairs = [(each, message(each.id, frame=b"2" + each.frame)) for each in held]
        assert list(transport.replace(pairs)) == []
        taken = self.take(transport, 200)
        assert {each.id: bytes(each.frame) for each in taken} == {
            each.id: b"2" + each.frame for each in held
        }
        assert {each.deliveries for each in taken} == {2}


class Recovery(TransportSuite):
    def test_all_that_a_dead_consumer_held_is_handed_back_at_once(
        self, transport: Transport, other: Transport
    ) -> None:
        self.need(transport, "leases")
        transport.send(sent := messages(4))
        held = self.take(transport, 4, consumer="dead")
        assert other.recover("dead", []) == 4
        again = self.take(other, 4)
        assert sorted(ids(again)) == sorted(ids(sent))
        assert sorted(ids(transport.ack(held))) == sorted(ids(sent))
        assert list(other.ack(again)) == []

    def test_only_what_was_begun_counts_as_lost(
        self, transport: Transport, other: Transport
    ) -> None:
        self.need(transport, "leases")
        transport.send(messages(4))
        held = self.take(transport, 4, consumer="dead")
        begun = {held[0].id, held[3].id}
        assert other.recover("dead", {*begun, "of-another-consumer"}) == 4
        for each in self.take(other, 4):
            assert (each.deliveries, each.lost) == (2, int(each.id in begun))

    def test_losses_add_up(self, transport: Transport, other: Transport) -> None:
        self.need(transport, "leases")
        transport.send([message()])
        for lost in range(3):
            held = self.take_one(transport, consumer="crashing")
            assert (held.deliveries, held.lost) == (lost + 1, lost)
            assert other.recover("crashing", [held.id]) == 1

    def test_other_consumers_keep_what_they_hold(
        self, transport: Transport, other: Transport
    ) -> None:
        self.need(transport, "leases")
        self.need(transport, "shared")
        transport.send(messages(4))
        mine = self.take(transport, 2, consumer="alive")
        self.take(other, 2, consumer="dead")
        assert other.recover("dead", ids(mine)) == 2
        self.assert_counts(transport, ready=2, leased=2)
        assert list(transport.ack(mine)) == []

    def test_nothing_is_recovered_twice(self, transport: Transport) -> None:
        self.need(transport, "leases")
        transport.send(messages(3))
        held = self.take(transport, 3, consumer="dead")
        transport.ack(held[:1])
        transport.release(held[1:2])
        assert transport.recover("dead", ids(held)) == 1
        assert transport.recover("dead", ids(held)) == 0
        assert transport.recover("unheard-of", ["x"]) == 0
        assert {each.id: each.lost for each in self.take(transport, 2)} == {
            held[1].id: 0,
            held[2].id: 1,
        }

    def test_a_consumer_of_any_name(self, transport: Transport) -> None:
        self.need(transport, "leases")
        transport.send(messages(2))
        name, neighbour = "host%:1234/ü 'x'", "host_:1234/ü 'x'"
        held = self.take_one(transport, consumer=name)
        self.take_one(transport, consumer=neighbour)
        assert transport.recover(name, []) == 1
        assert self.take_one(transport).id == held.id

    def test_many_at_once(self, transport: Transport) -> None:
        self.need(transport, "leases")
        transport.send(messages(1000))
        held = self.take(transport, 1000, consumer="dead")
        assert transport.recover("dead", set(ids(held))) == 1000
        assert {each.lost for each in self.take(transport, 1000)} == {1}

    def test_who_is_in_the_place_of_a_dead_one_has_what_that_held(
        self, transport: Transport, other: Transport, connect: Connect
    ) -> None:
        self.need(transport, "inherits")
        transport.send(messages(4))
        held = self.take(transport, 4, consumer="first")
        assert other.inherit([QUEUE], "first", [held[0].id]) == 4
        again = self.take(other, 4, consumer="second")
        assert {each.id: (each.deliveries, each.lost) for each in again} == {
            each.id: (2, int(each is held[0])) for each in held
        }
        assert sorted(ids(transport.ack(held))) == sorted(ids(held))
        assert list(other.ack(again[:1])) == []
        third = connect()
        assert third.inherit([QUEUE], "first", [each.id for each in again]) == 3
        assert third.inherit([QUEUE], "first", [each.id for each in again]) == 0, (
            "told twice, counted once"
        )
        last = self.take(third, 3, consumer="third")
        assert {each.id: (each.deliveries, each.lost) for each in last} == {
            each.id: (3, each.lost + 1) for each in again[1:]
        }
        assert list(third.ack(last)) == []

    def test_they_keep_their_place(self, transport: Transport) -> None:
        self.need(transport, "leases")
        self.need(transport, "ordering")
        transport.send(sent := messages(4))
        self.take(transport, 2, consumer="dead")
        transport.recover("dead", [])
        assert ids(self.take(transport, 4)) == ids(sent)
