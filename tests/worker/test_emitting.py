"""Tasks that end by sending others: stored, sent, and only then acknowledged."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from taskline import Reject, Retry, Taskline, current_task, emit
from taskline.emitting import Emitted, emitted_id
from taskline.errors import InvalidArguments, NotSupported, TaskFailed
from taskline.testing.faults import FaultPlan, FaultyTransport
from taskline.transports.base import Transport
from taskline.worker import Worker, WorkerOptions


@pytest.fixture(params=["one store", "two stores"])
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Taskline]:
    backend = "jobs" if request.param == "one store" else "results"
    app = Taskline(
        "fan", broker=f"sqlite:///{tmp_path}/jobs.db", backend=f"sqlite:///{tmp_path}/{backend}.db"
    )

    @app.task(name="store", queue="rows")
    def store(row: int) -> int:
        return row * row

    @app.task(name="split", retry={"max": 2, "wait": 0})
    def split(rows: int, fail: str = "") -> int:
        if fail == "retry" and current_task.attempt < 3:
            raise Retry("again")
        if fail == "reject":
            raise Reject("no")
        return emit(*[store.si(row) for row in range(rows)], result=rows)

    @app.task(name="nothing")
    async def nothing() -> None:
        return emit(store.si(9))

    with app:
        yield app


def work(app: Taskline) -> Worker:
    worker = Worker(app, WorkerOptions(threads=2))
    worker.start()
    return worker


@pytest.fixture
def worker(app: Taskline) -> Iterator[Worker]:
    worker = work(app)
    yield worker
    worker.stop(5)


def test_what_is_emitted_runs_and_the_result_is_the_tasks(app: Taskline, worker: Worker) -> None:
    result = app.tasks["split"].delay(5)
    assert result.get(timeout=20) == 5
    ids = [emitted_id(result.id, index) for index in range(5)]
    assert [app.AsyncResult(each).get(timeout=20) for each in ids] == [0, 1, 4, 9, 16]
    again = app.tasks["nothing"].delay()
    assert again.get(timeout=20) is None
    assert app.AsyncResult(emitted_id(again.id, 0)).get(timeout=20) == 81


def test_an_attempt_that_fails_sends_nothing(app: Taskline, worker: Worker) -> None:
    result = app.tasks["split"].delay(3, "retry")
    assert result.get(timeout=20) == 3
    assert app.AsyncResult(emitted_id(result.id, 2)).get(timeout=20) == 4
    failed = app.tasks["split"].delay(3, "reject")
    with pytest.raises(TaskFailed):
        failed.get(timeout=20)
    assert app.AsyncResult(emitted_id(failed.id, 0)).state == "PENDING"
    assert app.transport.peek("rows") == []


def test_what_can_be_emitted(app: Taskline) -> None:
    store: Any = app.tasks["store"]
    emitted: Any = emit(store.si(1), store.options(queue="audit").si(2), result="x")
    assert isinstance(emitted, Emitted)
    assert emitted.result == "x"
    for wrong in (store, 5, store.s(), store.si(1) | store.s()):
        with pytest.raises(InvalidArguments, match=r"emit\(\) sends single calls"):
            emit(wrong)
    with pytest.raises(InvalidArguments):
        emit(store.si("no number"))


def test_options_go_with_the_call(app: Taskline) -> None:
    @app.task(name="audited")
    def audited() -> None:
        store: Any = app.tasks["store"]
        return emit(store.options(queue="audit", priority=9, countdown=600).si(2))

    result = app.tasks["audited"].delay()
    worker = work(app)
    try:
        result.get(timeout=20)
    finally:
        worker.stop(5)
    (stored,) = app.transport.peek("audit")
    assert (stored.id, stored.state) == (emitted_id(result.id, 0), "delayed")
    header, _ = app.codec.open(stored.frame)
    assert (header.parent, header.root, header.priority) == (result.id, result.id, 9)


def test_eager_tasks_run_what_they_emit() -> None:
    app = Taskline("fan", broker="memory://eager-emit", eager=True)
    ran = []

    @app.task
    def leaf(number: int) -> None:
        ran.append(number)

    @app.task
    def tree(number: int) -> int:
        return emit(leaf.si(number), leaf.si(number + 1), result=number)

    assert tree.delay(3).get() == 3
    assert ran == [3, 4]


def faulty(app: Taskline, plan: FaultPlan) -> FaultyTransport:
    transport = FaultyTransport(app.open_transport(), plan)
    app.open_transport = lambda: transport  # type: ignore[method-assign]
    return transport


@pytest.mark.parametrize("kind", ["before", "after"])
@pytest.mark.parametrize("call", ["send", "ack"])
def test_a_broker_that_fails_in_between_loses_and_repeats_nothing(
    app: Taskline, call: str, kind: Any
) -> None:
    result = app.tasks["split"].delay(4)
    transport = faulty(app, FaultPlan.exactly({(call, 1): kind}))
    worker = work(app)
    try:
        ids = [emitted_id(result.id, index) for index in range(4)]
        assert [app.AsyncResult(each).get(timeout=20) for each in ids] == [0, 1, 4, 9]
    finally:
        worker.stop(5)
    assert [fault.call for fault in transport.faults] == [call]
    assert not any(each.ready or each.leased or each.dead for each in app.transport.stats())


def test_what_can_never_be_sent_is_the_tasks_failure(app: Taskline) -> None:
    result, other = app.tasks["split"].delay(2), app.tasks["store"].delay(3)

    class Refusing(FaultyTransport):
        def send(self, messages: Any) -> None:
            raise NotSupported("it takes no more")

    transport: Transport = Refusing(app.open_transport(), FaultPlan.exactly({}))
    app.open_transport = lambda: transport  # type: ignore[method-assign]
    worker = work(app)
    try:
        assert other.get(timeout=20) == 9
        by = app.clock.monotonic() + 20
        while not (letters := app.transport.dead_letters()):
            assert app.clock.monotonic() < by
            app.clock.sleep(0.01)
    finally:
        worker.stop(5)
    assert [each.id for each in letters] == [result.id]
    assert letters[0].reason == "what it emits cannot be sent: it takes no more"


PROGRAM = """
import os, time
from taskline import Taskline, emit
from taskline.worker.settle import Settlements

