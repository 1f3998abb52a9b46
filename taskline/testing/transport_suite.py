"""The conformance suite for transports, for those who write one.

    class TestPigeon(TransportConformance):
        @pytest.fixture
        def make_transport(self, tmp_path):
            return lambda clock: PigeonTransport(tmp_path / "coop", clock)

Each sentence of `taskline.transports.base` is a test; what the transport declares
it has not (its `capabilities`) is skipped, with the reason. `docs/testing.md` tells more.
"""

from __future__ import annotations

from typing import ClassVar

import pytest

from taskline.clock import Clock, ManualClock
from taskline.testing.cases import dead, fencing, leases, looking, receiving, sending, shared
from taskline.testing.cases.transport import MakeTransport, TransportSuite


class Histories(TransportSuite):
    """Random histories, compared with a model: `taskline.testing.transport_machine`."""

    histories: ClassVar[int] = 100
    steps: ClassVar[int] = 40
    shrink: ClassVar[bool] = True
    """Whether to look for the shortest history that fails, which may take a minute."""

    def test_histories_agree_with_the_model(
        self, make_transport: MakeTransport, clock: Clock
    ) -> None:
        if not isinstance(clock, ManualClock):
            pytest.skip("needs a store whose time is moved by hand")
        connection = make_transport(clock)
        connection.close()
        self.need(connection, "leases")
        hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed")
        from hypothesis.stateful import run_state_machine_as_test

        from taskline.testing.transport_machine import transport_machine

        run_state_machine_as_test(
            transport_machine(make_transport, clock),
            settings=hypothesis.settings(
                max_examples=self.histories,
                stateful_step_count=self.steps,
                deadline=None,
                database=None,
                report_multiple_bugs=False,
                suppress_health_check=list(hypothesis.HealthCheck),
                phases=[
                    phase
                    for phase in hypothesis.Phase
                    if self.shrink or phase is not hypothesis.Phase.shrink
                ],
            ),
        )


class TransportConformance(
    sending.Sending,
    sending.Ordering,
    sending.Delay,
    sending.Idempotence,
    receiving.Receiving,
    receiving.Waking,
    receiving.Crowds,
    leases.Leases,
    leases.Connections,
    fencing.Fencing,
    leases.Release,
    leases.Replace,
    leases.Recovery,
    dead.DeadLetters,
    looking.Stats,
    looking.Peek,
    looking.Removal,
    looking.Health,
    shared.SharedAck,
    Histories,
):
    """Subclass it as `Test…` and override the fixture `make_transport`."""
