"""Dead letters: kept with their reason and bytes, listed, sent again, purged."""

from __future__ import annotations

from functools import partial

from taskline.clock import Clock
from taskline.message import DeadLetter, Delivery
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


class DeadLetters(TransportSuite):
    def buried(
        self, transport: Transport, clock: Clock, number: int = 1, queue: str = QUEUE
    ) -> list[Delivery]:
        """Messages that were buried one after another, a second apart."""
        transport.send(messages(number, queue))
        taken = self.take(transport, number, queue)
        for seconds, each in enumerate(taken):
            at = clock.time() + seconds
            assert list(transport.bury([(each, letter(each, at=at))])) == []
        return taken

    def test_a_dead_letter_is_kept_as_it_was_written(
        self, transport: Transport, other: Transport, clock: Clock
    ) -> None:
        frame = b"\x00\xff\n not a frame \r\n"
        transport.send([message("order-42/ü", frame=frame)])
        held = self.take_one(transport)
        written = DeadLetter(
            id=held.id,
            queue=QUEUE,
            reason="cannot be decoded: «ü»",
            at=clock.time(),
            task="shop.send_receipt",
            worker="host:1234",
            attempt=3,
            deliveries=held.deliveries,
            traceback="Traceback …\n  line 2\n",
            frame=held.frame,
        )
        assert list(transport.bury([(held, written)])) == []
        assert other.dead_letter(held.id) == written
        assert other.dead_letters() == [written]
        assert bytes(other.dead_letters(QUEUE)[0].frame) == frame

    def test_a_dead_letter_is_not_handed_over(self, transport: Transport, clock: Clock) -> None:
        self.buried(transport, clock)
        self.assert_empty(transport)
        self.let_pass(clock, self.span)
        self.assert_empty(transport)
        self.assert_counts(transport, dead=1)

    def test_a_batch_is_buried_in_one_call(self, transport: Transport) -> None:
        transport.send(messages(100))
        held = self.take(transport, 100)
        assert list(transport.bury([(each, letter(each)) for each in held])) == []
        assert sorted(ids(transport.dead_letters(limit=1000))) == sorted(ids(held))

    def test_the_newest_comes_first(self, transport: Transport, clock: Clock) -> None:
        buried = ids(self.buried(transport, clock, 5))
        assert ids(transport.dead_letters()) == buried[::-1]

    def test_they_are_listed_in_pages(self, transport: Transport, clock: Clock) -> None:
        buried = ids(self.buried(transport, clock, 5))[::-1]
        assert ids(transport.dead_letters(limit=2)) == buried[:2]
        assert ids(transport.dead_letters(limit=2, offset=2)) == buried[2:4]
        assert ids(transport.dead_letters(QUEUE, limit=2, offset=4)) == buried[4:]
        assert transport.dead_letters(offset=5) == []

    def test_they_are_listed_by_queue(self, transport: Transport, clock: Clock) -> None:
        here = ids(self.buried(transport, clock, 2))
        there = ids(self.buried(transport, clock, 3, "other"))
        assert ids(transport.dead_letters(QUEUE)) == here[::-1]
        assert ids(transport.dead_letters("other")) == there[::-1]
        assert sorted(ids(transport.dead_letters())) == sorted(here + there)
        assert transport.dead_letters("no-such-queue") == []
        self.assert_counts(transport, "other", dead=3)

    def test_an_unknown_id_has_none(self, transport: Transport, clock: Clock) -> None:
        self.buried(transport, clock)
        transport.send([alive := message()])
        assert transport.dead_letter("unheard-of") is None
        assert transport.dead_letter(alive.header.id) is None

    def test_a_second_burial_of_an_id_replaces_the_first(self, transport: Transport) -> None:
        transport.send([message("twice")])
        first = self.take_one(transport)
        transport.bury([(first, letter(first, reason="first", at=1.0))])
        transport.requeue([message("twice")])
        second = self.take_one(transport)
        transport.bury([(second, letter(second, reason="second", at=2.0))])
        assert [each.reason for each in transport.dead_letters()] == ["second"]

    def test_a_requeued_message_is_handed_over_again(
        self, transport: Transport, other: Transport, clock: Clock
    ) -> None:
        (buried,) = self.buried(transport, clock)
        again = message(buried.id, frame=b"attempt 1 again")
        assert other.requeue([again]) == [buried.id]
        assert transport.dead_letters() == []
        assert transport.dead_letter(buried.id) is None
        delivery = self.take_one(transport)
        assert (delivery.id, bytes(delivery.frame)) == (buried.id, b"attempt 1 again")
        assert delivery.deliveries == buried.deliveries + 1
        assert list(transport.ack([delivery])) == []
        self.assert_counts(transport)

    def test_a_requeued_message_has_not_been_lost_before(
        self, transport: Transport, clock: Clock
    ) -> None:
        """Else poison that was sent again by hand would be buried at once."""
        transport.send([message()])
        _, held = self.lose(transport, clock)
        transport.bury([(held, letter(held))])
        transport.requeue([message(held.id)])
        again = self.take_one(transport)
        assert (again.deliveries, again.lost) == (held.deliveries + 1, 0)

    def test_a_requeued_message_has_its_own_queue_and_eta(
        self, transport: Transport, clock: Clock
    ) -> None:
        self.need(transport, "delay")
        (buried,) = self.buried(transport, clock, 1, "other")
        since = clock.monotonic()
        transport.requeue([message(buried.id, QUEUE, eta=clock.time() + self.span)])
        self.assert_counts(transport, "other")
        assert self.taken_after(transport, clock, self.span, since).id == buried.id

    def test_only_what_has_a_dead_letter_is_requeued(
        self, transport: Transport, clock: Clock
    ) -> None:
        dead = ids(self.buried(transport, clock, 2))
        wanted = [message("unheard-of"), message(dead[1]), message("nor-this")]
        assert transport.requeue(wanted) == [dead[1]]
        assert self.take_one(transport).id == dead[1]
        self.assert_empty(transport)
        assert transport.requeue([message(dead[1])]) == []
        assert ids(transport.dead_letters()) == [dead[0]]

    def test_of_many_who_requeue_one_succeeds(
        self, connect: Connect, transport: Transport, clock: Clock
    ) -> None:
        dead = ids(self.buried(transport, clock, self.contested))

        def requeue(through: Transport) -> list[str]:
            return [id for each in dead for id in through.requeue([message(each)])]  # noqa: A001

        running = [self.in_thread(partial(requeue, connect())) for _ in range(4)]
        requeued = [id for each in running for id in each.result()]  # noqa: A001
        assert sorted(requeued) == sorted(dead)
        assert sorted(ids(self.take(transport, len(dead)))) == sorted(dead)
        self.assert_empty(transport)

    def test_purging_deletes_those_that_are_named(self, transport: Transport, clock: Clock) -> None:
        dead = ids(self.buried(transport, clock, 3))
        assert transport.purge_dead([dead[0], "unheard-of", dead[2]]) == 2
        assert transport.purge_dead(dead[:1]) == 0
        assert ids(transport.dead_letters()) == [dead[1]]
        self.assert_counts(transport, dead=1)
        assert transport.requeue([message(dead[0])]) == []

    def test_purging_dead_letters_leaves_messages(self, transport: Transport, clock: Clock) -> None:
        transport.send(sent := messages(2))
        assert transport.purge_dead(ids(sent)) == 0
        assert sorted(ids(self.take(transport, 2))) == sorted(ids(sent))

    def test_a_message_in_the_way_does_not_cost_the_letter_its_place(
        self, transport: Transport, clock: Clock
    ) -> None:
        """Somebody sent the id anew; requeueing the letter then leaves one message."""
        self.need(transport, "idempotent")
        (buried,) = self.buried(transport, clock)
        transport.send([message(buried.id, frame=b"new")])
        assert transport.requeue([message(buried.id, frame=b"old")]) == [buried.id]
        assert transport.dead_letters() == []
        assert self.take_one(transport).id == buried.id
        if transport.capabilities.idempotent:
            self.assert_empty(transport)
