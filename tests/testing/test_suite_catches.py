"""The conformance suites fail on wrong transports and backends, each in the test made for it."""

from __future__ import annotations

import inspect
from itertools import product
from typing import Any

import pytest

from taskline.backends.memory import MemoryBackend
from taskline.clock import ManualClock
from taskline.message import new_id
from taskline.testing.backend_suite import BackendConformance
from taskline.testing.transport_suite import TransportConformance
from taskline.transports.memory import MemoryTransport

from . import planted as bug

TRANSPORT_BUGS = {
    bug.AcksWhatItLost: "test_a_late_worker_does_not_disturb_the_one_that_took_over",
    bug.SaysNothingOfWhatItLost: "test_a_delivery_serves_once",
    bug.ReleasesWhatItLost: "test_a_late_worker_does_not_disturb_the_one_that_took_over",
    bug.ExtendsForTheNewHolder: "test_a_delivery_that_another_worker_has_now_can_do_nothing",
    bug.BuriesWhatItLost: "test_a_delivery_that_another_worker_has_now_can_do_nothing",
    bug.StoresTheSuccessorOfWhatItLost: "test_a_delivery_serves_once",
    bug.StopsAtTheFirstLost: "test_of_a_batch_only_what_was_lost_is_refused",
    bug.TakesTheCountForAReceipt: "test_a_delivery_of_a_former_message_of_this_id_is_refused",
    bug.TrustsTheIdOfAReceipt: "test_the_receipt_is_what_proves_a_delivery",
    bug.HandsOverTwice: "test_no_two_workers_get_the_same_message",
    bug.CountsAReleaseAsLost: "test_what_is_given_back_is_there_for_another",
    bug.ReleasesToTheEndOfTheLine: "test_it_keeps_its_place",
    bug.ReleasesAtOnceThoughToldLater: "test_it_may_be_due_later",
    bug.ForgetsWhatItReleases: "test_every_message_survives_workers_that_fail",
    bug.DoesNotCountEndedLeases: "test_each_lease_lost_is_counted",
    bug.CountsEndedLeasesTwice: "test_each_lease_lost_is_counted",
    bug.LeasesNeverEnd: "test_a_held_message_is_not_handed_over_until_its_lease_ends",
    bug.LeasesEndEarly: "test_a_held_message_is_not_handed_over_until_its_lease_ends",
    bug.ExtendsFromTheOldEnd: "test_a_renewal_counts_from_now_and_may_shorten",
    bug.ExtendsNothing: "test_a_lease_renewed_again_and_again_never_ends",
    bug.RestartsTheCountOfASuccessor: "test_the_deliveries_of_a_message_only_ever_grow",
    bug.KeepsTheLossesOfASuccessor: "test_losses_are_forgotten",
    bug.RecoversEverybody: "test_other_consumers_keep_what_they_hold",
    bug.CountsAllItRecovers: "test_only_what_was_begun_counts_as_lost",
    bug.CountsNothingItRecovers: "test_only_what_was_begun_counts_as_lost",
    bug.DeliversEarly: "test_a_message_is_not_handed_over_before_its_eta",
    bug.NeverDeliversWhatWasDelayed: "test_a_message_is_not_handed_over_before_its_eta",
    bug.LowestPriorityFirst: "test_higher_priorities_first",
    bug.IgnoresPriority: "test_higher_priorities_first",
    bug.LastInFirstOut: "test_first_in_first_out",
    bug.IgnoresTheOrderOfQueues: "test_the_queues_are_served_in_the_given_order",
    bug.IgnoresTheLimit: "test_no_more_than_the_limit",
    bug.SendsAnIdTwice: "test_sending_the_id_of_a_waiting_message_changes_nothing",
    bug.OverwritesASecondSend: "test_sending_the_id_of_a_waiting_message_changes_nothing",
    bug.DropsWhatIsSentWhileALetterIsThere: "test_the_id_of_a_dead_letter_can_be_sent_again",
    bug.LosesTheLastOfABigBatch: "test_all_messages_of_a_batch_are_stored",
    bug.TakesFramesForLines: "test_a_frame_is_any_bytes",
    bug.FoldsTheNamesOfQueues: "test_a_queue_has_any_name",
    bug.LooksOnlyNowAndThen: "test_a_send_wakes_a_receive_of_another_connection",
    bug.WaitsForAFullBatch: "test_a_release_ends_the_wait_of_another",
    bug.ForgetsAnEarlyInterrupt: "test_an_interrupt_before_a_receive_makes_it_return_early",
    bug.StaysInterrupted: "test_an_interrupt_before_a_receive_makes_it_return_early",
    bug.KeepsWhatItBuries: "test_a_dead_letter_is_not_handed_over",
    bug.ListsTheOldestLetterFirst: "test_the_newest_comes_first",
    bug.RequeuesWithoutALetter: "test_only_what_has_a_dead_letter_is_requeued",
    bug.RequeuesAndKeepsTheLetter: "test_of_many_who_requeue_one_succeeds",
    bug.RestartsTheCountOfARequeuedMessage: "test_a_requeued_message_is_handed_over_again",
    bug.PurgesWhatIsHeld: "test_purging_a_queue_leaves_what_is_held_and_what_is_dead",
    bug.PurgesDeadLetters: "test_purging_a_queue_leaves_what_is_held_and_what_is_dead",
    bug.PurgesOnlyWhatIsReady: "test_purging_a_queue_leaves_what_is_held_and_what_is_dead",
    bug.DeletesWhatIsHeld: "test_what_is_held_or_dead_is_not_deleted",
    bug.PeeksInTheOrderOfSending: "test_the_order_is_that_of_the_handing_over",
    bug.TakesWhatItPeeksAt: "test_looking_hands_nothing_over",
    bug.CountsDelayedAsReady: "test_messages_are_counted_by_what_they_wait_for",
    bug.ForgetsOnClose: "test_a_message_is_received_by_another_connection_after_its_sender_closed",
}

