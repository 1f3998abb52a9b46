"""Pausing and resuming queues."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from stage import Stage
from workbench import Bench, until, working

from taskline import Taskline
from taskline.backends import memory as memory_backends
from taskline.clock import ManualClock
from taskline.control.state import States
from taskline.errors import ConfigurationError
from taskline.message import new_id
from taskline.transports import memory as memory_transports
from taskline.worker.remote import LOOK_EVERY, Remote


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def heeding(app: Taskline, **options: Any) -> Bench:
    return Bench(app, remote=Remote(app), **options)


def noting(app: Taskline) -> tuple[Any, list[str]]:
    ran: list[str] = []

    @app.task(name="note")
    def note(text: str) -> str:
        ran.append(text)
        return text

    return note, ran


def test_nothing_is_taken_of_a_paused_queue(app: Taskline) -> None:
    note, ran = noting(app)
    app.pause_queue("mail")
    with working(app, queues=["mail", "default"]) as worker:
        held = note.options(queue="mail").delay("mail")
        assert note.delay("default").get(timeout=30) == "default"
        assert held.state == "PENDING"
        assert app.paused_queues() == {"mail": None}
        assert app.resume_queue("mail")
        assert held.get(timeout=30) == "mail"
        app.pause_queue("mail")
        until(lambda: worker.io._turns.paused == {"mail"})
        note.options(queue="mail").delay("again")
        assert note.delay("default").get(timeout=30) == "default"
    assert ran == ["default", "mail", "default"]
    assert not app.resume_queue("video")


def test_workers_that_start_later_heed_it(app: Taskline) -> None:
    note, ran = noting(app)
    app.pause_queue("default")
    note.delay("a")
    bench = heeding(app)
    for _ in range(5):
        bench.turn()
        bench.work()
    assert not ran
    assert not bench.held


def test_what_was_fetched_and_not_begun_is_handed_back(make_app: Any, clock: ManualClock) -> None:
    app = make_app(clock=clock)
    note, ran = noting(app)
    bench = heeding(app, queues=["mail", "default"])
    bench.io._prefetch.observe([0.001] * 100)
    for number in range(5):
        for queue in ("mail", "default"):
            note.options(queue=queue).delay(f"{queue} {number}")
    bench.turn()
    running = bench.begin()
    assert running is not None
    assert bench.waiting == 9
    app.pause_queue("mail")
    app.pause_queue("default")
    clock.advance(LOOK_EVERY)
    bench.turn()
    assert bench.waiting == 0
    assert bench.held == {running.delivery.id}
    bench.finish()
    app.resume_queue("default")
    clock.advance(LOOK_EVERY)
    bench.drain()
    app.resume_queue("mail")
    clock.advance(LOOK_EVERY)
    bench.drain()
    first, *rest = ran
    ordered = [f"{queue} {number}" for queue in ("default", "mail") for number in range(5)]
    assert rest == [each for each in ordered if each != first], "to the places that they had"


def test_other_queues_go_on_meanwhile(make_memory_app: Any, clock: ManualClock) -> None:
    app = make_memory_app(clock=clock)
    note, ran = noting(app)
    bench = heeding(app, queues=["mail", "default"])
    app.pause_queue("mail")
    for number in range(20):
        clock.advance(1.0)
        note.options(queue="mail").delay(f"mail {number}")
        note.delay(f"{number}")
        bench.turn(2)
        bench.work()
    assert ran == [f"{number}" for number in range(20)]


def test_a_pause_may_end_by_itself(make_app: Any, clock: ManualClock) -> None:
    app = make_app(clock=clock)
    note, ran = noting(app)
    bench = heeding(app, queues=["mail"])
    app.pause_queue("mail", seconds=600)
    assert app.paused_queues() == {"mail": clock.time() + 600}
    note.options(queue="mail").delay("a")
    for _ in range(599):
        clock.advance(1.0)
        bench.turn()
    assert not bench.held
    clock.advance(1.0)
    bench.drain()
    assert ran == ["a"]
    assert app.paused_queues() == {}
    assert not app.resume_queue("mail")
    app.pause_queue("video")
    assert States(app).get().paused == {"video"}, "what is over is forgotten"


def test_paused_again_the_last_word_holds(make_memory_app: Any, clock: ManualClock) -> None:
    app = make_memory_app(clock=clock)
    app.pause_queue("mail", seconds=10)
    app.pause_queue("mail")
    assert app.paused_queues() == {"mail": None}
    app.pause_queue("mail", seconds=10)
    clock.advance(11)
    assert app.paused_queues() == {}


def test_batches_are_handed_back_too(make_memory_app: Any, clock: ManualClock) -> None:
    app = make_memory_app(clock=clock)
    runs: list[list[int]] = []

    @app.task(batch=10, batch_wait=5)
    def bulk(numbers: list[int]) -> None:
        runs.append(numbers)

    bench = heeding(app)
    bulk.map(range(3))
    bench.turn(2)
    assert len(bench.held) == 3
    app.pause_queue("default")
    clock.advance(LOOK_EVERY)
    bench.turn()
    assert not bench.held
    app.resume_queue("default")
    clock.advance(LOOK_EVERY)
    bench.turn(2)
    clock.advance(5)
    bench.drain()
    assert [sorted(each) for each in runs] == [[0, 1, 2]]


def test_draining_leaves_what_is_paused_and_says_so(
    app: Taskline, caplog: pytest.LogCaptureFixture
) -> None:
    note, ran = noting(app)
    for queue in ("mail", "default"):
        note.options(queue=queue).delay(queue)
    app.pause_queue("mail")
    bench = heeding(app, queues=["mail", "default"], drain=True)
    while bench.io.step(0.001):
        bench.work()
    assert ran == ["default"]
    assert bench.io.drained
    assert bench.io.left == ["mail"]
    assert "these queues are paused and not empty: mail" in caplog.text


@pytest.mark.parametrize("full", [False, True])
def test_a_supervisor_that_cannot_drain_a_paused_queue(stage: Stage, full: bool) -> None:
    stage.app.pause_queue("default")
    if full:
        stage.call("quick")
    group = stage.start(drain=True, processes=2)
    assert group.exit_code() == (4 if full else 0)
    assert ("these queues are paused and not empty: default" in group.log) == full


def test_it_survives_the_death_of_all(stage: Stage) -> None:
    first = stage.start(processes=2)
    stage.get(stage.call("quick"))
    stage.app.pause_queue("default")
    said = "the queue default is paused: nothing is taken of it"
    until(lambda: first.log.count(said) == 2)
    first.signal_all(signal.SIGKILL)
    first.process.wait(timeout=60)
    result = stage.call("quick")
    second = stage.start()
    until(lambda: said in second.log)
    assert result.state == "PENDING"
    stage.app.resume_queue("default")
    stage.get(result)


def test_what_is_wrong_is_refused(app: Taskline) -> None:
    with pytest.raises(ConfigurationError, match="queue='my queue': must be 1 to 200"):
        app.pause_queue("my queue")
    with pytest.raises(ConfigurationError, match="seconds=0: must be more than 0"):
        app.pause_queue("mail", seconds=0)
    bare = Taskline("bare", broker="memory://bare", backend=None)
    for call in (bare.pause_queue, bare.resume_queue):
        with pytest.raises(ConfigurationError, match="the app bare has no result backend"):
            call("mail")
    assert bare.paused_queues() == {}


QUEUES = ["a", "b", "c"]


class Pausing(RuleBasedStateMachine):
    """Two workers, some queues, and somebody who pauses and resumes."""

    def __init__(self) -> None:
        super().__init__()
        self.name = new_id()
        self.clock = ManualClock()
        url = f"memory://{self.name}"
        self.app = Taskline("test", broker=url, backend=url, clock=self.clock)
        self.note, self.ran = noting(self.app)
        self.benches = [
            heeding(self.app, queues=QUEUES, name=f"w{number}", prefetch=number * 5)
            for number in range(2)
        ]
        self.paused: dict[str, float] = {}
        self.heeded: list[set[str]] = [set(), set()]
        self.sent = 0

    def now_paused(self) -> set[str]:
        return {queue for queue, end in self.paused.items() if end > self.clock.time()}

    @rule(queue=st.sampled_from(QUEUES), count=st.integers(1, 5))
    def send(self, queue: str, count: int) -> None:
        for _ in range(count):
            self.note.options(queue=queue).delay(queue)
            self.sent += 1

    @rule(queue=st.sampled_from(QUEUES), seconds=st.sampled_from([None, 1, 5]))
    def pause(self, queue: str, seconds: int | None) -> None:
        self.app.pause_queue(queue, seconds=seconds)
        self.paused[queue] = float("inf") if seconds is None else self.clock.time() + seconds

    @rule(queue=st.sampled_from(QUEUES))
    def resume(self, queue: str) -> None:
        assert self.app.resume_queue(queue) == (queue in self.now_paused())
        self.paused.pop(queue, None)

    @rule(which=st.integers(0, 1), look=st.booleans(), finish=st.booleans())
    def turn(self, which: int, look: bool, finish: bool) -> None:
        bench = self.benches[which]
        self.clock.advance(1.0 if look else 0.01)
        before = len(self.ran)
        bench.turn()
        if look:
            held = {delivery.queue for delivery in bench.io.held}
            assert not held & self.now_paused(), "handed back, and nothing new"
        if finish:
            bench.work()
            if look:
                assert not set(self.ran[before:]) & self.now_paused()

    @invariant()
    def it_is_known(self) -> None:
        assert set(self.app.paused_queues()) == self.now_paused()

    @precondition(lambda self: self.sent > len(self.ran))
    @rule()
    def resume_all(self) -> None:
        for queue in QUEUES:
            self.app.resume_queue(queue)
        self.paused.clear()
        self.clock.advance(1.0)
        for bench in self.benches:
            bench.turn()
            bench.drain()
        assert len(self.ran) == self.sent

    def teardown(self) -> None:
        self.app.close()
        memory_transports.forget(self.name)
        memory_backends.forget(self.name)


TestPausing = Pausing.TestCase
TestPausing.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
