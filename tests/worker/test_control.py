"""Workers that are looked at and told what to do from afar. Those in processes: at the end."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import pytest
from stage import PATIENCE, Stage, all_ways
from workbench import Bench, until, working

import taskline
from taskline import Secret, Taskline
from taskline.clock import ManualClock
from taskline.control import States, presence
from taskline.control.presence import RECORD_TTL, Presence
from taskline.control.records import Order, ProcessInfo
from taskline.errors import ConfigurationError
from taskline.worker import WorkerOptions
from taskline.worker.remote import Remote


class Hold:
    """A task that runs until it is let go."""

    def __init__(self, app: Taskline) -> None:
        self.begun, self.go = threading.Semaphore(0), threading.Event()

        @app.task(name="hold")
        def hold(number: int, password: Annotated[str, Secret] = "none") -> None:
            self.begun.release()
            self.go.wait(PATIENCE)

        self.task = hold


def known(app: Taskline, count: int = 1) -> list[ProcessInfo]:
    return until(lambda: found if len(found := app.control.processes()) == count else [])


def test_a_worker_says_what_it_is(make_app: Any) -> None:
    app = make_app(version="2024.11")
    Hold(app)
    with working(app, name="mail-1", queues=["mail", "video"], threads=2):
        known(app)
        [worker] = app.workers()
        assert (worker.name, worker.pid, worker.slots) == ("mail-1", os.getpid(), 2)
        assert worker.queues == ["mail", "video"]
        assert worker.versions == ["2024.11"]
        assert worker.taskline == taskline.__version__
        assert worker.python.startswith("3.")
        assert not worker.stopping
        [process] = worker.processes
        assert process.supervisor is None
        assert process.memory > 2**20
        assert process.beat < RECORD_TTL
        assert process.tasks == 1
    assert app.workers() == [], "it said that it leaves"


def test_what_runs_is_told_and_secrets_are_not(app: Taskline) -> None:
    hold = Hold(app)
    results = [hold.task.delay(number, password="hunter2") for number in range(2)]
    with working(app, name="w", threads=2):
        known(app)
        for _ in results:
            assert hold.begun.acquire(timeout=PATIENCE)
        tasks, told = app.control.active(timeout=PATIENCE)
        assert not told.silent
        assert {task.id for task in tasks} == {result.id for result in results}
        assert [(task.task, task.queue, task.worker) for task in tasks] == [
            ("hold", "default", "w")
        ] * 2
        assert {task.slot for task in tasks} == {0, 1}
        assert all(task.arguments is None for task in tasks), "nobody asked"
        assert all(0 <= task.seconds < PATIENCE for task in tasks)
        shown, _ = app.control.active(arguments=True, timeout=PATIENCE)
        assert sorted(task.arguments or "" for task in shown) == [
            f"{number}, password='***'" for number in range(2)
        ]
        hold.go.set()
        for result in results:
            result.get(timeout=PATIENCE)
        assert app.control.active(timeout=PATIENCE)[0] == []


def test_coroutines_have_slots_and_the_loop_a_lag(app: Taskline) -> None:
    begun = threading.Event()

    @app.task(name="wait")
    async def wait() -> None:
        import asyncio

        begun.set()
        await asyncio.sleep(3600)

    wait.delay()
    with working(app, async_slots=5) as worker:
        assert begun.wait(PATIENCE)
        known(app)
        [task], _ = app.control.active(timeout=PATIENCE)
        assert (task.task, task.slot) == ("wait", 5)
        reporter = worker.io._remote and worker.io._remote.reporter
        assert reporter is not None
        assert until(lambda: reporter.info(False).lag)


def test_what_is_held_ahead_is_told(memory_app: Taskline) -> None:
    hold = Hold(memory_app)
    ids = [hold.task.delay(number).id for number in range(3)]
    remote = Remote(memory_app)
    bench = Bench(memory_app, remote=remote)
    bench.io._prefetch.observe([0.0001] * 100)
    bench.turn()
    bench.begin()
    reporter = remote.reporter
    assert reporter is not None
    question = Order(id="1", what="tell", workers=[], issued=0.0, ask="reserved", arguments=True)
    told = reporter.answer(question).reserved
    assert {task.id for task in told} == {*ids[1:]}
    assert {task.arguments for task in told} == {"1", "2"}
    info = reporter.info(False)
    assert (info.active, info.reserved) == (1, 2)


def test_what_has_ended_is_counted(app: Taskline) -> None:
    @app.task(name="good")
    def good() -> None: ...

    @app.task(name="bad", retry=1)
    def bad() -> None:
        raise ValueError("no")

    with working(app) as worker:
        for result in [good.delay(), good.delay(), bad.delay()]:
            result.get(timeout=PATIENCE, propagate=False)
        reporter = worker.io._remote and worker.io._remote.reporter
        assert reporter is not None

        def counts() -> tuple[int, int, int]:
            info = reporter.info(False)
            return info.done, info.retried, info.failed

        until(lambda: counts() == (2, 1, 1))


def test_tasks_that_one_worker_does_not_know_are_found(make_app: Any) -> None:
    old, new = make_app(), make_app()
    Hold(old)
    Hold(new)
    new.task(name="fresh")(lambda: None)
    with working(old, name="old"), working(new, name="new"):
        processes = {each.id: each.worker for each in known(new, 2)}
        found, told = new.control.registered(timeout=PATIENCE)
        assert not told.silent
        by_worker = {task: sorted(processes[each] for each in ids) for task, ids in found.items()}
        assert by_worker == {"fresh": ["new"], "hold": ["new", "old"]}


def test_a_worker_is_stopped_from_afar(app: Taskline) -> None:
    with working(app, name="a") as worker, working(app, name="b") as other:
        known(app, 2)
        told = app.control.shutdown(["a"], now=True, timeout=PATIENCE)
        assert told.refusals() == {}
        until(lambda: not worker._io_thread.is_alive())
        assert not other.io.stopping
        assert [each.name for each in app.workers()] == ["b"]


def test_what_needs_a_supervisor_is_refused_without_one(app: Taskline) -> None:
    with working(app, name="a"):
        known(app)
        why = "it has no supervisor that could"
        assert app.control.restart(timeout=PATIENCE).refusals() == {"a": f"{why} restart it"}
        assert app.control.scale(2, timeout=PATIENCE).refusals() == {"a": f"{why} scale it"}


def test_wrong_names_and_numbers(app: Taskline) -> None:
    with pytest.raises(ConfigurationError, match="no worker 'mial': none of this app gives a sign"):
        app.control.shutdown(["mial"], timeout=PATIENCE)
    with working(app, name="mail"):
        known(app)
        with pytest.raises(ConfigurationError, match="no worker 'mial': did you mean 'mail'"):
            app.control.active(["mial"], timeout=PATIENCE)
        for wrong in (0, -1, 1001, 1.5):
            with pytest.raises(ConfigurationError, match="must be a whole number from 1 to 1000"):
                app.control.scale(wrong, timeout=PATIENCE)  # type: ignore[arg-type]
        for grace in (-1.0, float("nan"), float("inf")):
            with pytest.raises(ConfigurationError, match="must be seconds, 0 or more"):
                app.control.restart(grace=grace, timeout=PATIENCE)


def test_without_a_backend_all_say_so() -> None:
    app = Taskline("bare", broker="memory://", backend=None)
    with working(app):
        for call in (app.workers, app.control.active, app.control.shutdown, app.control.state):
            with pytest.raises(ConfigurationError, match="the app bare has no result backend, by"):
                call()


@pytest.mark.parametrize(
    "settings",
    [
        {"max_message_size": 300},
        {"serializer": "pickle", "accept": ["pickle"], "accept_unsigned": True},
        {"compression": "zlib", "compress_above": 1},
    ],
)
def test_what_is_said_of_messages_does_not_concern_it(make_memory_app: Any, settings: Any) -> None:
    app = make_memory_app(**settings)
    with working(app, name="a"):
        known(app)
        assert not app.control.active(timeout=PATIENCE)[1].silent


def test_strangers_are_not_obeyed(make_app: Any, caplog: pytest.LogCaptureFixture) -> None:
    app, stranger = make_app(signing_key="secret"), make_app()
    with working(app, name="a") as worker:
        [process] = known(app)
        order = Order(id="1", what="shutdown", workers=[process.instance], issued=app.now())
        States(stranger).documents.keys().delete(States(app).key)
        States(stranger).order(order)
        until(lambda: "is not heeded: the message is not signed" in caplog.text)
        assert not worker.io.stopping
        States(stranger).documents.keys().delete(States(app).key)
        assert app.control.active(timeout=PATIENCE)[1].silent == []
        assert app.control.shutdown(timeout=PATIENCE).refusals() == {}
        until(lambda: worker.io.stopping)


def test_an_order_is_obeyed_once_and_by_whom_it_is_for(make_memory_app: Any) -> None:
    clock = ManualClock()
    app = make_memory_app(clock=clock)
    stops: list[bool] = []
    remote = Remote(app, WorkerOptions(instance="mine"), stops.append)
    Bench(app, remote=remote)

    def look() -> None:
        clock.advance(1.0)
        remote.look(clock.monotonic(), False)

    order = Order(id="1", what="shutdown", workers=["mine"], issued=clock.time(), now=True)
    States(app).order(order)
    look()
    States(app).order(Order(id="2", what="shutdown", workers=["other"], issued=clock.time()))
    look()
    States(app).order(order)
    look()
    assert stops == [True]


def test_an_order_is_taken_back(app: Taskline) -> None:
    with working(app, name="a") as worker:
        known(app)
        app.control.active(timeout=PATIENCE)
        assert States(app).get().orders == []
        app.control.shutdown(timeout=0.0)
        assert States(app).get().orders == []
        assert not app.control.active(timeout=PATIENCE)[1].silent, "it lives on"
        assert not worker.io.stopping


def test_orders_are_forgotten(make_memory_app: Any) -> None:
    app = make_memory_app()
    for number in range(150):
        States(app).order(Order(id=str(number), what="tell", workers=[], issued=1000.0 + number))
    kept = [int(order.id) for order in States(app).get().orders]
    assert kept == list(range(90, 150)), "those of the last minute"


# ---- the index


def some_process(number: int) -> ProcessInfo:
    return ProcessInfo(
        id=f"p{number}",
        worker="w",
        instance=f"i{number}",
        host="h",
        pid=number,
        queues=[],
        taskline="0",
        python="3",
        threads=1,
    )


def test_what_was_killed_is_gone_when_its_record_ends(make_memory_app: Any) -> None:
    clock = ManualClock()
    app = make_memory_app(clock=clock)
    there, keys = Presence(app), app.require_backend().keys()
    for number in range(2):
        there.beat(keys, some_process(number))
        there.join(keys, some_process(number))
    clock.advance(RECORD_TTL * 0.8)
    there.beat(keys, some_process(1))
    assert [round(each.beat, 3) for each in there.processes()] == [RECORD_TTL * 0.8, 0.0]
    clock.advance(RECORD_TTL * 0.4)
    assert [each.id for each in there.processes()] == ["p1"]
    assert list(there._read_index(keys)) == ["p1"], "and nobody looks for it again"


def test_the_index_shrinks_also_when_nobody_looks(make_memory_app: Any) -> None:
    clock = ManualClock()
    app = make_memory_app(clock=clock)
    there, keys = Presence(app), app.require_backend().keys()
    for number in range(20):
        there.beat(keys, some_process(number))
        there.join(keys, some_process(number))
    clock.advance(RECORD_TTL)
    for _ in range(20):
        there.beat(keys, some_process(20))
        there.join(keys, some_process(20))
    assert list(there._read_index(keys)) == ["p20"]


def test_who_joins_at_once_is_known(app: Taskline) -> None:
    there, keys = Presence(app), app.require_backend().keys()

    def join(number: int) -> None:
        there.beat(keys, some_process(number))
        while not there.join(keys, some_process(number)):
            pass

    threads = [threading.Thread(target=join, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(there.processes()) == 16


def test_an_index_that_is_lost_or_broken_is_made_anew(make_memory_app: Any) -> None:
    clock = ManualClock()
    app = make_memory_app(clock=clock)
    remote = Remote(app)
    Bench(app, remote=remote)
    keys = app.require_backend().keys()

    def live(seconds: int) -> None:
        for _ in range(seconds):
            clock.advance(1.0)
            remote.look(clock.monotonic(), False)

    for break_it in (
        lambda: keys.delete(app.control._presence._index),
        lambda: keys.set(app.control._presence._index, b"garbage", None),
    ):
        live(1)
        assert len(app.workers()) == 1
        break_it()
        live(40)
        assert len(app.workers()) == 1


def test_who_was_away_is_known_at_its_next_beat(make_memory_app: Any) -> None:
    clock = ManualClock()
    app = make_memory_app(clock=clock)
    remote = Remote(app)
    Bench(app, remote=remote)
    clock.advance(1.0)
    remote.look(clock.monotonic(), False)
    assert len(app.workers()) == 1
    clock.advance(RECORD_TTL + 1)
    assert app.workers() == []
    remote.look(clock.monotonic(), False)
    assert len(app.workers()) == 1


def test_what_an_idle_process_costs(make_memory_app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ManualClock()
    app = make_memory_app(clock=clock)
    remote = Remote(app)
    Bench(app, remote=remote)
    keys = app.require_backend().keys()
    calls: Counter[str] = Counter()
    for name in ("get", "set", "swap", "delete", "ttl", "expire", "increment", "acquire"):
        real = getattr(type(keys), name)

        def counted(*args: Any, name: str = name, real: Any = real, **kwargs: Any) -> Any:
            calls[name] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(type(keys), name, counted)
    for _ in range(600):
        clock.advance(1.0)
        remote.look(clock.monotonic(), False)
    assert calls["get"] <= 1.04 * 600
    assert calls["set"] <= 0.21 * 600 + 1
    assert sum(calls.values()) <= 1.3 * 600, "in ten minutes"


# ---- real processes


@pytest.fixture
def brisk(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Records end soon, here and in the processes that get this environment."""
    monkeypatch.setattr(presence, "RECORD_TTL", 3.0)
    return {"PROGRAM_RECORD_TTL": "3.0"}