HISTORY_BUGS = [
    bug.AcksWhatItLost,
    bug.TrustsTheIdOfAReceipt,
    bug.CountsAReleaseAsLost,
    bug.DoesNotCountEndedLeases,
    bug.LeasesNeverEnd,
    bug.KeepsTheLossesOfASuccessor,
    bug.CountsAllItRecovers,
    bug.DeliversEarly,
    bug.LowestPriorityFirst,
    bug.LastInFirstOut,
    bug.KeepsWhatItBuries,
]

BACKEND_BUGS = {
    bug.StoresAnything: "test_of_two_runs_the_one_with_the_greater_fence_stays",
    bug.FencesByCountOnly: "test_of_two_runs_the_one_with_the_greater_fence_stays",
    bug.GoesBackFromFinal: "test_of_two_runs_the_one_with_the_greater_fence_stays",
    bug.RefusesInSilence: "test_of_a_batch_only_what_is_outranked_is_refused",
    bug.OutcomesNeverEnd: "test_an_outcome_ends_after_its_ttl",
    bug.WaitsForAnyState: "test_what_is_not_final_is_not_returned",
    bug.WaitsForAll: "test_one_of_many_ids_ends_the_wait",
    bug.AnswersWithOne: "test_what_is_final_is_returned_at_once",
    bug.WaitsNowAndThen: "test_a_store_wakes_who_waits_on_another_connection",
    bug.HoldsItsLockWhileItWaits: "test_other_calls_work_while_one_thread_waits",
    bug.BackendForgetsAnEarlyInterrupt: "test_an_interrupt_before_a_wait_makes_it_return_early",
    bug.RevokesAgainAndAgain: "test_the_cursor_shows_what_is_newer",
    bug.KeepsTheFirstWish: "test_a_second_wish_is_news",
    bug.CursorGoesBack: "test_the_cursor_never_goes_back",
    bug.RevocationsNeverEnd: "test_revocations_end_after_their_ttl",
    bug.CountsAMemberTwice: "test_members_are_counted_once",
    bug.CountsFromTheFirstMember: "test_a_counted_set_ends_after_its_last_member_was_added",
    bug.UpkeepDropsOutcomes: "test_upkeep_harms_nothing",
}


class QuickTransports(TransportConformance):
    bound = 1.0
    shrink = False
    histories = 200


class QuickBackends(BackendConformance):
    bound = 1.0


