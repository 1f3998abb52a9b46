from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest

from taskline.clock import Clock, ManualClock
from taskline.errors import ConfigurationError, TransportError
from taskline.message import Delivery
from taskline.testing.cases.transport import ids, message, messages
from taskline.testing.faults import CALLS, KINDS, Fault, FaultPlan, FaultyTransport
from taskline.testing.transport_suite import TransportConformance
from taskline.transports import open_transport
from taskline.transports.memory import MemoryTransport

LONG = 600.0


class TestWithoutFaults(TransportConformance):
    """With nothing planned it is the transport that it wraps."""

    histories = 20

    @pytest.fixture
    def make_transport(self, taskline_memory: str) -> Callable[[Clock], FaultyTransport]:
        plan = FaultPlan(1, rate=0.0)
        return lambda clock: FaultyTransport(
            MemoryTransport.from_spec(taskline_memory, clock), plan
        )


@pytest.fixture
def inner(taskline_memory: str, taskline_clock: ManualClock) -> MemoryTransport:
    found = open_transport(taskline_memory, clock=taskline_clock)
    assert isinstance(found, MemoryTransport)
    return found


def faulty(inner: MemoryTransport, *faults: Fault) -> FaultyTransport:
    plan = FaultPlan.exactly({(fault.call, fault.number): fault.kind for fault in faults})
    return FaultyTransport(inner, plan)


def take(transport: MemoryTransport | FaultyTransport, limit: int = 100) -> list[Delivery]:
    return transport.receive(["mail"], limit, LONG, 0, "worker")


def test_a_call_that_fails_before_has_no_effect(inner: MemoryTransport) -> None:
    transport = faulty(inner, Fault("send", 2, "before"))
    transport.send([first := message()])
    with pytest.raises(TransportError, match=r"send no\. 2 did not take effect") as caught:
        transport.send([message()])
    assert caught.value.retryable
    assert ids(take(inner)) == ids([first])


def test_a_call_that_fails_after_has_its_effect(inner: MemoryTransport) -> None:
    transport = faulty(inner, Fault("send", 1, "after"), Fault("ack", 1, "after"))
    with pytest.raises(TransportError, match="took effect all the same"):
        transport.send([sent := message()])
    held = take(transport)
    assert ids(held) == ids([sent])
    with pytest.raises(TransportError):
        transport.ack(held)
    assert transport.ack(held) == held


def test_what_a_failed_receive_took_comes_back_when_its_lease_ends(
    inner: MemoryTransport, taskline_clock: ManualClock
) -> None:
    transport = faulty(inner, Fault("receive", 1, "after"))
    transport.send([message()])
    with pytest.raises(TransportError):
        take(transport)
    assert take(transport) == []
    taskline_clock.advance(LONG + 1)
    assert [each.lost for each in take(transport)] == [1]


def test_a_send_that_happens_twice(inner: MemoryTransport) -> None:
    transport = faulty(inner, Fault("send", 1, "twice"))
    transport.send(sent := messages(3))
    assert sorted(ids(take(transport))) == sorted(ids(sent))
    assert take(transport) == []


def test_a_lease_that_ends_early(inner: MemoryTransport) -> None:
    transport = faulty(inner, Fault("receive", 1, "lease"))
    transport.send([message()])
    (old,) = take(transport)
    (new,) = take(transport)
    assert (new.id, new.lost) == (old.id, 1)
    assert transport.ack([old]) == [old]
    assert transport.ack([new]) == []


def test_a_delay_moves_the_clock(inner: MemoryTransport, taskline_clock: ManualClock) -> None:
    plan = FaultPlan.exactly({("receive", 2): "delay"})
    transport = FaultyTransport(inner, plan, delay=5.0)
    before = taskline_clock.time()
    take(transport)
    assert taskline_clock.time() == before
    take(transport)
    assert taskline_clock.time() == before + 5.0


def test_a_delay_sleeps_on_the_clock_of_the_transport() -> None:
    class Sleeper(Clock):
        slept = 0.0

        def sleep(self, seconds: float) -> None:
            self.slept += seconds

    clock = Sleeper()
    plan = FaultPlan.exactly({("send", 1): "delay"})
    FaultyTransport(MemoryTransport("sleeper", clock), plan, delay=3.0).send([])
    assert clock.slept == 3.0


def test_what_happened_is_told(inner: MemoryTransport) -> None:
    planned = [Fault("send", 1, "twice"), Fault("send", 3, "before")]
    transport = faulty(inner, *planned)
    transport.send([message()])
    transport.send([message()])
    with pytest.raises(TransportError):
        transport.send([message()])
    assert transport.faults == planned
    assert transport.info()["faults"] == 2


def test_one_seed_plans_the_same_faults_each_time() -> None:
    calls = [(call, number) for call in CALLS for number in range(1, 200)]
    first = [FaultPlan(7, rate=0.3).fault(*call) for call in calls]
    assert first == [FaultPlan(7, rate=0.3).fault(*call) for call in reversed(calls)][::-1]
    assert first != [FaultPlan(8, rate=0.3).fault(*call) for call in calls]
    assert set(first) == {None, *KINDS}
    assert 0.2 < sum(kind is not None for kind in first) / len(calls) < 0.4


def test_a_plan_keeps_to_its_kinds_and_calls() -> None:
    plan = FaultPlan(7, rate=1.0, kinds=["before", "twice"], calls=["send", "ack"])
    kinds = {call: {plan.fault(call, number) for number in range(50)} for call in CALLS}
    assert kinds.pop("send") == {"before", "twice"}
    assert kinds.pop("ack") == {"before"}
    assert set.union(*kinds.values()) == {None}


def test_it_opens_from_a_mapping(taskline_memory: str, taskline_clock: ManualClock) -> None:
    transport = open_transport(
        {
            "type": "taskline.testing.faults:FaultyTransport",
            "inner": taskline_memory,
            "seed": 3,
            "rate": 0.5,
        },
        clock=taskline_clock,
    )
    assert isinstance(transport, FaultyTransport)
    assert isinstance(transport.inner, MemoryTransport)
    assert (transport.plan.seed, transport.plan.rate) == (3, 0.5)
    assert transport.clock is transport.inner.clock is taskline_clock


def test_a_mapping_without_inner_says_what_is_missing() -> None:
    with pytest.raises(ConfigurationError, match="needs 'inner'"):
        open_transport({"type": "taskline.testing.faults:FaultyTransport"})


@pytest.mark.parametrize("seed", range(8))
def test_every_message_survives_a_worker_that_repeats_what_failed(
    seed: int, inner: MemoryTransport, taskline_clock: ManualClock
) -> None:
    """At least once: a producer and a worker that try again lose nothing, whatever fails."""
    transport = FaultyTransport(inner, FaultPlan(seed, rate=0.4))
    sent = messages(60)
    done: list[str] = []
    perhaps: set[str] = set()

    for at in range(0, 60, 5):
        stored = False
        while not stored:
            with suppress(TransportError):
                transport.send(sent[at : at + 5])
                stored = True
    for _ in range(1000):
        held: list[Delivery] = []
        try:
            held = transport.receive(["mail"], 7, 30.0, 0, "worker")
            lost = transport.ack(held)
            done += [each.id for each in held if each not in lost]
        except TransportError:
            perhaps.update(ids(held))
        taskline_clock.advance(1.0)
        (left,) = inner.stats(["mail"])
        if not left.ready and not left.leased:
            break
    assert (left.ready, left.leased) == (0, 0)
    assert len(done) == len(set(done))
    assert set(done) | perhaps == set(ids(sent))
    assert transport.faults
