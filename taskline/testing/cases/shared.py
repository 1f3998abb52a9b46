"""Test cases for transports that share their storage with a backend."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from taskline.backends.base import Backend, Revocation
from taskline.clock import Clock
from taskline.message import FAILURE, SUCCESS, Outcome
from taskline.testing.cases.backend import MakeBackend
from taskline.testing.cases.transport import (
    TransportSuite,
    ids,
    message,
    messages,
)
from taskline.transports.base import Transport


class SharedAck(TransportSuite):
    """Only for transports that can store outcomes as they acknowledge."""

    @pytest.fixture
    def backend(
        self, transport: Transport, clock: Clock, make_shared_backend: MakeBackend | None
    ) -> Iterator[Backend]:
        """One that shares the transport's storage."""
        if make_shared_backend is None:
            pytest.skip(f"the {transport.scheme} transport shares no backend here")
        backend = make_shared_backend(clock)
        assert transport.shares(backend)
        yield backend
        backend.close()

    def outcome(self, id: str, state: str = SUCCESS, deliveries: int = 1) -> Outcome:
        return Outcome(id, state, 0.0, deliveries, None, state.encode())

    def test_outcomes_are_stored_with_the_ack_of_what_is_held(
        self, transport: Transport, other: Transport, clock: Clock, backend: Backend
    ) -> None:
        transport.send([message()])
        old, new = self.lose(transport, clock)
        assert ids(transport.ack([old], [self.outcome(old.id, FAILURE)])) == [old.id]
        assert backend.fetch([old.id]) == {}
        assert list(transport.ack([new], [self.outcome(new.id, deliveries=2)])) == []
        assert backend.fetch([new.id])[new.id].state == SUCCESS
        assert list(backend.wait([new.id], 0)) == [new.id]
        self.assert_empty(other)

    def test_what_was_revoked_before_the_handing_over_is_known_then(
        self, transport: Transport, backend: Backend
    ) -> None:
        for number in range(3):
            waiting = self.in_thread(lambda: transport.receive(["mail"], 1, 30, 600, "w"))
            backend.revoke([Revocation(f"{number}")], 600)
            cursor, _ = backend.revoked(0)
            transport.send([message()])
            assert len(waiting.result()) == 1
            newest = transport.newest_revocation
            assert newest is None or newest >= cursor

    def test_a_greater_fence_stays_and_the_message_is_done_all_the_same(
        self, transport: Transport, backend: Backend
    ) -> None:
        transport.send(messages(2))
        first, second = self.take(transport, 2)
        backend.store([self.outcome(first.id, deliveries=7)])
        outcomes = [self.outcome(each.id, FAILURE) for each in (first, second)]
        assert list(transport.ack([first, second], outcomes)) == []
        states = {id: each.state for id, each in backend.fetch([first.id, second.id]).items()}  # noqa: A001
        assert states == {first.id: SUCCESS, second.id: FAILURE}
        self.assert_counts(transport)

    def test_the_one_who_waits_for_an_outcome_is_woken_by_the_ack(
        self, transport: Transport, backend: Backend
    ) -> None:
        transport.send([message()])
        held = self.take_one(transport)
        waiting = self.in_thread(lambda: backend.wait([held.id], 600))
        transport.ack([held], [self.outcome(held.id)])
        assert list(waiting.result()) == [held.id]
