"""When a process is replaced although nothing is wrong, and its place on the machine."""

from __future__ import annotations

import os
from typing import Any

import pytest
from stage import WAYS, Stage, all_ways
from workbench import Bench, until

from taskline import Taskline
from taskline.clock import ManualClock
from taskline.errors import ConfigurationError
from taskline.worker import Supervisor, WorkerOptions, lifetime
from taskline.worker.lifetime import Lifetime

MIB = 2**20


def lifetime_of(now: float = 0.0, **options: Any) -> Lifetime:
    return Lifetime(WorkerOptions(**options), now)


def test_without_limits_a_process_lives_for_ever() -> None:
    life = lifetime_of()
    life.tasks = 10**9
    assert life.over(1e9) == ""


def test_tasks_are_counted() -> None:
    life = lifetime_of(max_tasks=3)
    life.tasks = 2
    assert life.over(1.0) == ""
    life.tasks = 3
    assert life.over(1.0) == "it has run 3 tasks (max_tasks=3)"


def test_age_counts_from_the_start() -> None:
    life = lifetime_of(now=100.0, max_age=60)
    assert life.over(159.0) == ""
    assert life.over(160.0) == "it is old enough (max_age=60 s)"


def test_memory_is_looked_at_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []

    def resident(pid: int) -> int:
        looks.append(pid)
        return 90 * MIB

    monkeypatch.setattr(lifetime, "resident", resident)
    life = lifetime_of(soft_memory_limit=80 * MIB)
    assert life.over(0.0) == "it uses 90 MiB (soft_memory_limit=80 MiB)"
    life = lifetime_of(soft_memory_limit=100 * MIB)
    for tenth in range(21):
        assert life.over(tenth / 10) == ""
    assert looks == [os.getpid()] * 4


def test_each_process_runs_something_however_large_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lifetime, "resident", lambda pid: 90 * MIB)
    life = lifetime_of(soft_memory_limit=80 * MIB)
    assert life.over(0.0, busy=False) == life.over(1.0, busy=False) == ""
    assert [record.getMessage() for record in caplog.records] == [
        "soft_memory_limit=80 MiB is too low: this process uses 90 MiB before its first task, "
        "and is replaced after it"
    ]
    assert life.over(2.0, busy=True)
    life = lifetime_of(soft_memory_limit=80 * MIB)
    life.tasks = 1
    assert life.over(0.0, busy=False)


def test_resident_memory_is_that_of_the_process() -> None:
    before = lifetime.resident(os.getpid())
    block = b"x" * (64 * MIB)
    grown = lifetime.resident(os.getpid()) - before
    assert 60 * MIB < grown < 100 * MIB
    assert len(block) == 64 * MIB
    assert lifetime.resident(2**22 + 1) == 0, "there is no such process"


