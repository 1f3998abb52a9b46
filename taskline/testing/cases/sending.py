"""Sending: what is stored, in which order it comes out, and what a second send does."""

from __future__ import annotations

from functools import partial

import pytest

from taskline.clock import Clock
from taskline.message import Message
from taskline.testing.cases.transport import (
    Connect,
    TransportSuite,
    ids,
    letter,
    message,
    messages,
)
from taskline.transports.base import Transport

FRAMES = {
    "empty": b"",
    "newlines": b"\n\n{}\n\r\n\n",
    "nuls": b"\x00\x00a\x00",
    "all bytes": bytes(range(256)),
    "not utf-8": b"\xff\xfe\xc3\x28",
    "quotes": b"'\";--\\%_",
    "a megabyte": bytes(range(256)) * 4096,
}

QUEUES = [
    "очередь",
    "队列/✓",
    "with space",
    "a:b,c*?'\"%_[]{}\\|.#",
    "MAIL",
    "ma%",
    "mai_",
    "x" * 200,
]


class Sending(TransportSuite):
    def test_a_message_arrives_as_it_was_sent(self, transport: Transport) -> None:
        sent = message("order-42/ü", frame=b"the frame")
        transport.send([sent])
        delivery = self.take_one(transport)
        assert delivery.id == "order-42/ü"
        assert delivery.queue == sent.header.queue
        assert bytes(delivery.frame) == b"the frame"
        assert delivery.deliveries == 1
        assert delivery.lost == 0

    def test_a_message_is_received_by_another_connection_after_its_sender_closed(
        self, connect: Connect
    ) -> None:
        sender = connect()
        sent = messages(3)
        sender.send(sent)
        sender.close()
        assert sorted(ids(self.take(connect(), 3))) == sorted(ids(sent))

    def test_all_messages_of_a_batch_are_stored(self, transport: Transport) -> None:
        sent = messages(1000)
        transport.send(sent)
        taken = self.take(transport, 1000)
        assert sorted(ids(taken)) == sorted(ids(sent))
        assert {d.id: bytes(d.frame) for d in taken} == {m.header.id: m.frame for m in sent}
        self.assert_empty(transport)

    def test_many_sends_may_be_under_way(self, transport: Transport) -> None:
        chunks = [messages(100) for _ in range(5)]
        waits = [transport.begin_send(chunk) for chunk in chunks]
        for wait in waits:
            wait()
        sent = [each for chunk in chunks for each in chunk]
        assert sorted(ids(self.take(transport, 500))) == sorted(ids(sent))
        self.assert_empty(transport)

    def test_one_batch_may_go_to_several_queues(self, transport: Transport) -> None:
        sent = [message(queue=queue) for queue in ("a", "b", "a", "c")]
        transport.send(sent)
        assert sorted(ids(self.take(transport, 2, "a"))) == sorted(ids([sent[0], sent[2]]))
        assert ids(self.take(transport, 1, "b")) == [sent[1].header.id]
        assert ids(self.take(transport, 1, "c")) == [sent[3].header.id]

    def test_an_empty_batch_is_no_error(self, transport: Transport) -> None:
        transport.send([])
        transport.begin_send([])()
        assert list(transport.ack([])) == []
        assert list(transport.release([])) == []
        assert list(transport.replace([])) == []
        assert list(transport.extend([], 30)) == []
        assert list(transport.bury([])) == []
        assert list(transport.requeue([])) == []
        assert list(transport.delete([])) == []
        assert transport.purge_dead([]) == 0
        self.assert_empty(transport)

    @pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
    def test_a_frame_is_any_bytes(self, transport: Transport, frame: bytes) -> None:
        transport.send([message(frame=frame), message(frame=b"next")])
        found = sorted(bytes(delivery.frame) for delivery in self.take(transport, 2))
        assert found == sorted([frame, b"next"])

    @pytest.mark.parametrize("queue", QUEUES)
    def test_a_queue_has_any_name(self, transport: Transport, queue: str) -> None:
        self.need(transport, "any_name")
        sent, neighbour = message(queue=queue), message(queue="mail")
        transport.send([neighbour, sent])
        (delivery,) = self.take(transport, 1, queue)
        assert (delivery.id, delivery.queue) == (sent.header.id, queue)
        self.assert_empty(transport, queue)
        self.assert_counts(transport, queue, leased=1)
        assert list(transport.ack([delivery])) == []
        assert ids(self.take(transport)) == [neighbour.header.id]

    def test_any_thread_may_send(self, transport: Transport) -> None:
        batches = [messages(20) for _ in range(8)]

        def send(batch: list[Message]) -> None:
            for each in batch:
                transport.send([each])

        senders = [self.in_thread(partial(send, batch)) for batch in batches]
        for sender in senders:
            sender.result()
        sent = [each for batch in batches for each in batch]
        assert sorted(ids(self.take(transport, len(sent)))) == sorted(ids(sent))


