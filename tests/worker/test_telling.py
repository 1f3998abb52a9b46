"""What the worker tells its middleware, and from which thread."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from stage import Stage, all_ways
from workbench import Bench, until, working

from taskline import Middleware, SoftTimeout, Taskline, current_task
from taskline.clock import ManualClock
from taskline.message import DeadLetter


class Diary(Middleware):
    """Notes what it is told: (event, thread, the task's id, something of the event)."""

    def __init__(self) -> None:
        self.notes: list[tuple[str, str, str, Any]] = []

    def _note(self, event: str, id: str, more: Any = None) -> None:
        here = current_task.id if current_task else ""
        assert here in ("", id)
        self.notes.append((event, threading.current_thread().name, here, more))

    def events(self) -> list[str]:
        return [note[0] for note in self.notes]

    def before_run(self, request: Any) -> None:
        self._note("before_run", request.id)

    def after_run(self, request: Any, error: Any) -> None:
        self._note("after_run", request.id, error)

    def success(self, request: Any, value: Any) -> None:
        self._note("success", request.id, value)

    def failure(self, request: Any, error: Any) -> None:
        self._note("failure", request.id, error)

    def retry(self, request: Any, error: Any, delay: float) -> None:
        self._note("retry", request.id, delay)

    def timeout(self, request: Any, error: Any) -> None:
        self._note("timeout", request.id, error)

    def dead_letter(self, letter: DeadLetter) -> None:
        self._note("dead_letter", letter.id, letter.reason)


@pytest.fixture
def diary(app: Taskline) -> Diary:
    diary = Diary()
    app.use(diary)
    return diary


def test_a_run_is_told_by_its_own_thread_with_its_task(app: Taskline, diary: Diary) -> None:
    @app.task
    def double(number: int) -> int:
        return 2 * number

    with working(app):
        result = double.delay(4)
        assert result.get(timeout=30) == 8
    assert diary.notes == [
        ("before_run", "taskline-slot-0", result.id, None),
        ("after_run", "taskline-slot-0", result.id, None),
        ("success", "taskline-slot-0", result.id, 8),
    ]


def test_a_coroutine_is_told_in_its_event_loop(app: Taskline) -> None:
    threads: list[tuple[str, str]] = []

    class Async(Middleware):
        async def before_run(self, request: Any) -> None:
            threads.append((threading.current_thread().name, current_task.id))

        async def success(self, request: Any, value: Any) -> None:
            threads.append((threading.current_thread().name, current_task.id))

    app.use(Async())

    @app.task
    async def work() -> int:
        return 1

    with working(app):
        result = work.delay()
        assert result.get(timeout=30) == 1
    assert threads == [("taskline-async", result.id)] * 2


def test_a_failure_is_told_with_its_dead_letter(app: Taskline, diary: Diary) -> None:
    @app.task(retry={"max": 1, "wait": 0})
    def fail() -> None:
        raise KeyError("k")

    with working(app):
        result = fail.delay()
        assert isinstance(result.get(timeout=30, propagate=False), KeyError)
    run = ["before_run", "after_run"]
    assert diary.events() == [*run, "retry", *run, "failure", "dead_letter"]
    assert diary.notes[-1][2:] == (result.id, "KeyError: 'k'")


def test_what_never_ran_is_told_outside_of_the_io_thread(app: Taskline, diary: Diary) -> None:
    with working(app):
        result = app.send_task("nobody.knows", [1])
        until(lambda: diary.notes)
    [(event, thread, here, reason)] = diary.notes
    assert (event, thread, here) == ("dead_letter", "taskline-hooks", "")
    assert "no task 'nobody.knows'" in reason
    assert result.failed()


def test_a_timeout_is_told_before_its_failure(app: Taskline, diary: Diary) -> None:
    @app.task(soft_timeout=0.05)
    def loop() -> None:
        while True:
            time.sleep(0.001)

    with working(app):
        error = loop.delay().get(timeout=30, propagate=False)
    assert isinstance(error, SoftTimeout)
    events = ["before_run", "after_run", "timeout", "failure", "dead_letter"]
    assert diary.events() == events


def test_given_up_code_is_told_once(memory_app: Taskline) -> None:
    diary = Diary()
    memory_app.use(diary)
    release = threading.Event()

    @memory_app.task(timeout=0.05)
    def deaf() -> None:
        while not release.is_set():
            try:
                release.wait(30)
            except Exception:
                continue

    with working(memory_app):
        result = deaf.delay()
        assert result.get(timeout=30, propagate=False) is not None
        until(lambda: "dead_letter" in diary.events())
        release.set()
    assert diary.events() == ["before_run", "after_run", "timeout", "failure", "dead_letter"]
    assert {note[1] for note in diary.notes[1:]} == {"taskline-hooks"}


def test_receiving_and_starving(make_app: Any) -> None:
    clock = ManualClock()
    app = make_app(clock=clock)
    notes: list[Any] = []

    class Hungry(Middleware):
        def before_receive(self, queues: Any, limit: int) -> None:
            notes.append(("ask", list(queues)))

        def after_receive(self, headers: Any) -> None:
            notes.append(("got", [header.id for header in headers]))

        def starvation(self, seconds: float) -> None:
            notes.append(("hungry", seconds))

    app.use(Hungry())

    @app.task
    def work() -> None: ...

    result = work.delay()
    bench = Bench(app, starvation=10.0)
    bench.drain()
    assert notes[:2] == [("ask", ["default"]), ("got", [result.id])]
    assert not [note for note in notes if note[0] == "hungry"]
    for _ in range(25):
        clock.advance(1.0)
        bench.turn()
    assert [note for note in notes if note[0] == "hungry"] == [("hungry", 10.0), ("hungry", 20.0)]


def test_the_life_of_a_worker_in_threads(app: Taskline) -> None:
    notes: list[str] = []

    class Life(Middleware):
        def worker_start(self, app: Taskline) -> None:
            notes.append("worker_start")

        async def process_start(self, app: Taskline) -> None:
            notes.append("process_start")

        def process_stop(self, app: Taskline) -> None:
            notes.append("process_stop")

        def worker_stop(self, app: Taskline) -> None:
            notes.append("worker_stop")

    app.use(Life())

    @app.task
    def work() -> None:
        notes.append("work")

    with working(app):
        work.delay().get(timeout=30)
    assert notes == ["worker_start", "process_start", "work", "process_stop", "worker_stop"]


@all_ways
def test_the_life_of_processes(stage: Stage, way: Any) -> None:
    group = stage.start(env={"PROGRAM_HOOKS": "1"}, **way)
    pid = stage.get(stage.call("quick"))
    group.signal(15)
    assert group.exit_code() == 0
    supervisor = str(group.process.pid)
    assert stage.notes() == [
        ["worker_start", supervisor],
        ["process_start", str(pid)],
        ["process_stop", str(pid)],
        ["worker_stop", supervisor],
    ]