def test_at_its_end_a_process_takes_no_more_and_finishes_what_runs(make_app: Any) -> None:
    clock = ManualClock()
    app = make_app(clock=clock)
    runs: list[str] = []

    @app.task
    def run(key: str) -> str:
        runs.append(key)
        return key

    first, second = run.map(["first", "second"])
    bench = Bench(app, lifetime=lifetime_of(clock.monotonic(), max_age=10), slots=2)
    bench.turn()
    bench.begin(0)
    bench.begin(1)
    bench.finish(0)
    assert bench.turn()
    assert bench.io.recycle == ""
    clock.advance(10.0)
    bench.turn()
    third = run.delay("third")
    assert bench.io.recycle == "it is old enough (max_age=10 s)"
    for _ in range(60):
        clock.advance(10.0)
        assert bench.turn(), "it may take as long as it takes"
    bench.finish(1)
    assert not bench.turn(2), "nothing is left to wait for"
    assert (first.result, second.result) == ("first", "second")
    assert runs == ["first", "second"]
    taken = app.transport.receive(["default"], 10, 30.0, 0.0, "next")
    assert [(each.id, each.lost) for each in taken] == [(third.id, 0)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"soft_memory_limit": 200, "memory_limit": 100},
            "soft_memory_limit=200 bytes is not below memory_limit=100 bytes",
        ),
        ({"memory_limit": MIB}, r"memory_limit=1 MiB: a process uses \d+ MiB before it runs"),
        ({"processes": 1001}, r"processes=1001: Expected `int` <= 1000"),
        ({"processes": 2, "max_processes": 9999}, "max_processes=9999: Expected `int` <= 1000"),
        ({"threads": 0}, "threads=0: Expected `int` >= 1"),
        ({"async_slots": 99_999_999}, "async_slots=99999999: Expected `int` <= 100000"),
        ({"queues": "mail"}, "queues='mail': Expected `array`, got `str`"),
        ({"lease": "30s"}, "lease='30s': Expected `float | null`, got `str`"),
        ({"max_age": 0.0}, "max_age=0.0: Expected `float` > 0.0"),
        ({"cpus": [9999]}, "there is no processor 9999 for this process; it may use 0"),
    ],
)
def test_limits_that_cannot_be_kept_are_refused(
    make_memory_app: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Supervisor(make_memory_app(), WorkerOptions(**options))


def test_processors_are_given_out_in_turn() -> None:
    options = WorkerOptions(cpus=[4, 7])
    assert [lifetime.cpus_of(options, number) for number in range(3)] == [[4], [7], [4]]
    assert lifetime.cpus_of(WorkerOptions(), 1) == []


def test_no_more_is_taken_than_may_still_run(memory_app: Taskline) -> None:
    runs: list[int] = []

    @memory_app.task
    def run(number: int) -> None:
        runs.append(number)

    run.map(range(5))
    bench = Bench(memory_app, lifetime=lifetime_of(max_tasks=3))
    turns = 0
    while bench.turn():
        bench.work()
        turns += 1
        assert turns < 20
    assert bench.io.recycle == "it has run 3 tasks (max_tasks=3)"
    assert runs == [0, 1, 2]


# ---- real processes

copied = pytest.mark.parametrize("way", WAYS[:2], ids=["fork", "forkserver"])


@copied
def test_a_process_is_replaced_after_its_tasks(stage: Stage, way: Any) -> None:
    group = stage.start(max_tasks=1, prefetch=1, **way)
    results = [stage.call("hold", f"run{number}") for number in range(3)]
    for number in range(3):
        stage.release(f"run{number}")
    pids = [stage.get(result)[0] for result in results]
    assert len(set(pids)) == 3
    assert "WARNING" not in group.log
    assert "this process ends after what it runs: it has run 1 tasks (max_tasks=1)" in group.log


@copied
def test_a_process_is_replaced_when_it_is_old(stage: Stage, way: Any) -> None:
    group = stage.start(max_age=1.0, **way)
    held = stage.call("hold", "run")
    old = stage.begun("run")
    young = until(lambda: (pid := stage.get(stage.call("quick"))) != old and pid)
    assert young != old
    stage.release("run")
    assert stage.get(held)[0] == old, "what it ran was allowed to end"
    assert "this process ends after what it runs: it is old enough (max_age=1 s)" in group.log


@copied
def test_a_process_that_grows_is_replaced_after_its_task(stage: Stage, way: Any) -> None:
    stage.start(soft_memory_limit=100 * MIB, **way)
    large = stage.call("grow", "large")
    grown = stage.begun("large")
    small = stage.call("quick")
    assert stage.get(small) != grown, "the large process took no more: its sibling did"
    stage.release("large")
    assert stage.get(large) == grown, "its task was allowed to end"


@copied
def test_a_process_that_grows_too_much_is_killed_as_if_it_had_crashed(
    stage: Stage, way: Any
) -> None:
    group = stage.start(memory_limit=100 * MIB, **way)
    result = stage.call("grow", "large")
    first = stage.begun("large")
    stage.begun("large", 2)
    stage.release("large")
    until(lambda: "than its memory_limit of 100 MiB: killed" in group.log)
    assert stage.get(result) != first


@all_ways
def test_processes_have_the_processors_and_the_niceness_they_were_given(
    stage: Stage, way: Any
) -> None:
    usable = sorted(os.sched_getaffinity(0))
    stage.start(cpus=[usable[-1]], nice=3, **way)
    assert stage.get(stage.call("place")) == ([usable[-1]], os.nice(0) + 3)
