"""Leases while their holder waits for the broker."""

from __future__ import annotations

from itertools import count

import pytest

from taskline.clock import ManualClock
from taskline.kafka.marks import Marks
from taskline.transports.kafka.assignment import Assignment
from taskline.transports.kafka.partition import Partition
from taskline.transports.kafka.records import Entry

LEASE = 10.0


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def assignment(clock: ManualClock) -> Assignment:
    """One message in somebody's hands for a lease."""
    assignment = Assignment("m", clock)
    partition = Partition("t", 0, "q", Marks(0, 0, 0, {}))
    partition.add(Entry(0, "a", b""))
    partition.committed(partition.marks(), 0, [])
    partition.take(1, clock.monotonic() + LEASE, "w", count(), "m")
    assignment.add([partition])
    return assignment


def expire(assignment: Assignment, clock: ManualClock) -> int:
    with assignment.changed:
        return assignment.expire(clock.monotonic())


def test_a_lease_that_is_not_renewed_ends(assignment: Assignment, clock: ManualClock) -> None:
    clock.advance(LEASE - 0.1)
    assert expire(assignment, clock) == 0
    clock.advance(0.2)
    assert expire(assignment, clock) == 1


def test_no_lease_ends_while_who_would_renew_it_waits_for_the_broker(
    assignment: Assignment, clock: ManualClock
) -> None:
    clock.advance(1)
    with assignment.settle():
        clock.advance(3 * LEASE)
        assert expire(assignment, clock) == 0
    clock.advance(LEASE - 1.1)
    assert expire(assignment, clock) == 0, "it stood still meanwhile"
    clock.advance(0.2)
    assert expire(assignment, clock) == 1
