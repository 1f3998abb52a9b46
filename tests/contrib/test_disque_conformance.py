"""What of the conformance suite Disque can keep, on the stand-in for a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

pytest.importorskip("redis", reason="redis-py is not installed: pip install 'taskline[disque]'")

from disque_server import DisqueServer

from taskline.clock import Clock
from taskline.testing.transport_suite import TransportConformance
from taskline_contrib.disque import DisqueTransport

RETRY = 240
"""Seconds: the suite holds messages for up to 600, and renews them as a worker does."""

ONE_LENGTH = "every lease ends after RETRY, whatever it was asked for"
NOBODY_HOLDS = "Disque does not know who holds a job: recover() hands nothing back"
NO_ID = "Disque has ids of its own: a second send of an id is a second message"
UNKNOWN = "Disque knows a queue from its first ready message on"

NOT_KEPT = {
    "test_a_delivery_that_was_recovered_is_refused": NOBODY_HOLDS,
    "test_a_consumer_of_any_name": NOBODY_HOLDS,
    "test_a_lease_that_ends_ends_the_wait_of_another": ONE_LENGTH,
    "test_a_message_in_the_way_does_not_cost_the_letter_its_place": NO_ID,
    "test_a_recovery_ends_the_wait_of_another": NOBODY_HOLDS,
    "test_a_renewed_lease_ends_later": ONE_LENGTH,
    "test_all_queues_with_something_in_them_are_known_sorted": UNKNOWN,
    "test_all_that_a_dead_consumer_held_is_handed_back_at_once": NOBODY_HOLDS,
    "test_each_comes_due_at_its_own_time": ONE_LENGTH,
    "test_every_message_survives_workers_that_fail": NOBODY_HOLDS,
    "test_histories_agree_with_the_model": ONE_LENGTH,
    "test_losses_add_up": NOBODY_HOLDS,
    "test_many_at_once": NOBODY_HOLDS,
    "test_nothing_is_recovered_twice": NOBODY_HOLDS,
    "test_of_a_batch_only_what_was_lost_is_refused": ONE_LENGTH,
    "test_only_what_was_begun_counts_as_lost": NOBODY_HOLDS,
    "test_other_consumers_keep_what_they_hold": NOBODY_HOLDS,
    "test_purging_a_queue_leaves_what_is_held_and_what_is_dead": ONE_LENGTH,
    "test_the_deliveries_of_a_message_only_ever_grow": NOBODY_HOLDS,
    "test_what_is_done_outlives_the_connection": NOBODY_HOLDS,
    "test_what_is_held_is_shown_with_the_end_of_its_lease": ONE_LENGTH,
}


class TestDisqueTransport(TransportConformance):
    crowd = 200

    @pytest.fixture(autouse=True)
    def _not_kept(self, request: pytest.FixtureRequest) -> None:
        if reason := NOT_KEPT.get(request.node.originalname):
            pytest.skip(reason)

    @property
    def span(self) -> float:
        return float(RETRY)

    @pytest.fixture
    def make_transport(self) -> Iterator[Callable[[Clock], DisqueTransport]]:
        servers: dict[type, DisqueServer] = {}

        def make(clock: Clock) -> DisqueTransport:
            server = servers.get(type(clock))
            if server is None:
                server = servers[type(clock)] = DisqueServer(clock)
            return DisqueTransport(f"127.0.0.1:{server.port}", clock, retry=RETRY)

        yield make
        for each in servers.values():
            each.close()


def test_what_is_not_kept_is_part_of_the_suite() -> None:
    assert all(hasattr(TransportConformance, name) for name in NOT_KEPT)
