"""Supervisors and their processes, signalled and killed. `program.py` is what runs in them."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

import pytest
from stage import LONG, PATIENCE, Stage, all_ways
from workbench import until

from taskline.errors import TaskPoisoned, TaskRevoked, TaskTimeout
from taskline.message import FAILURE, PENDING, STARTED, SUCCESS
from taskline.worker.orders import ending

# ---- a process dies


@all_ways
def test_the_task_of_a_killed_process_runs_again_at_once(stage: Stage, way: Any) -> None:
    group = stage.start(**way)
    neighbours = [stage.call("quick") for _ in range(20)]
    for result in neighbours:
        stage.get(result)
    held = stage.call("hold", "a")
    pid = stage.begun("a")
    waiting = [stage.call("quick") for _ in range(20)]
    os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    assert stage.begun("a", times=2) != pid
    again = time.monotonic() - killed
    stage.release("a")
    new_pid, deliveries, attempt = stage.get(held)
    assert new_pid != pid
    assert attempt == 1, "a crash is no attempt of the policy's"
    assert deliveries >= 2
    assert {stage.get(result) for result in waiting} == {new_pid}
    assert "signal SIGKILL" in group.log
    assert "replaced" in group.log
    # A second is promised; a machine that is busy with other tests may take longer.
    assert again < (5 if way else 3)


def test_the_coroutines_of_a_killed_process_run_again(stage: Stage) -> None:
    stage.start()
    held = [stage.call("hold_async", f"a{n}") for n in range(5)]
    pid = stage.begun("a0")
    for n in range(5):
        stage.begun(f"a{n}")
    os.kill(pid, signal.SIGKILL)
    for n in range(5):
        stage.release(f"a{n}")
    assert all(stage.get(result)[0] != pid for result in held)


def test_a_task_that_ends_its_process_politely_runs_again_at_once(stage: Stage) -> None:
    stage.start()
    result = stage.call("leave", "a")
    stage.begun("a")
    stage.release("a")
    assert stage.get(result) is None
    assert stage.count("a") == 2


def test_a_process_that_is_told_to_stop_is_replaced_and_loses_nothing(stage: Stage) -> None:
    stage.start(env={"PROGRAM_RECORD_TTL": "3"})
    first = stage.get(stage.call("quick"))
    held = stage.call("hold", "a")
    pid = stage.begun("a")
    os.kill(first, signal.SIGTERM)
    os.kill(first, signal.SIGTERM)  # only the supervisor may order to hurry
    # Until it has obeyed it may fetch ahead what is sent, and run that, too.
    until(lambda: [each.stopping for each in stage.app.control.processes()] == [True], PATIENCE)
    after = stage.call("quick")
    stage.release("a")
    assert stage.get(held) == [pid, 1, 1]
    assert stage.get(after) != first


@pytest.mark.parametrize("threads", [1, 4])
def test_poison_is_buried_and_its_neighbours_are_not(stage: Stage, threads: int) -> None:
    stage.start(threads=threads, max_deliveries=3)
    before = [stage.call("quick") for _ in range(30)]
    deadly = [stage.call("die", f"poison-{n}") for n in range(2)]
    after = [stage.call("quick") for _ in range(30)]
    for result in deadly:
        with pytest.raises(TaskPoisoned, match="died or lost its lease 3 times"):
            stage.get(result)
    for result in before + after:
        stage.get(result)
    assert 1 <= stage.count("poison-0") <= 3
    # An outcome is stored before its message is buried, and the process may die between.
    buried = {result.id for result in deadly}
    until(lambda: {letter.id for letter in stage.app.transport.dead_letters()} == buried, PATIENCE)


def test_poison_that_kills_the_supervisor_too_is_buried_alone(stage: Stage) -> None:
    deadly = stage.call("die_with_all", "poison")
    others = [stage.call("quick") for _ in range(10)]
    for _ in range(3):
        group = stage.start(max_deliveries=2, lease=0.5)
        until(lambda group=group: deadly.ready() or group.process.poll() is not None, PATIENCE)
        if deadly.ready():
            break
    with pytest.raises(TaskPoisoned):
        stage.get(deadly)
    for result in others:
        stage.get(result)
    assert stage.count("poison") == 2
    until(lambda: len(stage.app.transport.dead_letters()) == 1)  # it comes after the result


def test_after_the_death_of_all_the_lease_brings_the_task_back(stage: Stage) -> None:
    group = stage.start(lease=0.5)
    held = stage.call("hold", "a")
    stage.begun("a")
    group.signal_all(signal.SIGKILL)
    group.exit_code()
    stage.start(lease=0.5)
    stage.begun("a", times=2)
    stage.release("a")
    assert stage.get(held)[1:] == [2, 1]


def test_processes_that_die_young_are_replaced_ever_more_slowly(stage: Stage) -> None:
    group = stage.start(processes=1, env={"PROGRAM_DIES_YOUNG": "1"})
    until(lambda: group.log.count("next try in") >= 4, PATIENCE)
    waits = [
        float(line.rpartition("next try in ")[2].split()[0])
        for line in group.log.splitlines()
        if "next try in" in line
    ]
    assert waits[:4] == [0.2, 0.4, 0.8, 1.6]
    assert group.process.poll() is None
    group.signal(signal.SIGTERM)
    assert group.exit_code() == 0


@all_ways
def test_a_wrong_configuration_ends_the_supervisor_with_2(stage: Stage, way: Any) -> None:
    (stage.directory / "broker.db").write_text("this is no database at all. " * 50)
    group = stage.start(processes=2, **way)
    assert group.exit_code() == 2
    assert "is not an SQLite database" in group.log
    assert "Traceback" not in group.log


# ---- stopping


@all_ways
def test_sigterm_lets_running_tasks_end_and_hands_back_the_rest(stage: Stage, way: Any) -> None:
    group = stage.start(grace=PATIENCE, **way)
    held = stage.call("hold", "a")
    pid = stage.begun("a")
    waiting = [stage.call("quick") for _ in range(10)]
    group.signal(signal.SIGTERM)
    until(lambda: "stopping" in group.log, PATIENCE)
    stage.release("a")
    assert group.exit_code() == 0
    assert stage.get(held) == [pid, 1, 1]
    left = stage.left()
    assert set(left.values()) <= {0}
    # A busy machine may have had time for some before the order arrived.
    assert all(result.id in left or result.state == SUCCESS for result in waiting)
    assert not group.alive()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_whole_group_is_as_gentle(stage: Stage, number: int) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    try:
        group = stage.start(grace=PATIENCE, processes=2)
    finally:
        signal.signal(signal.SIGHUP, before)
    held = [stage.call("hold", "a"), stage.call("hold", "b")]
    stage.begun("a")
    stage.begun("b")
    group.signal_all(number)
    until(lambda: "stopping" in group.log, PATIENCE)
    assert len(group.alive()) == 3
    stage.release("a")
    stage.release("b")
    assert group.exit_code() == 0
    assert [stage.get(result)[0] for result in held] == [stage.begun("a"), stage.begun("b")]
    assert stage.count("a") == stage.count("b") == 1


def test_a_terminal_that_closes_ends_no_worker_that_is_to_ignore_it() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        assert ending() == (signal.SIGTERM, signal.SIGINT)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        assert ending() == (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_runs_longer_than_its_grace_is_handed_back(stage: Stage) -> None:
    group = stage.start(grace=0.3, threads=2)
    held = [stage.call("hold", "a"), stage.call("nap", "b"), stage.call("hold_async", "c")]
    for name in "abc":
        stage.begun(name)
    group.signal(signal.SIGTERM)
    assert group.exit_code() == 0
    assert stage.left() == {result.id: 0 for result in held}
    assert not group.alive()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_stops_at_once(stage: Stage, number: int) -> None:
    group = stage.start(grace=LONG)
    held = stage.call("hold", "a")
    stage.begun("a")
    waiting = [stage.call("quick") for _ in range(10)]
    group.signal_all(number)
    until(lambda: "again to stop now" in group.log, PATIENCE)
    assert stage.count("a") == 1
    group.signal_all(number)
    assert group.exit_code() == 0
    assert stage.left() == {result.id: 0 for result in [held, *waiting]}
    assert not group.alive()


def test_an_idle_worker_stops_at_once(stage: Stage) -> None:
    group = stage.start(grace=LONG, processes=2)
    stage.get(stage.call("quick"))
    group.signal(signal.SIGINT)
    assert group.exit_code() == 0


def test_a_worker_without_a_supervisor_obeys_signals(stage: Stage) -> None:
    group = stage.start("worker", grace=PATIENCE)
    held = stage.call("hold", "a")
    pid = stage.begun("a")
    group.signal(signal.SIGTERM)
    waiting = stage.call("quick")
    stage.release("a")
    assert group.exit_code() == 0
    assert stage.get(held) == [pid, 1, 1]
    group = stage.start("worker", grace=LONG)
    stage.get(waiting)
    held = stage.call("nap", "b")
    stage.begun("b")
    group.signal(signal.SIGINT)
    group.signal(signal.SIGTERM)
    assert group.exit_code() == 0
    assert stage.left() == {held.id: 0}


@all_ways
def test_processes_stop_by_themselves_when_their_supervisor_is_killed(
    stage: Stage, way: Any
) -> None:
    group = stage.start(processes=2, grace=PATIENCE, **way)
    held = stage.call("hold", "a")
    pid = stage.begun("a")
    group.signal(signal.SIGKILL)
    group.exit_code()
    until(lambda: group.alive() == [pid], PATIENCE)  # the idle one goes first
    stage.release("a")
    assert stage.get(held) == [pid, 1, 1]
    until(lambda: not group.alive(), PATIENCE)


# ---- time limits and revocation, where a slot is the main thread


def test_a_system_call_ends_at_the_time_limit(stage: Stage) -> None:
    stage.start()
    pid = stage.get(stage.call("quick"))
    with pytest.raises(TaskTimeout, match=r"longer than its timeout of 0\.2 s"):
        stage.get(stage.call("nap", "a", timeout=0.2))
    assert stage.get(stage.call("quick")) == pid, "the process lives on"
    assert stage.count("a") == 1


def test_a_revoked_system_call_ends(stage: Stage) -> None:
    stage.start()
    result = stage.call("nap", "a")
    pid = stage.begun("a")
    result.revoke(terminate=True)
    with pytest.raises(TaskRevoked):
        stage.get(result)
    assert stage.get(stage.call("quick")) == pid


def test_the_process_of_code_that_swallows_its_end_is_replaced(stage: Stage) -> None:
    group = stage.start()
    result = stage.call("deaf", "a", timeout=0.2)
    pid = stage.begun("a")
    with pytest.raises(TaskTimeout):
        stage.get(result)
    after = stage.get(stage.call("quick"))
    assert after != pid
    until(lambda: pid not in group.alive(), PATIENCE)
    assert stage.count("a") == 1
    assert "is replaced" in group.log
    assert stage.left() == {}


@all_ways
def test_code_that_keeps_the_interpreter_is_ended_with_its_process(stage: Stage, way: Any) -> None:
    group = stage.start(processes=2, **way)
    result = stage.call("stuck", "a", timeout=0.2)
    pid = stage.begun("a")
    with pytest.raises(TaskTimeout, match="did not react: its process was killed"):
        stage.get(result)
    assert stage.count("a") == 1, "no other process runs it again"
    until(lambda: pid not in group.alive(), PATIENCE)
    assert until(lambda: stage.app.transport.dead_letter(result.id), PATIENCE)
    stage.get(stage.call("quick"))


def test_a_coroutine_that_blocks_its_loop_is_given_up(stage: Stage) -> None:
    stage.start()

    # `hold_async` is released; a `def` slot keeps the interpreter free meanwhile.
    result = stage.call("hold_async", "a", timeout=0.3)
    pid = stage.begun("a")
    with pytest.raises(TaskTimeout):
        stage.get(result)
    assert stage.get(stage.call("quick")) == pid


# ---- paused, fenced, shared


def test_a_group_paused_beyond_its_lease_is_fenced(stage: Stage) -> None:
    paused = stage.start(lease=1.0)
    held = stage.call("hold", "a")
    first = stage.begun("a")
    paused.signal_all(signal.SIGSTOP)
    stage.start(lease=LONG)
    second = stage.begun("a", times=2)
    stage.release("a")
    assert stage.get(held)[0] == second
    paused.signal_all(signal.SIGCONT)
    until(lambda: ["end", "a", str(first)] in stage.notes(), PATIENCE)
    until(lambda: "lost its lease" in paused.log or "outcome dropped" in paused.log, PATIENCE)
    info = stage.app.AsyncResult(held.id).info
    assert (info["state"], info["deliveries"]) == (SUCCESS, 2)
    assert stage.get(stage.app.AsyncResult(held.id))[0] == second
    assert stage.app.transport.peek("default") == []
    assert stage.app.transport.dead_letters() == []


def test_a_long_task_holds_back_nothing_that_an_idle_process_could_run(stage: Stage) -> None:
    stage.start(processes=2)
    for result in [stage.call("quick") for _ in range(200)]:
        stage.get(result)
    with stage.app.batch() as results:
        stage.call("hold", "a")
        for _ in range(300):
            stage.call("quick")
    busy = stage.begun("a")
    quick = [stage.get(result) for result in list(results)[1:]]
    assert results[0].state in (PENDING, STARTED), "it still runs"
    assert len(quick) == 300
    assert stage.count("a") == 1
    stage.release("a")
    assert stage.get(results[0])[0] == busy


def test_the_command_line_starts_all_this(stage: Stage) -> None:
    command = [sys.executable, "-m", "taskline", "worker", "-A", "program:app", "-c", "2"]
    group = stage.launch([*command, "--start-method", "spawn", "--threads", "2"])
    held = stage.call("hold", "a")
    pid = stage.begun("a")
    os.kill(pid, signal.SIGKILL)
    stage.begun("a", times=2)
    stage.release("a")
    assert stage.get(held)[0] != pid
    group.signal(signal.SIGTERM)
    assert group.exit_code() == 0


def test_results_and_failures_look_alike_from_every_process(stage: Stage) -> None:
    stage.start(processes=2, name="shop-1")
    result = stage.call("quick")
    stage.get(result)
    assert result.info["worker"] == "shop-1"
    unknown = stage.app.send_task("nowhere")
    until(unknown.ready, PATIENCE)
    assert unknown.state == FAILURE
