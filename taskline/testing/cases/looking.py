"""What people see and do: stats, peek, purge, delete, ping, info, close."""

from __future__ import annotations

import json

import pytest

from taskline.clock import Clock
from taskline.testing.cases.transport import (
    QUEUE,
    Connect,
    TransportSuite,
    ids,
    letter,
    message,
    messages,
)
from taskline.transports.base import Transport


class Stats(TransportSuite):
    def test_messages_are_counted_by_what_they_wait_for(
        self, transport: Transport, other: Transport, clock: Clock
    ) -> None:
        transport.send(messages(7))
        held = self.take(transport, 4)
        transport.bury([(held[0], letter(held[0]))])
        transport.ack(held[1:2])
        if transport.capabilities.delay:
            transport.send(messages(3, eta=clock.time() + 1000))
            self.assert_counts(other, ready=3, delayed=3, leased=2, dead=1)
        else:
            self.assert_counts(other, ready=3, leased=2, dead=1)

    def test_what_came_due_is_ready(self, transport: Transport, clock: Clock) -> None:
        self.need(transport, "delay")
        self.need(transport, "random_access")
        since = clock.monotonic()
        transport.send(messages(2, eta=clock.time() + self.span))
        self.assert_counts(transport, delayed=2)
        self.after(
            clock, self.span, lambda: self.maintained(transport, "ready") in (2, None), since
        )
        self.assert_counts(transport, ready=2)

    def test_what_lost_its_lease_is_ready(self, transport: Transport, clock: Clock) -> None:
        self.need(transport, "leases")
        self.need(transport, "random_access")
        transport.send(messages(2))
        since = clock.monotonic()
        self.take(transport, 2, lease=self.span)
        self.assert_counts(transport, leased=2)
        self.after(
            clock, self.span, lambda: self.maintained(transport, "ready") in (2, None), since
        )
        self.assert_counts(transport, ready=2)

    def test_the_named_queues_are_counted(self, transport: Transport) -> None:
        transport.send([*messages(2, "b"), *messages(1, "a"), *messages(3, "c")])
        found = {each.queue: each.ready for each in transport.stats(["c", "a", "no-such"])}
        assert set(found) == {"a", "c", "no-such"}
        assert found["no-such"] in (0, None)
        assert (found["a"], found["c"]) in ((1, 3), (None, None))

    def test_all_queues_with_something_in_them_are_known_sorted(
        self, transport: Transport, clock: Clock
    ) -> None:
        accent = "é" if transport.capabilities.any_name else "e"
        transport.send([message(queue=queue) for queue in ("ready", "dead", "Leased", accent)])
        if transport.capabilities.delay:
            transport.send([message(queue="delayed", eta=clock.time() + 1000)])
        self.take(transport, 1, "Leased")
        (dead,) = self.take(transport, 1, "dead")
        transport.bury([(dead, letter(dead))])
        names = [each.queue for each in transport.stats()]
        assert {"ready", "dead", "Leased", accent} <= set(names)
        assert "delayed" in names or not transport.capabilities.delay
        assert names == sorted(names)
        assert len(names) == len(set(names))

    def test_an_empty_transport_has_no_messages(self, transport: Transport) -> None:
        assert not any(each.ready or each.leased for each in transport.stats())
        self.assert_counts(transport)
        assert transport.stats([]) == []

    def test_the_age_is_that_of_the_oldest_ready_message(
        self, transport: Transport, clock: Clock
    ) -> None:
        assert self.stats(transport).oldest is None
        transport.send([message(sent=clock.time())])
        if self.stats(transport).oldest is None:
            pytest.skip(f"the {transport.scheme} transport does not know the age of messages")
        self.let_pass(clock, self.span)
        transport.send([message(sent=clock.time(), priority=9)])
        assert self.stats(transport).oldest == pytest.approx(self.span, abs=self.bound)
        assert (self.stats(transport).oldest or 0) >= self.span - self.early
        self.take(transport, 2)
        assert self.stats(transport).oldest is None

    def test_who_waits_for_its_time_has_no_age(self, transport: Transport, clock: Clock) -> None:
        self.need(transport, "delay")
        transport.send([message(sent=clock.time(), eta=clock.time() + 1000)])
        self.let_pass(clock, self.span)
        assert self.stats(transport).oldest is None


