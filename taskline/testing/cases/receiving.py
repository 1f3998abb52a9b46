"""Receiving: limits, the order of queues, waiting, waking, and many workers at once."""

from __future__ import annotations

import threading
from functools import partial

from taskline.clock import SYSTEM_CLOCK, Clock, ManualClock
from taskline.message import Delivery
from taskline.testing.cases.base import Running
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


class Receiving(TransportSuite):
    def test_no_more_than_the_limit(self, transport: Transport) -> None:
        transport.send(messages(5))
        assert 1 <= len(self.until(lambda: self.receive(transport, limit=2))) <= 2
        transport.send(messages(3, "other"))
        assert len(self.receive(transport, ["other", QUEUE], limit=4)) <= 4

    def test_the_queues_are_served_in_the_given_order(self, transport: Transport) -> None:
        first, second = messages(3, "first", priority=1), messages(3, "second", priority=9)
        transport.send([*second, *first])
        taken = self.take(transport, 6, ["first", "second"])
        assert sorted(ids(taken[:3])) == sorted(ids(first))
        transport.send(more := messages(2, "first", priority=1))
        transport.send(messages(2, "second", priority=9))
        assert sorted(ids(self.take(transport, 2, ["first", "second"]))) == sorted(ids(more))

    def test_only_the_named_queues_are_served(self, transport: Transport) -> None:
        transport.send(messages(2, "other"))
        self.assert_empty(transport, [QUEUE, "no-such-queue"])
        self.take(transport, 2, ["no-such-queue", "other"])

    def test_what_is_there_is_returned_without_waiting_for_more(self, transport: Transport) -> None:
        sent = messages(3)
        transport.send(sent)
        taking = self.in_thread(lambda: transport.receive([QUEUE], 10, LONG, LONG, "w"))
        assert ids(taking.result())

    def test_nothing_comes_at_once_without_a_wait(self, transport: Transport) -> None:
        waiting = self.in_thread(lambda: transport.receive([QUEUE], 1, LONG, 0, "w"))
        assert waiting.result() == []

    def test_the_wait_ends(self, transport: Transport, clock: Clock) -> None:
        waiting = self.in_thread(lambda: transport.receive([QUEUE], 1, LONG, self.short, "w"))

        def over() -> bool:
            if isinstance(clock, ManualClock):
                clock.advance(self.short)
            return not waiting.running

        self.until(over)
        assert waiting.result() == []

    def test_a_thousand_are_received_and_done_in_batches(self, transport: Transport) -> None:
        sent = messages(1000)
        transport.send(sent)
        taken = self.take(transport, 1000)
        assert list(transport.extend(taken, LONG)) == []
        assert list(transport.ack(taken)) == []
        self.assert_counts(transport)


class Waking(TransportSuite):
    """A `receive` that waits, on the system's clock: it may have to wait for real."""

    def waiting(self, transport: Transport, *queues: str) -> Running[list[Delivery]]:
        names = queues or [QUEUE]
        return self.in_thread(lambda: transport.receive(names, 10, LONG, LONG, "waiting"))

    def test_a_send_wakes_a_receive_of_another_connection(self, connect: Connect) -> None:
        """Fifty times, there and back: who looks only now and then does not get through."""
        here, there = connect(SYSTEM_CLOCK), connect(SYSTEM_CLOCK)
        self.need(here, "blocking")

        def echo() -> None:
            for _ in range(50):
                (delivery,) = there.receive(["there"], 1, LONG, LONG, "echo")
                there.send([message(queue="back")])
                there.ack([delivery])

        echoing = self.in_thread(echo)
        calling = self.in_thread(
            lambda: [
                (
                    here.send([message(queue="there")]),
                    here.ack(here.receive(["back"], 1, LONG, LONG, "caller")),
                )
                for _ in range(50)
            ]
        )
        calling.result()
        echoing.result()

    def test_a_send_to_any_of_the_queues_ends_the_wait(self, connect: Connect) -> None:
        here, there = connect(SYSTEM_CLOCK), connect(SYSTEM_CLOCK)
        for queue in ("a", "b", "c"):
            waiting = self.waiting(here, "a", "b", "c")
            there.send([sent := message(queue=queue)])
            assert ids(waiting.result()) == ids([sent])

    def test_a_release_ends_the_wait_of_another(self, connect: Connect) -> None:
        here, there = connect(SYSTEM_CLOCK), connect(SYSTEM_CLOCK)
        there.send([message()])
        held = self.take(there, 1)
        waiting = self.waiting(here)
        there.release(held)
        assert ids(waiting.result()) == ids(held)

    def test_a_replacement_ends_the_wait_of_another(self, connect: Connect) -> None:
        here, there = connect(SYSTEM_CLOCK), connect(SYSTEM_CLOCK)
        there.send([message()])
        held = self.take_one(there)
        waiting = self.waiting(here)
        there.replace([(held, message(held.id))])
        assert ids(waiting.result()) == [held.id]

    def test_a_requeue_ends_the_wait_of_another(self, connect: Connect) -> None:
        here, there = connect(SYSTEM_CLOCK), connect(SYSTEM_CLOCK)
        there.send([message()])
        held = self.take_one(there)
        there.bury([(held, letter(held))])
        waiting = self.waiting(here)
        there.requeue([message(held.id)])
        assert ids(waiting.result()) == [held.id]

    def test_a_recovery_ends_the_wait_of_another(self, connect: Connect) -> None:
        here, there = connect(SYSTEM_CLOCK), connect(SYSTEM_CLOCK)
        self.need(here, "leases")
        there.send([message()])
        held = self.take_one(there, consumer="dead")
        waiting = self.waiting(here)
        assert there.recover("dead", []) == 1
        assert ids(waiting.result()) == [held.id]

    def test_a_message_that_comes_due_ends_the_wait(self, connect: Connect) -> None:
        here = connect(SYSTEM_CLOCK)
        self.need(here, "delay")
        sent = message(eta=SYSTEM_CLOCK.time() + 0.3)
        here.send([sent])
        waiting = self.waiting(here)
        assert ids(waiting.result()) == ids([sent])

    def test_a_lease_that_ends_ends_the_wait_of_another(self, connect: Connect) -> None:
        here, there = connect(SYSTEM_CLOCK), connect(SYSTEM_CLOCK)
        self.need(here, "leases")
        there.send([message()])
        held = self.take(there, 1, lease=0.3)
        waiting = self.waiting(here)
        assert ids(waiting.result()) == ids(held)

    def test_an_interrupt_ends_a_wait(self, connect: Connect) -> None:
        here = connect(SYSTEM_CLOCK)
        begun = threading.Event()

        def wait() -> list[Delivery]:
            begun.set()
            return here.receive([QUEUE], 10, LONG, LONG, "waiting")

        for _ in range(20):
            begun.clear()
            waiting = self.in_thread(wait)
            assert begun.wait(self.bound)
            here.interrupt()
            assert waiting.result() == []

    def test_an_interrupt_before_a_receive_makes_it_return_early(self, connect: Connect) -> None:
        here, there = connect(SYSTEM_CLOCK), connect(SYSTEM_CLOCK)
        here.interrupt()
        waiting = self.waiting(here)
        assert waiting.result() == []
        # It is spent then: the next one waits until there is something.
        waiting = self.waiting(here)
        there.send([sent := message()])
        assert ids(waiting.result()) == ids([sent])

    def test_an_interrupt_loses_no_message(self, connect: Connect) -> None:
        here = connect(SYSTEM_CLOCK)
        here.send(sent := messages(3))
        here.interrupt()
        taken: list[Delivery] = []
        while len(taken) < 3:
            taken.extend(self.waiting(here).result())
        assert sorted(ids(taken)) == sorted(ids(sent))

    def test_an_interrupt_reaches_its_own_connection_only(self, connect: Connect) -> None:
        here, there = connect(SYSTEM_CLOCK), connect(SYSTEM_CLOCK)
        there.interrupt()
        waiting = self.waiting(here)
        there.send([sent := message()])
        assert ids(waiting.result()) == ids([sent])