class Ordering(TransportSuite):
    def test_first_in_first_out(self, transport: Transport) -> None:
        self.need(transport, "ordering")
        sent = messages(30)
        transport.send(sent[:10])
        for each in sent[10:20]:
            transport.send([each])
        transport.send(sent[20:])
        assert ids(self.take(transport, 7)) == ids(sent[:7])
        assert ids(self.take(transport, 23)) == ids(sent[7:])

    def test_higher_priorities_first(self, transport: Transport) -> None:
        self.need(transport, "priority")
        sent = [message(priority=priority) for priority in (5, 0, 9, 1, 8, 3, 9, 0)]
        transport.send(sent)
        late = message(priority=7)
        transport.send([late])
        priorities = {each.header.id: each.header.priority for each in [*sent, late]}
        found = [priorities[delivery.id] for delivery in self.take(transport, 9)]
        assert found == [9, 9, 8, 7, 5, 3, 1, 0, 0]

    def test_first_in_first_out_within_each_priority(self, transport: Transport) -> None:
        self.need(transport, "priority")
        self.need(transport, "ordering")
        sent = [message(priority=number % 3) for number in range(30)]
        transport.send(sent)
        expected = sorted(sent, key=lambda each: -each.header.priority)
        assert ids(self.take(transport, 30)) == ids(expected)

    def test_a_later_message_of_higher_priority_overtakes(self, transport: Transport) -> None:
        self.need(transport, "priority")
        low, urgent = messages(3, priority=4), message(priority=6)
        transport.send(low)
        self.take_one(transport)
        transport.send([urgent])
        assert self.take_one(transport).id == urgent.header.id

    def test_a_message_that_came_due_obeys_its_priority(
        self, transport: Transport, clock: Clock
    ) -> None:
        self.need(transport, "priority")
        self.need(transport, "delay")
        since = clock.monotonic()
        due = clock.time() + self.span
        urgent = message(priority=9, eta=due)
        lazy = message(priority=0, eta=due)
        transport.send([lazy, message(), urgent])
        assert self.take_one(transport).id not in ids([lazy, urgent])
        if transport.capabilities.random_access:  # a broker may let them come due one by one
            self.after(clock, self.span, lambda: self.maintained(transport, "ready") == 2, since)
            assert self.take_one(transport).id == urgent.header.id
        else:
            assert self.taken_after(transport, clock, self.span, since).id == urgent.header.id
        transport.send([middle := message(priority=5)])
        assert ids(self.take(transport, 2)) == ids([middle, lazy])


class Delay(TransportSuite):
    def test_a_message_is_not_handed_over_before_its_eta(
        self, transport: Transport, clock: Clock
    ) -> None:
        self.need(transport, "delay")
        since = clock.monotonic()
        sent = message(eta=clock.time() + self.span)
        transport.send([sent])
        delivery = self.taken_after(transport, clock, self.span, since)
        assert delivery.id == sent.header.id
        assert (delivery.deliveries, delivery.lost) == (1, 0)
        self.assert_empty(transport)

    def test_a_message_whose_eta_has_passed_is_due_at_once(
        self, transport: Transport, clock: Clock
    ) -> None:
        sent = [message(eta=clock.time() - 1000), message(eta=0.0)]
        transport.send(sent)
        assert sorted(ids(self.take(transport, 2))) == sorted(ids(sent))

    def test_a_delayed_message_does_not_hold_back_others(
        self, transport: Transport, clock: Clock
    ) -> None:
        self.need(transport, "delay")
        ready = message()
        transport.send([message(priority=9, eta=clock.time() + 1000), ready])
        assert ids(self.take(transport)) == ids([ready])
        self.assert_empty(transport)

    def test_each_comes_due_at_its_own_time(self, transport: Transport, clock: Clock) -> None:
        self.need(transport, "delay")
        since = clock.monotonic()
        now, step = clock.time(), self.span
        third, first, second = (message(eta=now + step * number) for number in (3, 1, 2))
        transport.send([third, first, second])
        for expected in (first, second, third):
            assert self.taken_after(transport, clock, step, since).id == expected.header.id
            since += step