class Peek(TransportSuite):
    def test_messages_are_shown_as_they_are_stored(
        self, transport: Transport, other: Transport
    ) -> None:
        self.need(transport, "peek")
        transport.send([sent := message(frame=b"\x00\n\xff")])
        (shown,) = other.peek(QUEUE)
        assert (shown.id, shown.queue, shown.state) == (sent.header.id, QUEUE, "ready")
        assert bytes(shown.frame) == sent.frame
        assert shown.deliveries == 0

    def test_looking_hands_nothing_over(self, transport: Transport) -> None:
        self.need(transport, "peek")
        transport.send([message()])
        for _ in range(3):
            transport.peek(QUEUE)
        delivery = self.take_one(transport)
        assert (delivery.deliveries, delivery.lost) == (1, 0)

    def test_the_order_is_that_of_the_handing_over(
        self, transport: Transport, clock: Clock
    ) -> None:
        self.need(transport, "peek")
        self.need(transport, "priority")
        self.need(transport, "ordering")
        transport.send([message(priority=number * 7 % 10) for number in range(20)])
        held = self.take(transport, 6)
        transport.release(held[3:])
        transport.ack(held[:3])
        shown = ids(transport.peek(QUEUE, limit=100))
        assert shown == ids(self.take(transport, 17))

    def test_what_waits_for_its_time_comes_after_what_is_ready(
        self, transport: Transport, clock: Clock
    ) -> None:
        self.need(transport, "peek")
        self.need(transport, "delay")
        now = clock.time()
        late, soon = message(priority=9, eta=now + 2000), message(eta=now + 1000)
        transport.send([late, soon, ready := message(priority=0)])
        shown = transport.peek(QUEUE)
        assert ids(shown) == ids([ready, soon, late])
        assert [each.state for each in shown] == ["ready", "delayed", "delayed"]
        assert [each.due for each in shown[1:]] == pytest.approx([now + 1000, now + 2000])

    def test_what_is_held_is_shown_with_the_end_of_its_lease(
        self, transport: Transport, clock: Clock
    ) -> None:
        self.need(transport, "peek")
        transport.send(messages(3))
        held = self.take_one(transport, lease=500)
        shown = {each.id: each for each in transport.peek(QUEUE)}
        assert len(shown) == 3
        assert shown[held.id].state == "leased"
        assert shown[held.id].deliveries == 1
        assert shown[held.id].due == pytest.approx(clock.time() + 500, abs=self.bound)
        assert [each.state for each in shown.values()].count("ready") == 2

    def test_messages_are_shown_in_pages(self, transport: Transport, clock: Clock) -> None:
        self.need(transport, "peek")
        transport.send(messages(6))
        if transport.capabilities.delay:
            transport.send(messages(3, eta=clock.time() + 1000))
        self.take(transport, 2)
        everything = ids(transport.peek(QUEUE, limit=100))
        pages = [ids(transport.peek(QUEUE, limit=2, offset=at)) for at in range(0, 10, 2)]
        assert [each for page in pages for each in page] == everything
        assert transport.peek(QUEUE, offset=50) == []

    def test_one_queue_is_shown(self, transport: Transport) -> None:
        self.need(transport, "peek")
        transport.send([mine := message(), *messages(2, "other")])
        assert ids(transport.peek(QUEUE)) == ids([mine])
        assert transport.peek("no-such-queue") == []