class Crowds(TransportSuite):
    def test_no_two_workers_get_the_same_message(self, connect: Connect) -> None:
        """While senders send, workers take; each message is handed over once."""
        total, workers, senders = self.crowd, 4, 2
        sent = messages(total)
        taken: list[Delivery] = []
        lock, full = threading.Lock(), threading.Event()

        def work(transport: Transport, name: str) -> None:
            while not full.is_set():
                batch = transport.receive([QUEUE], 7, LONG, 0.05, name)
                assert list(transport.ack(batch)) == []
                with lock:
                    taken.extend(batch)
                    if len(taken) >= total:
                        full.set()

        def send(transport: Transport, part: int) -> None:
            for at in range(part, total, senders * 5):
                transport.send(sent[at : at + senders * 5 : senders])

        running = [
            self.in_thread(partial(send, connect(SYSTEM_CLOCK), part)) for part in range(senders)
        ]
        running += [
            self.in_thread(partial(work, connect(SYSTEM_CLOCK), f"w{n}")) for n in range(workers)
        ]
        try:
            assert full.wait(self.bound), f"{len(taken)} of {total} arrived"
        finally:
            full.set()
        for each in running:
            each.result()
        assert sorted(ids(taken)) == sorted(ids(sent))
        assert {delivery.deliveries for delivery in taken} == {1}
        self.assert_empty(connect(SYSTEM_CLOCK))

    def test_every_message_survives_workers_that_fail(self, connect: Connect) -> None:
        """Workers give back, try again, bury and die; each message is done exactly once."""
        total = self.crowd // 4
        keeper = connect(SYSTEM_CLOCK)
        keeper.send(sent := messages(total))
        done: list[str] = []
        dead: list[str] = []
        lock, full = threading.Lock(), threading.Event()

        def work(transport: Transport, name: str) -> None:
            turn = 0
            while not full.is_set():
                batch = transport.receive([QUEUE], 5, LONG, 0.05, name)
                if not batch:
                    continue
                turn += 1
                first, *rest = batch
                if turn % 4 == 0 and transport.capabilities.leases:
                    assert transport.recover(name, [first.id]) == len(batch)
                    assert len(list(transport.ack(batch))) == len(batch)
                    continue
                if turn % 4 == 1:
                    assert list(transport.release([first])) == []
                elif turn % 4 == 2:
                    assert list(transport.replace([(first, message(first.id))])) == []
                elif first.deliveries > 2:
                    assert list(transport.bury([(first, letter(first))])) == []
                    with lock:
                        dead.append(first.id)
                else:
                    rest = batch
                assert list(transport.ack(rest)) == []
                with lock:
                    done.extend(ids(rest))
                    if len(done) + len(dead) >= total:
                        full.set()

        workers = [self.in_thread(partial(work, connect(SYSTEM_CLOCK), f"w{n}")) for n in range(4)]
        try:
            assert full.wait(self.bound), f"{len(done)} done, {len(dead)} dead of {total}"
        finally:
            full.set()
        for each in workers:
            each.result()
        assert sorted(done + dead) == sorted(ids(sent))
        assert sorted(ids(keeper.dead_letters(limit=total))) == sorted(dead)
        self.assert_empty(keeper)