app = Taskline("fan", broker=os.environ["BROKER"], backend=os.environ["BACKEND"], lease=1.0)

@app.task(name="store", queue="rows")
def store(row: int) -> int:
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(f"{row}\\n")
    return row

@app.task(name="split")
def split(first: int) -> int:
    with open(os.environ["NOTES"] + ".runs", "a") as notes:
        notes.write(f"{first}\\n")
    return emit(*[store.si(first + n) for n in range(5)], result=first)

if os.environ.get("DIE"):
    # Two processes are killed at the worst moment, before or after what is emitted was sent.
    send = Settlements._emit

    def emit_and_die(self, jobs):
        emitting = [job for job in jobs if job.emits]
        if os.environ["DIE"] == "after":
            send(self, jobs)
        died = os.environ["NOTES"] + ".died"
        if emitting and (not os.path.exists(died) or os.path.getsize(died) < 2):
            with open(died, "a") as file:
                file.write("x")
            os.kill(os.getpid(), 9)
        if os.environ["DIE"] == "before":
            send(self, jobs)

    Settlements._emit = emit_and_die
"""


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_in_between_nothing_is_lost(tmp_path: Path, moment: str) -> None:
    """The task runs again, and sends the same ids: what waits still is not stored twice."""
    (tmp_path / "fan.py").write_text(PROGRAM)
    notes = tmp_path / "notes"
    environment = {
        **os.environ,
        "BROKER": f"sqlite:///{tmp_path}/jobs.db",
        "BACKEND": f"sqlite:///{tmp_path}/results.db",
        "NOTES": str(notes),
        "PYTHONPATH": os.getcwd(),
        "DIE": moment,
    }
    only = ["-Q", "default", "-c", "1", "--threads", "1"]
    command = [sys.executable, "-m", "taskline", "worker", "-A", "fan"]
    backend = environment["BACKEND"]
    with Taskline("caller", broker=environment["BROKER"], backend=backend) as caller:
        results = [caller.send_task("split", (10 * n,)) for n in range(6)]
        log = (tmp_path / "log").open("wb")
        first = subprocess.Popen(
            [*command, *only], cwd=tmp_path, env=environment, start_new_session=True, stderr=log
        )
        try:
            assert [each.get(timeout=60) for each in results] == [0, 10, 20, 30, 40, 50]
            while any(each.ready or each.leased for each in caller.transport.stats(["default"])):
                assert first.poll() is None
                caller.clock.sleep(0.01)
        finally:
            os.killpg(first.pid, signal.SIGKILL)
            first.wait()
        second = subprocess.Popen(
            command,
            cwd=tmp_path,
            env={key: text for key, text in environment.items() if key != "DIE"},
            start_new_session=True,
            stderr=log,
        )
        try:
            for result, n in zip(results, range(6), strict=True):
                for index in range(5):
                    key = emitted_id(result.id, index)
                    assert caller.AsyncResult(key).get(timeout=60) == 10 * n + index
        finally:
            second.terminate()
            assert second.wait(60) == 0
            log.close()
    runs = (tmp_path / "notes.runs").read_text().splitlines()
    stored = notes.read_text().splitlines()
    assert sorted(set(stored)) == sorted(
        str(10 * n + index) for n in range(6) for index in range(5)
    )
    assert len(runs) > 6, "nobody was killed"
    assert len(stored) == 30, "something was sent twice although it waited still"