def pids(stage: Stage) -> list[int]:
    return [each.pid for each in stage.app.control.processes()]


@all_ways
def test_a_killed_process_is_not_shown_beside_its_successor(stage: Stage, way: Any) -> None:
    group = stage.start(processes=2, name="w", **way)
    known(stage.app, 2)
    first, other = pids(stage)
    os.kill(first, signal.SIGKILL)
    until(lambda: len(found := pids(stage)) == 2 and first not in found, PATIENCE)
    [worker] = stage.app.workers()
    assert (worker.name, worker.pid) == ("w", group.process.pid)
    assert other in {each.pid for each in worker.processes}


def test_the_records_of_killed_workers_end(stage: Stage, brisk: dict[str, str]) -> None:
    group = stage.start(processes=2, env=brisk)
    known(stage.app, 2)
    group.signal_all(signal.SIGKILL)
    group.exit_code()
    _, told = stage.app.control.active(timeout=0.2)
    assert len(told.silent) == 2
    until(lambda: not stage.app.workers(), PATIENCE)


def silent(stage: Stage, timeout: float) -> list[int]:
    return [each.pid for each in stage.app.control.active(timeout=timeout)[1].silent]


def test_a_paused_process_is_silent_until_it_goes_on(stage: Stage) -> None:
    stage.start(processes=2)
    known(stage.app, 2)
    paused, _ = pids(stage)
    os.kill(paused, signal.SIGSTOP)
    try:
        until(lambda: silent(stage, 3.0) == [paused], PATIENCE)
    finally:
        os.kill(paused, signal.SIGCONT)
    assert silent(stage, PATIENCE) == []


