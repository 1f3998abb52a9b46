"""How a worker stops (P9), without signals: `test_processes` has those."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from stage import Stage
from workbench import Bench, spy_on, until, working

from taskline import Taskline
from taskline.clock import ManualClock
from taskline.errors import ConfigurationError, TransportError
from taskline.worker import Worker


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


class Stopping:
    """A worker with one task that runs and one that waits, and the order to stop."""

    def __init__(self, app: Taskline) -> None:
        self.runs: list[str] = []

        @app.task
        def run(key: str) -> str:
            self.runs.append(key)
            return key

        self.app = app
        self.running, self.waiting = run.map(["running", "waiting"])
        self.bench = Bench(app)
        self.bench.turn()
        self.bench.begin()
        assert self.bench.waiting == 1

    def left(self) -> dict[str, tuple[str, int]]:
        """What the next worker would get: its id, state and losses."""
        taken = self.app.transport.receive(["default"], 10, 30.0, 0.0, "next")
        return {each.id: each.lost for each in taken}  # type: ignore[misc]


@pytest.fixture
def stopping(make_app: Any, clock: ManualClock) -> Stopping:
    return Stopping(make_app(clock=clock))


def test_what_has_not_begun_is_handed_back_at_once(stopping: Stopping) -> None:
    stopping.bench.io.stop(30.0)
    assert stopping.bench.turn(), "one still runs"
    assert stopping.bench.held == {stopping.running.id}
    assert stopping.left() == {stopping.waiting.id: 0}


def test_what_runs_may_end_within_its_grace(stopping: Stopping, clock: ManualClock) -> None:
    stopping.bench.io.stop(30.0)
    for _ in range(29):
        assert stopping.bench.turn()
        clock.advance(1.0)
    stopping.bench.finish()
    assert not stopping.bench.turn()
    assert stopping.running.get(timeout=0) == "running"
    assert stopping.left() == {stopping.waiting.id: 0}


def test_what_does_not_end_is_handed_back_undamaged(stopping: Stopping, clock: ManualClock) -> None:
    stopping.bench.io.stop(30.0)
    stopping.bench.turn()
    clock.advance(29.0)
    assert stopping.bench.turn()
    clock.advance(1.1)
    assert not stopping.bench.turn()
    assert stopping.left() == {stopping.running.id: 0, stopping.waiting.id: 0}


def test_stopping_at_once_waits_for_nothing(stopping: Stopping) -> None:
    stopping.bench.io.stop(30.0)
    stopping.bench.turn()
    stopping.bench.io.stop(0.0)
    assert not stopping.bench.turn()
    assert stopping.left() == {stopping.running.id: 0, stopping.waiting.id: 0}


def test_a_second_order_never_lengthens_the_first(stopping: Stopping, clock: ManualClock) -> None:
    stopping.bench.io.stop(5.0)
    stopping.bench.turn()
    stopping.bench.io.stop(500.0)
    clock.advance(5.1)
    assert not stopping.bench.turn()


def test_nothing_is_taken_in_any_more(stopping: Stopping) -> None:
    stopping.bench.io.stop(30.0)
    for _ in range(10):
        stopping.bench.turn()
    stopping.bench.finish()
    assert not stopping.bench.turn()
    assert stopping.runs == ["running"]


def test_leases_are_renewed_through_a_long_grace(stopping: Stopping, clock: ManualClock) -> None:
    stopping.bench.io.stop(1000.0)
    for _ in range(50):
        clock.advance(15.0)
        stopping.bench.turn()
        assert stopping.running.id not in stopping.left()
    stopping.bench.finish()
    assert not stopping.bench.turn()
    assert stopping.running.get(timeout=0) == "running"


def test_a_result_of_the_last_moment_is_kept(stopping: Stopping) -> None:
    stopping.bench.finish()
    stopping.bench.io.stop(0.0)
    while stopping.bench.turn():
        pass
    assert stopping.running.get(timeout=0) == "running"
    assert stopping.left() == {stopping.waiting.id: 0}


def test_a_failed_release_is_repeated_before_the_end(make_app: Any, clock: ManualClock) -> None:
    app = make_app(clock=clock)
    transport, _ = spy_on(app)
    stopping = Stopping(app)
    transport.faults["release"] = ["before", "after"]
    stopping.bench.io.stop(0.0)
    for _ in range(10):
        if not stopping.bench.turn():
            break
        clock.advance(1.0)
    assert not stopping.bench.held
    assert stopping.left() == {stopping.running.id: 0, stopping.waiting.id: 0}


def test_stop_returns_when_the_tasks_have_ended(app: Taskline) -> None:
    go = threading.Event()

    @app.task
    def run() -> str:
        go.wait(30)
        return "done"

    with working(app, grace=30) as worker:
        result = run.delay()
        until(lambda: worker.io.slots[0].current)
        threading.Timer(0.1, go.set).start()
    assert result.get(timeout=1) == "done"


def test_a_wrong_configuration_is_raised_at_the_start(tmp_path: Any) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("this is no database, and it is long enough to look at. " * 5)
    app = Taskline("test", broker=f"sqlite:///{file}", backend=None)
    worker = Worker(app)
    with pytest.raises(ConfigurationError, match="not an SQLite database"):
        worker.start()


def test_a_broker_that_is_never_reached_is_told_at_the_start(
    memory_app: Taskline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> Any:
        raise TransportError("connection refused")

    monkeypatch.setattr(memory_app, "open_transport", refuse)
    monkeypatch.setattr("taskline.worker.process.REACH_WITHIN", 0.2)
    worker = Worker(memory_app)
    with pytest.raises(TransportError, match=r"not reached within 0\.2 s"):
        worker.start()


def test_included_modules_are_imported_by_the_worker(
    make_memory_app: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "worker_test_included.py").write_text("imported = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    app = make_memory_app(include=["worker_test_included"])
    import sys

    Worker(app)
    assert sys.modules["worker_test_included"].imported


# ---- until the queues are empty


def test_draining_ends_when_nothing_is_due_and_nothing_runs(make_app: Any) -> None:
    app = make_app()
    runs: list[str] = []

    @app.task
    def run(key: str) -> None:
        runs.append(key)

    run.map(["first", "second"])
    later = run.options(countdown=3600).delay("later")
    sibling, bench = Bench(app, name="sibling", prefetch=1), Bench(app, drain=True)
    sibling.turn()
    assert sibling.begin() is not None
    for _ in range(5):
        assert bench.io.step(0.001), "the sibling's task may come back"
        bench.work()
    sibling.finish()
    sibling.drain()
    for _ in range(5):
        if not bench.io.step(0.001):
            break
        bench.work()
    else:
        raise AssertionError("it does not end")
    assert bench.io.drained
    assert sorted(runs) == ["first", "second"]
    assert [each.id for each in app.transport.peek("default")] == [later.id]


def test_a_supervisor_that_drains_ends_with_its_processes(stage: Stage) -> None:
    results = [stage.call("quick") for _ in range(20)]
    held = stage.call("hold", "a")
    group = stage.start(processes=2, drain=True)
    for result in results:
        stage.get(result)
    stage.begun("a")
    assert group.process.poll() is None
    stage.release("a")
    assert group.exit_code() == 0
    assert stage.get(held)
    assert "its queues are empty" in group.log