class Removal(TransportSuite):
    def purged(self, transport: Transport, number: int) -> bool:
        """Purge the queue, and say whether the number is right as far as it can be known."""
        told = transport.purge(QUEUE)
        return told == number or not transport.capabilities.random_access

    def test_purging_a_queue_leaves_what_is_held_and_what_is_dead(
        self, transport: Transport, clock: Clock
    ) -> None:
        transport.send(messages(5))
        held, dead = self.take(transport, 2)
        transport.bury([(dead, letter(dead))])
        transport.send(messages(1, "other"))
        waiting = 3
        if transport.capabilities.delay and transport.capabilities.random_access:
            transport.send(messages(2, eta=clock.time() + self.span))
            waiting = 5
        assert self.purged(transport, waiting)
        self.let_pass(clock, self.span + 0.1)
        self.assert_empty(transport)
        self.assert_counts(transport, leased=1, dead=1)
        assert list(transport.ack([held])) == []
        assert transport.dead_letter(dead.id) is not None
        self.take(transport, 1, "other")
        assert self.purged(transport, 0)
        assert transport.purge("no-such-queue") == 0

    def test_what_was_held_when_the_queue_was_purged_can_be_given_back(
        self, transport: Transport
    ) -> None:
        transport.send(messages(2))
        held = self.take_one(transport)
        assert self.purged(transport, 1)
        assert list(transport.release([held])) == []
        assert self.take_one(transport).id == held.id

    def test_a_purged_queue_can_be_used_again(self, transport: Transport) -> None:
        transport.send(sent := messages(3))
        transport.purge(QUEUE)
        transport.send(sent[:2])
        assert sorted(ids(self.take(transport, 2))) == sorted(ids(sent[:2]))
        self.assert_empty(transport)

    def test_purged_messages_stay_away_when_their_lease_ended(
        self, transport: Transport, clock: Clock
    ) -> None:
        """Nobody holds them then."""
        self.need(transport, "leases")
        transport.send(messages(2))
        held = self.take(transport, 2, lease=self.span)
        self.let_pass(clock, self.span + 0.1)
        assert self.purged(transport, 2)
        self.assert_empty(transport)
        assert len(list(transport.ack(held))) == 2

    def test_a_waiting_message_is_deleted_by_its_id(
        self, transport: Transport, clock: Clock
    ) -> None:
        self.need(transport, "delete")
        sent = messages(4)
        transport.send(sent)
        first, *rest = sent
        assert list(transport.delete([first.header.id, "unheard-of"])) == ids([first])
        assert list(transport.delete([first.header.id])) == []
        self.assert_counts(transport, ready=3)
        assert sorted(ids(self.receive(transport))) == sorted(ids(rest))

    def test_a_delayed_message_is_deleted_by_its_id(
        self, transport: Transport, clock: Clock
    ) -> None:
        self.need(transport, "delete")
        self.need(transport, "delay")
        since = clock.monotonic()
        sent = messages(2, eta=clock.time() + self.span)
        transport.send(sent)
        assert list(transport.delete(ids(sent[:1]))) == ids(sent[:1])
        self.assert_counts(transport, delayed=1)
        assert self.taken_after(transport, clock, self.span, since).id == sent[1].header.id
        self.assert_empty(transport)

    def test_what_is_held_or_dead_is_not_deleted(self, transport: Transport) -> None:
        self.need(transport, "delete")
        transport.send(messages(2))
        held, dead = self.take(transport, 2)
        transport.bury([(dead, letter(dead))])
        assert list(transport.delete([held.id, dead.id])) == []
        assert transport.dead_letter(dead.id) is not None
        assert list(transport.ack([held])) == []

    def test_a_deleted_id_can_be_sent_again(self, transport: Transport) -> None:
        self.need(transport, "delete")
        transport.send([sent := message()])
        transport.delete([sent.header.id])
        transport.send([message(sent.header.id, frame=b"again")])
        assert bytes(self.take_one(transport).frame) == b"again"
        self.assert_empty(transport)


class Health(TransportSuite):
    def test_it_answers(self, transport: Transport) -> None:
        transport.ping()
        transport.maintain()

    def test_it_tells_about_itself(self, transport: Transport) -> None:
        info = transport.info()
        assert info["transport"] == transport.scheme
        assert info["address"]
        assert info["version"]
        json.dumps(info)

    def test_upkeep_harms_nothing(self, transport: Transport, clock: Clock) -> None:
        transport.send(messages(4))
        held, dead, done = self.take(transport, 3)
        transport.bury([(dead, letter(dead, at=clock.time()))])
        transport.ack([done])
        if transport.capabilities.delay:
            transport.send([message(eta=clock.time() + 1000)])
        before = self.counts(transport, QUEUE)
        for _ in range(3):
            transport.maintain()
        assert self.counts(transport, QUEUE) == before
        assert list(transport.ack([held])) == []

    def test_closing_twice_is_no_error(self, connect: Connect) -> None:
        transport = connect()
        transport.close()
        transport.close()

    def test_an_unused_connection_can_be_closed(self, connect: Connect) -> None:
        connect().close()

    def test_closing_one_connection_leaves_the_others(
        self, transport: Transport, other: Transport
    ) -> None:
        transport.send(messages(2))
        other.ping()
        other.close()
        held = self.take(transport, 2)
        assert list(transport.ack(held)) == []

    def test_another_thread_may_close(self, connect: Connect) -> None:
        transport = connect()
        transport.ping()
        self.in_thread(transport.close).result()
