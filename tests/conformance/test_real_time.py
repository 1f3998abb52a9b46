"""The suites as they run over a server with a clock of its own: here time really passes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from taskline.backends.memory import MemoryBackend
from taskline.clock import Clock
from taskline.testing.backend_suite import BackendConformance
from taskline.testing.cases import fencing, leases, looking, receiving, sending
from taskline.transports.memory import MemoryTransport


class TestMemoryTransport(
    sending.Delay,
    receiving.Receiving,
    leases.Leases,
    fencing.Fencing,
    looking.Stats,
    looking.Health,
):
    """The cases that let time pass, or that could mistake its passing for something else."""

    manual_clock = False
    short = 0.5

    # These wait for six leases each and differ in nothing that has to do with time.
    test_a_delivery_that_another_worker_has_now_can_do_nothing = None
    test_a_late_worker_does_not_disturb_the_one_that_took_over = None
    test_an_ended_lease_that_nobody_took_over_is_refused_or_honoured = None
    test_of_a_batch_only_what_was_lost_is_refused = None

    @pytest.fixture
    def make_transport(self, taskline_memory: str) -> Callable[[Clock], MemoryTransport]:
        return lambda clock: MemoryTransport.from_spec(taskline_memory, clock)


class TestMemoryBackend(BackendConformance):
    manual_clock = False
    short = 0.5

    @pytest.fixture
    def make_backend(self, taskline_memory: str) -> Callable[[Clock], MemoryBackend]:
        return lambda clock: MemoryBackend.from_spec(taskline_memory, clock)
