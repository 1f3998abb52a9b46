"""What is proven on every transport with every backend: one of each kind, in few seconds.

The whole suites run on memory, SQLite and Redis. Here are a broker and a backend that need not
be the same server, and a broker that may take its time to hand out what was sent.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from integration.durable import kill_between_steps
from integration.unique import calls_that_do_not_meet
from taskline import Taskline, TaskRevoked, current_task
from taskline.testing.canvas import CANVAS, Desk
from taskline.testing.faults import RepeatingTransport
from taskline.testing.stepping import Fate, Hand, Killed
from taskline.worker import Worker, WorkerOptions

PATIENCE = 60.0

whole_suite = pytest.mark.skipif(
    not os.environ.get("TASKLINE_TEST_WORKFLOWS"), reason="minutes: set TASKLINE_TEST_WORKFLOWS=1"
)


class Place(NamedTuple):
    """The URLs of a broker and a backend that only this test uses."""

    broker: str
    backend: str

    def app(self, **settings: Any) -> Taskline:
        return Taskline("shop", broker=self.broker, backend=self.backend, **settings)


@contextmanager
def working(app: Taskline, schedule: bool = False) -> Iterator[None]:
    """A worker runs meanwhile."""
    worker = Worker(app, WorkerOptions(schedule=schedule))
    worker.start()
    try:
        yield
    finally:
        worker.stop(5)


def turn_until(worker: Hand, ended: Callable[[], bool]) -> None:
    """Let a worker do what comes until it is enough."""
    by = worker.app.clock.monotonic() + PATIENCE
    while not ended():
        assert worker.app.clock.monotonic() < by
        if not worker.turn():
            worker.app.clock.sleep(0.005)


class Everywhere:
    """Subclass it as `Test…` and override the fixture `place`."""

    @pytest.fixture
    def place(self) -> Place:
        raise NotImplementedError("override place: a broker and a backend")

    @pytest.fixture
    def desk(self, place: Place) -> Iterator[Desk]:
        with place.app() as app:
            yield Desk(app)

    def test_workflows(self, desk: Desk) -> None:
        names = ["one", "group", "chord", "within", "nested", "each", "chunks", "graph"]
        results = {name: CANVAS[name][0](desk).delay() for name in names}
        with working(desk.app):
            for name, result in results.items():
                assert result.get(timeout=PATIENCE) == CANVAS[name][1], name
        assert set(desk.ran.values()) == {1}

    @pytest.mark.parametrize("name", ["within", "graph"])
    def test_every_message_is_repeated(self, desk: Desk, name: str) -> None:
        build, value = CANVAS[name]
        result = build(desk).delay()
        transport = RepeatingTransport(desk.app.open_transport())
        worker = Hand(desk.app, transport=transport)
        turn_until(worker, result.ready)
        worker.work(5000)
        worker.close()
        assert result.get(timeout=PATIENCE) == value
        assert transport.repeated
        assert set(desk.ran.values()) == {1}, "no step ran again"

    @pytest.mark.parametrize(("number", "moment"), [(2, "after"), (3, "before"), (5, "before")])
    def test_a_worker_dies_within_a_chord(self, desk: Desk, number: int, moment: str) -> None:
        build, value = CANVAS["chord"]
        result = build(desk).delay()
        victim = Hand(desk.app, "victim", fate=Fate(number, moment))
        with pytest.raises(Killed):
            turn_until(victim, result.ready)
        held = victim.held
        victim.bury()
        other = Hand(desk.app, "other")
        turn_until(other, result.ready)
        other.work()
        other.close()
        assert result.get(timeout=PATIENCE) == value
        assert {key for key, runs in desk.ran.items() if runs > 1} <= held
        assert max(desk.ran.values()) <= 2

    def test_each_slot_is_sent_once_by_two_schedulers(self, place: Place) -> None:
        sent = Counter[float]()

        def app_with_a_schedule() -> Taskline:
            app = place.app()

            @app.periodic(every=1)
            @app.task(name="beat")
            def beat() -> None:
                assert current_task.scheduled_for is not None
                sent[current_task.scheduled_for] += 1

            return app

        with app_with_a_schedule() as first, app_with_a_schedule() as second:
            with working(first, schedule=True), working(second, schedule=True):
                by = first.clock.monotonic() + PATIENCE
                while len(sent) < 3:
                    assert first.clock.monotonic() < by
                    first.clock.sleep(0.02)
            assert set(sent.values()) == {1}

    def test_a_durable_task_goes_on(self, place: Place, tmp_path: Path) -> None:
        kill_between_steps(place.broker, tmp_path, 3, backend=place.backend)

    def test_items_and_progress(self, place: Place) -> None:
        with place.app() as app:

            @app.task
            def count(number: int) -> Iterator[int]:
                for each in range(number):
                    current_task.progress(each + 1, number)
                    yield each

            with working(app):
                result = count.delay(50)
                assert list(result.stream(timeout=PATIENCE)) == list(range(50))
                again = app.AsyncResult(result.id).stream(33, timeout=PATIENCE)
                assert list(again) == list(range(33, 50))
                result.get(timeout=PATIENCE)
                assert result.progress() == (50, 50, "")

    def test_many_messages_are_few_runs(self, place: Place) -> None:
        runs = list[int]()
        with place.app() as app:

            @app.task(batch=20, batch_wait=0.5)
            def double(numbers: list[int]) -> list[int]:
                runs.append(len(numbers))
                return [2 * each for each in numbers]

            results = double.map(range(60))
            with working(app):
                assert results.get(timeout=PATIENCE) == [2 * each for each in range(60)]
        assert max(runs) > 1
        assert sum(runs) == 60

    def test_a_task_is_revoked_by_its_name(self, place: Place) -> None:
        with place.app() as app:

            @app.task(name="mail")
            def mail(number: int) -> int:
                return number

            @app.task(name="other")
            def other() -> str:
                return "ran"

            before = mail.map(range(3))
            beside = other.delay()
            app.revoke(task="mail")
            after = mail.delay(7)
            with working(app):
                assert after.get(timeout=PATIENCE) == 7
                assert beside.get(timeout=PATIENCE) == "ran"
                for result in before:
                    with pytest.raises(TaskRevoked):
                        result.get(timeout=PATIENCE)

    def test_calls_that_do_not_meet(self, place: Place) -> None:
        with place.app() as app:
            calls_that_do_not_meet(app)

    def test_a_paused_queue_waits(self, place: Place) -> None:
        with place.app() as app:

            @app.task(name="note")
            def note(queue: str) -> str:
                return queue

            app.pause_queue("mail")
            held = note.options(queue="mail").delay("mail")
            worker = Worker(app, WorkerOptions(queues=["mail", "default"], schedule=False))
            worker.start()
            try:
                assert note.delay("default").get(timeout=PATIENCE) == "default"
                assert held.state == "PENDING"
                app.resume_queue("mail")
                assert held.get(timeout=PATIENCE) == "mail"
            finally:
                worker.stop(5)

    def test_a_worker_is_seen_asked_and_stopped_from_afar(self, place: Place) -> None:
        with place.app() as app:
            begun, go = threading.Event(), threading.Event()

            @app.task(name="hold")
            def hold() -> None:
                begun.set()
                go.wait(PATIENCE)

            result = hold.delay()
            worker = Worker(app, WorkerOptions(name="seen", schedule=False))
            worker.start()
            try:
                assert begun.wait(PATIENCE)
                tasks, told = app.control.active(timeout=PATIENCE)
                while not told.processes:  # it has begun before it was known
                    tasks, told = app.control.active(timeout=PATIENCE)
                assert [(task.id, task.worker) for task in tasks] == [(result.id, "seen")]
                assert not told.silent
                [known] = app.workers()
                assert (known.name, known.queues) == ("seen", ["default"])
                assert app.control.shutdown(["seen"], timeout=PATIENCE).refusals() == {}
                go.set()
                result.get(timeout=PATIENCE)
                while app.workers():
                    time.sleep(0.05)
            finally:
                go.set()
                worker.stop(5)

    def test_a_queue_is_shared_fairly(self, place: Place) -> None:
        """Most transports hand out in the order of the lanes; all run each message once."""
        ran = list[tuple[str, int]]()
        with place.app(queues={"mail": {"fair": "tenant", "lanes": 3}}) as app:

            @app.task(name="note", queue="mail", fair_key="tenant")
            def note(tenant: str, number: int) -> None:
                ran.append((tenant, number))

            results = note.starmap(("A", number) for number in range(100))
            few = note.starmap((tenant, number) for tenant in "BCD" for number in range(3))
            with working(app):
                few.get(timeout=PATIENCE)
                results.get(timeout=PATIENCE)
            [stats] = app.transport.stats(["mail"])
            assert not stats.ready
        assert sorted(ran) == sorted(
            [*(("A", n) for n in range(100)), *((t, n) for t in "BCD" for n in range(3))]
        )

    def test_limits_hold_over_two_workers(self, place: Place) -> None:
        starts, inside, most = list[float](), list[int](), list[int]()
        with place.app() as first, place.app() as second:
            for app in (first, second):

                @app.task(name="often", rate="20/s")
                def often(number: int) -> None:
                    starts.append(time.monotonic())

                @app.task(name="beside", concurrency=2)
                def beside(number: int) -> None:
                    inside.append(number)
                    most.append(len(inside))
                    time.sleep(0.02)
                    inside.remove(number)

                @app.task(name="free")
                def free() -> str:
                    return "ran"

            results = [
                first.by_name("often").map(range(30)),
                first.by_name("beside").map(range(12)),
            ]
            unlimited = first.by_name("free").delay()
            with working(first), working(second):
                assert unlimited.get(timeout=PATIENCE) == "ran"
                for result in results:
                    result.get(timeout=PATIENCE)
        assert len(starts) == 30, "each has run once"
        # The first token and those that the bucket holds are there at once.
        assert max(starts) - min(starts) >= (30 - 1 - 2) / 20 - 0.1
        assert max(most) <= 2