@all_ways
def test_a_worker_is_restarted_process_by_process_and_loses_nothing(stage: Stage, way: Any) -> None:
    stage.start(processes=2, grace=PATIENCE, **way)
    known(stage.app, 2)
    before = set(pids(stage))
    held = stage.call("hold", "a")
    busy = stage.begun("a")
    quick = [stage.call("quick") for _ in range(30)]
    told = stage.app.control.restart(timeout=PATIENCE)
    assert not told.silent
    assert told.refusals() == {}

    def renewed() -> bool:
        found = {each.pid for each in stage.app.control.processes() if not each.stopping}
        return len(found) == 2 and not found & before

    until(renewed, PATIENCE)
    assert stage.get(stage.call("quick")) not in before
    stage.release("a")
    assert stage.get(held) == [busy, 1, 1]
    for result in quick:
        stage.get(result)
    until(lambda: set(pids(stage)).isdisjoint(before), PATIENCE)


def test_a_restart_hands_back_what_does_not_end_in_time(stage: Stage) -> None:
    stage.start()
    [before] = known(stage.app)
    held = stage.call("hold", "a")
    assert stage.begun("a") == before.pid
    stage.app.control.restart(grace=0.0, timeout=PATIENCE)
    assert stage.begun("a", times=2) != before.pid
    stage.release("a")
    assert stage.get(held)[1:] == [2, 1]


