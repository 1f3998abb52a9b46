"""What the conformance suite does not ask of every transport."""

from __future__ import annotations

import os

import pytest

from taskline.clock import Clock, ManualClock
from taskline.errors import TransportError
from taskline.testing.cases.transport import ids, letter, message, messages
from taskline.transports import memory, open_transport
from taskline.transports.memory import MemoryTransport

LEASE = 30.0


@pytest.fixture
def transport(taskline_memory: str, taskline_clock: ManualClock) -> MemoryTransport:
    found = open_transport(taskline_memory, clock=taskline_clock)
    assert isinstance(found, MemoryTransport)
    return found


def take(transport: MemoryTransport, limit: int = 1000, lease: float = LEASE):
    return transport.receive(["mail"], limit, lease, 0, "worker")


class SetByHand(Clock):
    """A wall clock that somebody sets while the monotonic one goes on."""

    wall = 1000.0
    ticks = 0.0

    def time(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.ticks


def test_setting_the_wall_clock_ends_no_lease(taskline_memory: str) -> None:
    clock = SetByHand()
    transport = open_transport(taskline_memory, clock=clock)
    transport.send([message()])
    (held,) = take(transport)
    clock.wall += 1e6
    assert take(transport) == []
    assert transport.peek("mail")[0].due == clock.wall + LEASE
    clock.ticks += LEASE + 1
    assert ids(take(transport)) == [held.id]


def test_transports_of_one_name_see_the_same_messages(taskline_memory: str) -> None:
    one, two = open_transport(taskline_memory), open_transport(taskline_memory)
    one.send([sent := message()])
    one.close()
    assert ids(take(two)) == ids([sent])
    assert take(open_transport(taskline_memory + "-other")) == []
    memory.forget(taskline_memory.partition("://")[2] + "-other")


def test_a_name_that_was_forgotten_begins_empty(taskline_memory: str) -> None:
    open_transport(taskline_memory).send([message()])
    memory.forget(taskline_memory.partition("://")[2])
    assert take(open_transport(taskline_memory)) == []


def test_a_child_process_begins_without_messages(taskline_memory: str) -> None:
    """Else parent and child would run the same tasks, or wait for a lock nobody holds."""
    transport = open_transport(taskline_memory)
    transport.send([message()])
    with transport._store.changed:
        child = os.fork()
        if not child:
            os._exit(len(take(open_transport(taskline_memory))))
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert len(take(transport)) == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda transport: transport.send([message()]),
        lambda transport: take(transport),
        lambda transport: transport.ack([]),
        lambda transport: transport.stats(),
        lambda transport: transport.ping(),
    ],
)
def test_a_closed_transport_refuses(transport: MemoryTransport, call) -> None:
    transport.close()
    with pytest.raises(TransportError, match="is closed: open another") as caught:
        call(transport)
    assert not caught.value.retryable


def test_short_work_under_long_leases_leaves_nothing_behind(transport: MemoryTransport) -> None:
    store = transport._store
    for _ in range(50):
        transport.send(messages(100))
        transport.ack(take(transport, lease=1e6))
    assert (len(store.entries), len(store.leases)) == (0, 0)
    assert len(store.timers) < 1200
    assert [
        len(lane.fresh) for queue in store.queues.values() for lane in queue.lanes.values()
    ] == [0]


def test_renewals_leave_nothing_behind(
    transport: MemoryTransport, taskline_clock: ManualClock
) -> None:
    transport.send(messages(10))
    held = take(transport)
    for turn in range(1000):
        transport.extend(held, 5.0 if turn % 2 else 100.0)
        taskline_clock.advance(1.0)
    assert transport.ack(held) == []
    assert len(transport._store.timers) < 1100


def test_the_bytes_of_a_deleted_message_are_given_back(
    transport: MemoryTransport, taskline_clock: ManualClock
) -> None:
    later = messages(3, eta=taskline_clock.time() + 1e6, frame=b"x" * 1000)
    transport.send(later)
    transport.delete(ids(later))
    assert [entry.frame for _, _, entry in transport._store.delayed] == [b"", b"", b""]


def test_a_letter_keeps_its_order_when_many_came_at_one_time(transport: MemoryTransport) -> None:
    transport.send(messages(5))
    held = take(transport)
    transport.bury([(each, letter(each, at=1.0)) for each in held])
    assert ids(transport.dead_letters()) == ids(held)[::-1]


def test_a_message_brings_its_deliveries_along(transport: MemoryTransport) -> None:
    """One that was stored elsewhere before goes on counting from there."""
    moved = message()
    moved.header.deliveries = 4
    transport.send([moved])
    assert [each.deliveries for each in take(transport)] == [5]


def test_it_shares_no_backend(transport: MemoryTransport, taskline_memory: str) -> None:
    from taskline.backends import open_backend

    assert not transport.shares(open_backend(taskline_memory))


def test_it_tells_what_it_holds(transport: MemoryTransport, taskline_memory: str) -> None:
    transport.send(messages(3))
    (dead,) = take(transport, 1)
    transport.bury([(dead, letter(dead))])
    info = transport.info()
    assert (info["address"], info["messages"], info["dead"]) == (taskline_memory, 2, 1)
    assert transport.capabilities.durable is False
