"""The server that forks a worker's processes: it dies, and it is replaced for new code."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from stage import PATIENCE, Group, Stage
from workbench import until

from taskline.errors import ConfigurationError
from taskline.worker import Supervisor, WorkerOptions


def pids(stage: Stage, count: int) -> list[int]:
    """The worker processes, when they are so many."""

    def look() -> list[int]:
        found = [each.pid for each in stage.app.control.processes()]
        return found if len(found) == count else []

    return until(look, PATIENCE)


def server_of(group: Group, processes: list[int]) -> int:
    [server] = set(group.alive()) - {group.process.pid, *processes}
    return server


def start(stage: Stage, directory: Path, code: str, processes: int) -> Group:
    (directory / "versions.py").write_text(code)
    paths = [str(directory), str(Path(__file__).parent), *os.sys.path]  # type: ignore[attr-defined]
    return stage.start(
        processes=processes,
        start_method="forkserver",
        app_path="versions:app",
        grace=PATIENCE,
        env={"PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"},
    )


def version(number: int) -> str:
    return (
        "from program import DIRECTORY, make_app\n"
        "app = make_app(DIRECTORY)\n"
        f"app.task(name='version')(lambda: {number})\n"
    )


def test_the_app_is_imported_once_for_all_processes(stage: Stage, tmp_path: Path) -> None:
    code = "import os\nfrom program import note\nnote('imported', os.getpid())\n" + version(1)
    group = start(stage, tmp_path, code, 2)
    processes = pids(stage, 2)
    os.kill(processes[0], signal.SIGKILL)
    until(lambda: processes[0] not in pids(stage, 2), PATIENCE)
    assert stage.notes() == [["imported", str(server_of(group, pids(stage, 2)))]]


def test_a_server_that_dies_is_replaced_and_its_processes_work_on(stage: Stage) -> None:
    group = stage.start(
        processes=2, start_method="forkserver", app_path="program:app", grace=PATIENCE
    )
    processes = pids(stage, 2)
    held = [stage.call("hold", "a"), stage.call("hold", "b")]
    first, second = stage.begun("a"), stage.begun("b")
    os.kill(server_of(group, processes), signal.SIGKILL)
    until(lambda: "the fork server ended (exit code -9)" in group.log, PATIENCE)
    os.kill(first, signal.SIGKILL)
    third = stage.begun("a", times=2)
    assert third not in processes
    stage.release("a")
    assert stage.get(held[0])[::2] == [third, 1]
    group.signal(signal.SIGTERM)
    until(lambda: "stopping" in group.log, PATIENCE)
    stage.release("b")
    assert group.exit_code() == 0
    assert stage.get(held[1])[::2] == [second, 1]
    assert not group.alive()


def test_a_restart_brings_new_code(stage: Stage, tmp_path: Path) -> None:
    group = start(stage, tmp_path, version(1), 2)
    before = pids(stage, 2)
    old_server = server_of(group, before)
    assert stage.get(stage.app.send_task("version")) == 1
    (tmp_path / "versions.py").write_text(version(2))
    stage.app.control.restart(timeout=PATIENCE)
    until(lambda: not set(before) & set(group.alive()), PATIENCE)
    until(lambda: old_server not in group.alive(), PATIENCE)
    assert stage.get(stage.app.send_task("version")) == 2
    assert server_of(group, pids(stage, 2)) != old_server
    group.signal_all(signal.SIGTERM)
    assert group.exit_code() == 0
    assert not group.alive()


def test_an_app_that_cannot_be_imported_ends_the_worker_with_2(
    stage: Stage, tmp_path: Path
) -> None:
    group = start(stage, tmp_path, "import nothing_of_that_name\n", 2)
    assert group.exit_code() == 2
    assert "importing versions failed: ModuleNotFoundError" in group.log
    # Where, and no line of ours.
    places = [line for line in group.log.splitlines() if line.startswith("  File ")]
    assert places == [f'  File "{tmp_path}/versions.py", line 1, in <module>']
    assert "next try" not in group.log
    assert not group.alive()


def test_a_server_needs_the_path_of_the_app(stage: Stage) -> None:
    with pytest.raises(ConfigurationError, match="'forkserver' needs app_path"):
        Supervisor(stage.app, WorkerOptions(start_method="forkserver"))