def test_a_worker_is_scaled_up_and_down(stage: Stage) -> None:
    group = stage.start(threads=1)
    known(stage.app)
    stage.app.control.scale(3, timeout=PATIENCE)
    known(stage.app, 3)
    results = [stage.call("hold", name) for name in "abc"]
    assert len({stage.begun(name) for name in "abc"}) == 3
    stage.app.control.scale(1, timeout=PATIENCE)
    until(lambda: sum(not each.stopping for each in stage.app.control.processes()) == 1, PATIENCE)
    for name in "abc":
        stage.release(name)
    for result in results:
        stage.get(result)
    assert [stage.count(name) for name in "abc"] == [1, 1, 1], "none ran twice"
    known(stage.app, 1)
    stage.app.control.scale(2, timeout=PATIENCE)
    known(stage.app, 2)
    numbers = [each.number for each in stage.app.control.processes()]
    assert numbers == [0, 1]
    assert "WARNING" not in group.log


def test_a_worker_that_scales_itself_is_not_scaled(stage: Stage) -> None:
    stage.start(name="w", max_processes=3)
    known(stage.app)
    told = stage.app.control.scale(2, timeout=PATIENCE)
    assert told.refusals() == {"w": "it has 1..3 processes, as needed"}


@pytest.mark.parametrize("now", [False, True])
def test_a_worker_is_shut_down(stage: Stage, now: bool) -> None:
    group = stage.start(processes=2, grace=PATIENCE)
    known(stage.app, 2)
    held = stage.call("hold", "a")
    stage.begun("a")
    stage.app.control.shutdown(now=now, timeout=PATIENCE)
    if now:
        assert group.exit_code() == 0
        assert stage.left() == {held.id: 0}
    else:
        until(lambda: "stopping: running tasks have" in group.log, PATIENCE)
        stage.release("a")
        assert group.exit_code() == 0
        assert stage.get(held)[1:] == [1, 1]
    assert stage.app.workers() == []


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_successor_that_cannot_start_does_not_end_the_rest(
    stage: Stage, tmp_path: Path, method: str
) -> None:
    (tmp_path / "fragile.py").write_text(
        "import os\n"
        "from program import DIRECTORY, make_app\n"
        "if os.path.exists(f'{DIRECTORY}/broken'):\n"
        "    make_app(DIRECTORY, brocker='x')\n"
        "app = make_app(DIRECTORY)\n"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parent), *os.sys.path])  # type: ignore[attr-defined]
    group = stage.start(
        processes=2,
        start_method=method,
        app_path="fragile:app",
        env={"PYTHONPATH": path},
    )
    known(stage.app, 2)
    (tmp_path / "broken").touch()
    stage.app.control.restart(timeout=PATIENCE)
    until(lambda: group.log.count("next try in") >= 2, PATIENCE)
    assert stage.get(stage.call("quick")) in {each.pid for each in stage.app.control.processes()}
    (tmp_path / "broken").unlink()
    until(lambda: group.log.count("(exit code 75)") == 2, PATIENCE)
