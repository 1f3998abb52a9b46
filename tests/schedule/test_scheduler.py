"""Schedulers in virtual time: what is sent, by how many of them, through deaths and pauses."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from stage import PATIENCE
from workbench import Bench

from taskline import ConfigurationError, InvalidArguments, NoResult, Taskline, current_task
from taskline.clock import ManualClock
from taskline.errors import TransportError
from taskline.schedule import Scheduler
from taskline.schedule.scheduler import LEASE, TICK
from taskline.schedule.store import ScheduleStore

MakeApp = Callable[..., Taskline]


class Site:
    """An app with a periodic task, its schedulers and a worker."""

    def __init__(self, app: Taskline, clock: ManualClock, **options: Any) -> None:
        self.app, self.clock = app, clock
        self.ran: list[float] = []
        options = options or {"every": 60}

        @app.periodic(name="beat", **options)
        @app.task(name="beat")
        def beat() -> None:
            assert current_task.schedule == "beat"
            assert current_task.scheduled_for is not None
            self.ran.append(current_task.scheduled_for)

        self.bench = Bench(app)

    def live(self, seconds: float, *schedulers: Scheduler, work: bool = True) -> None:
        """Let time pass for these schedulers and the worker, in steps as they ask."""
        end = self.clock.time() + seconds
        while self.clock.time() < end:
            wait = min((each.step() for each in schedulers), default=seconds)
            if work:
                self.bench.drain()
            self.clock.advance(min(max(wait, 0.001), end - self.clock.time()) or 0.001)

    def offsets(self, start: float) -> list[int]:
        return [round(slot - start) for slot in self.ran]


def test_each_slot_is_sent_once_by_however_many(app: Taskline, clock: ManualClock) -> None:
    site, start = Site(app, clock), clock.time()
    schedulers = [Scheduler(app) for _ in range(3)]
    site.live(601, *schedulers)
    assert site.offsets(start) == list(range(60, 601, 60))
    assert sum(each.leads for each in schedulers) == 1


def test_another_takes_the_lead_of_one_that_dies(app: Taskline, clock: ManualClock) -> None:
    site, start = Site(app, clock, every=5), clock.time()
    first, second = Scheduler(app), Scheduler(app)
    site.live(61, first, second)
    leader, other = (first, second) if first.leads else (second, first)
    assert leader.leads
    site.live(60, other)
    assert other.leads
    assert site.offsets(start) == list(range(5, 121, 5))
    site.live(60, leader, other)
    assert site.offsets(start) == list(range(5, 181, 5))


def test_one_that_stops_hands_over_at_once(app: Taskline, clock: ManualClock) -> None:
    Site(app, clock)
    first, second = Scheduler(app), Scheduler(app)
    first.step()
    first.close()
    second.step()
    assert second.leads
    assert not first.leads


@pytest.mark.parametrize("runs", ["before", "after"])
def test_a_leader_that_dies_between_sending_and_noting(
    app: Taskline, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, runs: str
) -> None:
    site, start = Site(app, clock), clock.time()
    first, second = Scheduler(app), Scheduler(app)
    first.step()
    clock.advance(60)

    def die(self: object, progress: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ScheduleStore, "write_progress", die)
        with pytest.raises(KeyboardInterrupt):
            first.step()
    if runs == "before":
        site.bench.drain()
        assert site.offsets(start) == [60]
    clock.advance(LEASE)
    second.step()
    assert second.leads
    site.bench.drain()
    assert site.offsets(start) == [60]
    assert app.transport.stats(["default"])[0].ready in (0, None)


def test_a_leader_that_slept_between_looking_and_sending(
    app: Taskline, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, start = Site(app, clock), clock.time()
    first, second = Scheduler(app), Scheduler(app)
    first.step()
    clock.advance(60)
    send = app.send

    def sleep_first(messages: Any) -> None:
        monkeypatch.setattr(app, "send", send)
        clock.advance(2 * LEASE)
        second.step()
        site.bench.drain()
        assert site.offsets(start) == [60]
        send(messages)

    monkeypatch.setattr(app, "send", sleep_first)
    first.step()
    site.bench.drain()
    assert site.offsets(start) == [60]
    site.live(50, first, second)
    assert site.offsets(start) == [60, 120]


def test_a_broker_that_fails_costs_no_slot(
    app: Taskline, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, start = Site(app, clock), clock.time()
    scheduler = Scheduler(app)
    scheduler.step()
    clock.advance(60)
    send = app.send
    for stored in (False, True):

        def fail(messages: Any, stored: bool = stored) -> None:
            if stored:
                send(messages)
            raise TransportError("the cable is cut")

        monkeypatch.setattr(app, "send", fail)
        with pytest.raises(TransportError):
            scheduler.step()
    monkeypatch.setattr(app, "send", send)
    site.live(61, scheduler)
    assert site.offsets(start) == [60, 120]


def test_missed_slots_are_caught_up_or_skipped(make_app: MakeApp, clock: ManualClock) -> None:
    app = make_app()
    names = {"none": 0, "usual": 1, "three": 3}
    ran: list[tuple[str | None, int]] = []
    start = clock.time()

    @app.task(name="beat")
    def beat() -> None:
        ran.append((current_task.schedule, round((current_task.scheduled_for or 0) - start)))

    for name, catch_up in names.items():
        app.periodic(name=name, every=600, catch_up=catch_up)(beat)
    scheduler, bench = Scheduler(app), Bench(app)
    scheduler.step()
    scheduler.close()
    clock.advance(3 * 3600 + 300)
    Scheduler(app).step()
    bench.drain()
    assert Counter(ran) == Counter(
        [("usual", 10800), ("three", 9600), ("three", 10200), ("three", 10800)]
    )


def test_it_ends_after_its_repeats(app: Taskline, clock: ManualClock) -> None:
    site, start = Site(app, clock, every=10, repeats=3), clock.time()
    site.live(25, Scheduler(app))
    site.live(100, Scheduler(app))
    assert site.offsets(start) == [10, 20, 30]
    (info,) = app.schedules.list()
    assert (info.state, info.next, info.sent) == ("finished", None, 3)


def test_a_clock_that_is_set_back_repeats_nothing(
    app: Taskline, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    site, start = Site(app, clock), clock.time()
    scheduler = Scheduler(app)
    site.live(301, scheduler)
    back = Taskline("shop", broker="memory://", backend=app.settings.backend, clock=clock)
    clock._now -= 200
    later = Scheduler(app)
    clock.advance(0)
    site.live(262, scheduler, later)
    back.close()
    assert site.offsets(start) == [60, 120, 180, 240, 300, 360]


def test_jitter_delays_within_its_bound(app: Taskline, clock: ManualClock) -> None:
    Site(app, clock, every=60, jitter=timedelta(seconds=30))
    scheduler, start = Scheduler(app), clock.time()
    while len(app.transport.peek("default", 100)) < 10:
        clock.advance(max(0.001, scheduler.step()))
    late = []
    for message in app.transport.peek("default", 100):
        header, _ = app.codec.open(message.frame)
        assert header.slot is not None
        late.append((header.eta or header.slot) - header.slot)
        assert (header.slot - start) % 60 == pytest.approx(0, abs=1e-3)
    assert all(0 <= each <= 30 for each in late)
    assert len({round(each) for each in late}) > 3


def test_the_intended_time_is_an_argument(app: Taskline, clock: ManualClock) -> None:
    seen: list[datetime] = []

    @app.periodic(every=60, pass_time="due", tz="Europe/Berlin")
    @app.task
    def report(*, due: datetime) -> None:
        seen.append(due)

    scheduler = Scheduler(app)
    scheduler.step()
    slot = clock.time() + 60
    clock.advance(75)
    scheduler.step()
    Bench(app).drain()
    assert [each.timestamp() for each in seen] == [slot]
    assert seen[0].utcoffset() == timedelta(hours=1)


def test_stored_ones_are_added_paused_resumed_and_removed(
    app: Taskline, clock: ManualClock
) -> None:
    start, ran = clock.time(), list[int]()

    @app.task(name="note")
    def note(word: str) -> str:
        ran.append(round(clock.time() - start))
        return word

    scheduler, bench = Scheduler(app), Bench(app)

    def live(seconds: int) -> None:
        for _ in range(seconds):
            scheduler.step()
            bench.drain()
            clock.advance(1)

    live(5)
    assert not scheduler.leads, "there is nothing to send"
    app.schedules.add("notes", note, every=10, args=["x"])
    live(21)
    assert ran == [15, 25]
    app.schedules.pause("notes")
    live(20)
    assert [each.state for each in app.schedules.list()] == ["paused"]
    result = app.schedules.run("notes")
    live(1)
    assert result.get(timeout=0) == "x"
    del ran[:]
    app.schedules.resume("notes")
    live(20)
    assert ran == [55, 65]
    app.schedules.remove("notes")
    live(20)
    assert ran == [55, 65]
    assert app.schedules.list() == []
    # One of the same name begins anew.
    app.schedules.add("notes", "note", every=10, args=["y"], repeats=1)
    live(25)
    assert ran == [55, 65, 97]


def test_finished_stored_ones_are_forgotten_after_a_day(app: Taskline, clock: ManualClock) -> None:
    app.schedules.add("once", "note", at=clock.time() + 5)
    app.schedules.add("stays", "note", every=7 * 86400)
    scheduler = Scheduler(app)
    for seconds in (0, 6, 1, 86400):
        assert {each.name for each in app.schedules.list()} == {"once", "stays"}
        clock.advance(seconds)
        scheduler.step()
    clock.advance(TICK)
    scheduler.step()
    assert {each.name for each in app.schedules.list()} == {"stays"}


def test_what_is_refused(app: Taskline, clock: ManualClock) -> None:
    @app.periodic(every=60)
    @app.task(name="plain")
    def plain() -> None: ...

    @app.task(name="needy")
    def needy(number: int) -> None: ...

    with pytest.raises(InvalidArguments, match="missing a required argument: 'number'"):
        app.periodic(every=60)(needy)
    with pytest.raises(InvalidArguments, match="number"):
        app.schedules.add("x", needy, every=60)
    for wrong, says in [
        ({"every": 60, "repeats": 0}, "repeats=0"),
        ({"every": 60, "catch_up": -1}, "catch_up=-1"),
        ({"every": 60, "catchup": 1}, "unknown option 'catchup': did you mean 'catch_up'"),
        ({"every": 60, "priority": 11}, "priority=11"),
        ({"every": 60, "countdown": 1}, "unknown option 'countdown'"),
        ({"at": clock.time() - 1}, "it would never be due"),
    ]:
        with pytest.raises(ConfigurationError, match=says):
            app.schedules.add("x", plain, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="there is a schedule 'plain' already"):
        app.periodic(every=30)(plain)
    with pytest.raises(ConfigurationError, match="declared in the code"):
        app.schedules.remove("plain")
    with pytest.raises(ConfigurationError, match="no schedule 'plane': did you mean 'plain'"):
        app.schedules.pause("plane")
    app.schedules.add("stored", plain, every=60)
    with pytest.raises(ConfigurationError, match="there is a schedule 'stored'"):
        app.schedules.add("stored", plain, every=60)
    app.schedules.add("stored", plain, every=30, replace=True)


def test_a_backend_is_needed(make_app: MakeApp) -> None:
    app = make_app(backend=None)
    with pytest.raises(ConfigurationError, match="has no result backend, and schedules need one"):
        app.schedules.list()
    with pytest.raises(ConfigurationError, match="has no result backend"):
        Scheduler(app)


def test_the_book_is_signed(make_app: MakeApp) -> None:
    app = make_app(signing_key="secret")
    app.schedules.add("x", "note", every=60)
    assert [each.name for each in app.schedules.list()] == ["x"]
    with pytest.raises(Exception, match="key"):
        make_app(signing_key="other").schedules.list()


def test_results_of_schedules_are_kept_long_enough(app: Taskline, clock: ManualClock) -> None:
    @app.periodic(name="quiet", every=60)
    @app.task(name="quiet", result_ttl=0)
    def quiet() -> int:
        return 7

    scheduler = Scheduler(app)
    scheduler.step()
    clock.advance(60)
    scheduler.step()
    Bench(app).drain()
    (info,) = app.schedules.list()
    assert app.AsyncResult(info.last_id).get(timeout=0) == 7
    with pytest.raises(NoResult):
        quiet.delay().get(timeout=0)


def test_an_idle_scheduler_costs_less_than_a_command_a_second(
    app: Taskline, clock: ManualClock
) -> None:
    keys = app.require_backend().keys()
    calls: Counter[str] = Counter()

    def count(name: str) -> None:
        inner = getattr(keys, name)

        def counted(*args: Any) -> Any:
            calls[name] += 1
            return inner(*args)

        setattr(keys, name, counted)

    for name in ("get", "set", "acquire", "renew", "release"):
        count(name)
    Site(app, clock, every=86400)
    first, second = Scheduler(app), Scheduler(app)
    due = {first: clock.time(), second: clock.time()}
    end = clock.time() + 600
    while clock.time() < end:
        for each, at in due.items():
            if at <= clock.time():
                due[each] = clock.time() + each.step()
        clock.advance(max(0.001, min(due.values()) - clock.time()))
    assert 0 < sum(calls.values()) / 600 < 1, calls


@pytest.mark.parametrize("periodic", [False, True])
def test_schedules_that_cannot_be_sent_are_told_of_where_there_are_some(
    app: Taskline,
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    periodic: bool,
) -> None:
    if periodic:
        Site(app, clock)
    scheduler = Scheduler(app)
    answers: list[Exception | None] = [TransportError("nobody answers")] * 2 + [None]

    def step() -> float:
        if not answers:
            scheduler.stop()
            return 0.0
        error = answers.pop(0)
        if error is not None:
            raise error
        return 0.0

    monkeypatch.setattr(scheduler, "step", step)
    monkeypatch.setattr(clock, "bound", lambda seconds: 0.0)
    with caplog.at_level(logging.INFO, "taskline"):
        scheduler.run()
    assert caplog.messages == (
        [
            "schedules cannot be sent: nobody answers; trying until it works",
            "schedules are sent again",
        ]
        if periodic
        else []
    )


def test_stopped_before_it_was_started_it_does_nothing(
    app: Taskline, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The I/O thread, which fails first, may stop it at any point of its start."""
    Site(app, clock)
    start = threading.Thread.start

    def stopped_meanwhile(thread: threading.Thread) -> None:
        scheduler.stop()
        start(thread)
        thread.join(PATIENCE)
        assert not thread.is_alive()

    scheduler = Scheduler(app)
    monkeypatch.setattr(threading.Thread, "start", stopped_meanwhile)
    scheduler.start()
    scheduler.stop()
    assert not scheduler.leads
    assert app.transport.stats() == []