def failures(suite: Any, name: str, store: type) -> list[str]:
    """Run one test of a suite, with all its parameters, and tell how it failed."""
    test = getattr(suite, name)
    marks = [m.args for m in getattr(test, "pytestmark", []) if m.name == "parametrize"]
    found = []
    for values in product(*(list(values) for _, values in marks)):
        parameters = dict(zip([names for names, _ in marks], values, strict=True))
        try:
            test(**arguments(test, store), **parameters)
        except (AssertionError, pytest.fail.Exception) as failure:
            found.append(str(failure))
    return found


def arguments(test: Any, store: type) -> dict[str, Any]:
    """What the fixtures of the suites would give: connections to a new store."""
    clock, name = ManualClock(), f"test-{new_id()}"

    def make(with_clock: Any = clock) -> Any:
        return store(name, with_clock)

    fixtures = {
        "clock": lambda: clock,
        "connect": lambda: make,
        "make_transport": lambda: make,
        "make_backend": lambda: make,
        **dict.fromkeys(["transport", "backend", "other"], make),
    }
    wanted = inspect.signature(test).parameters
    return {name: fixtures[name]() for name in wanted if name in fixtures}


def names(things: Any) -> list[str]:
    return [thing.__name__ for thing in things]


@pytest.mark.parametrize("store", TRANSPORT_BUGS, ids=names(TRANSPORT_BUGS))
def test_a_wrong_transport_is_caught(store: type) -> None:
    assert failures(QuickTransports(), TRANSPORT_BUGS[store], store)


@pytest.mark.parametrize("store", BACKEND_BUGS, ids=names(BACKEND_BUGS))
def test_a_wrong_backend_is_caught(store: type) -> None:
    assert failures(QuickBackends(), BACKEND_BUGS[store], store)


@pytest.mark.parametrize("store", HISTORY_BUGS, ids=names(HISTORY_BUGS))
def test_random_histories_catch_it_too(store: type) -> None:
    assert failures(QuickTransports(), "test_histories_agree_with_the_model", store)


def test_every_planted_bug_is_tried() -> None:
    assert set(TRANSPORT_BUGS) == set(bug.TRANSPORTS)
    assert set(BACKEND_BUGS) == set(bug.BACKENDS)


def test_what_is_caught_is_the_bug_and_not_the_way_of_running() -> None:
    for name in sorted(set(TRANSPORT_BUGS.values())):
        assert failures(QuickTransports(), name, MemoryTransport) == []
    for name in sorted(set(BACKEND_BUGS.values())):
        assert failures(QuickBackends(), name, MemoryBackend) == []


def test_pytest_runs_the_suite_of_a_plug_in_author(pytester: pytest.Pytester) -> None:
    """The way of the documentation: a subclass, one fixture, and the skips that it declares."""
    pytester.makepyfile(
        """
        import pytest
        from taskline.testing.transport_suite import TransportConformance
        from taskline.transports.base import Capabilities
        from taskline.transports.memory import MemoryTransport

        class Plain(MemoryTransport):
            capabilities = Capabilities(priority=False, delay=False, durable=False)

        class Wrong(MemoryTransport):
            def dead_letters(self, queue=None, limit=100, offset=0):
                return []

        class TestPlain(TransportConformance):
            @pytest.fixture
            def make_transport(self, request):
                return lambda clock: Plain(request.node.nodeid, clock)

        class TestWrong(TransportConformance):
            @pytest.fixture
            def make_transport(self, request):
                return lambda clock: Wrong(request.node.nodeid, clock)

        class TestForgotten(TransportConformance):
            pass
        """
    )
    chosen = "priorit or newest or its_eta or all_messages_of_a_batch"
    result = pytester.runpytest_inprocess("-rs", "-k", chosen, "-p", "no:cacheprovider")
    outcomes = result.parseoutcomes()
    assert outcomes["failed"] == 1
    assert outcomes["skipped"] == 8
    result.stdout.fnmatch_lines(
        [
            "override the fixture make_transport: see docs/testing.md",
            "*TestWrong.test_the_newest_comes_first*",
            "*the memory transport declares priority=False*",
        ]
    )
    assert outcomes["errors"] > 0