class Idempotence(TransportSuite):
    def again(self, first: Message) -> Message:
        return message(first.header.id, frame=b"a second frame", priority=9)

    def assert_once(self, transport: Transport, first: Message) -> None:
        delivery = self.take_one(transport)
        assert (delivery.id, bytes(delivery.frame)) == (first.header.id, first.frame)
        assert list(transport.ack([delivery])) == []
        self.assert_empty(transport)

    def test_sending_the_id_of_a_waiting_message_changes_nothing(
        self, transport: Transport, other: Transport
    ) -> None:
        self.need(transport, "idempotent")
        first = message()
        transport.send([first])
        transport.send([self.again(first)])
        other.send([message(first.header.id, queue="elsewhere"), self.again(first)])
        self.assert_counts(transport, ready=1)
        self.assert_empty(transport, "elsewhere")
        self.assert_once(transport, first)

    def test_sending_an_id_twice_in_one_batch_stores_the_first(self, transport: Transport) -> None:
        self.need(transport, "idempotent")
        first, neighbour = message(), message(queue="neighbour")
        transport.send([first, self.again(first), neighbour])
        self.assert_once(transport, first)
        assert ids(self.take(transport, 1, "neighbour")) == ids([neighbour])

    def test_sending_the_id_of_a_delayed_message_changes_nothing(
        self, transport: Transport, clock: Clock
    ) -> None:
        self.need(transport, "idempotent")
        self.need(transport, "delay")
        since = clock.monotonic()
        first = message(eta=clock.time() + self.span)
        transport.send([first])
        transport.send([self.again(first)])
        delivery = self.taken_after(transport, clock, self.span, since)
        assert bytes(delivery.frame) == first.frame

    def test_sending_the_id_of_a_held_message_changes_nothing(self, transport: Transport) -> None:
        self.need(transport, "idempotent")
        first = message()
        transport.send([first])
        delivery = self.take_one(transport)
        transport.send([self.again(first)])
        self.assert_empty(transport)
        assert list(transport.ack([delivery])) == []
        self.assert_empty(transport)

    def test_many_senders_of_one_id_store_one_message(
        self, transport: Transport, connect: Connect
    ) -> None:
        self.need(transport, "idempotent")
        sent = messages(20)

        def send(to: Transport) -> None:
            for each in sent:
                to.send([each])

        senders = [self.in_thread(partial(send, connect())) for _ in range(6)]
        for sender in senders:
            sender.result()
        assert sorted(ids(self.take(transport, 20))) == sorted(ids(sent))
        self.assert_empty(transport)

    def test_the_id_of_a_message_that_is_done_can_be_sent_again(self, transport: Transport) -> None:
        first = message()
        transport.send([first])
        transport.ack([self.take_one(transport)])
        transport.send([self.again(first)])
        assert bytes(self.take_one(transport).frame) == b"a second frame"

    def test_the_id_of_a_dead_letter_can_be_sent_again(self, transport: Transport) -> None:
        """Silence would be a lost task: the sender cannot know that a letter is in the way."""
        first = message()
        transport.send([first])
        dead = self.take_one(transport)
        transport.bury([(dead, letter(dead))])
        transport.send([self.again(first)])
        delivery = self.take_one(transport)
        assert bytes(delivery.frame) == b"a second frame"
        assert list(transport.ack([delivery])) == []
