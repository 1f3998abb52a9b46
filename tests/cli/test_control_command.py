"""`taskline inspect` and `taskline control`, with a worker in this process."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from taskline import Taskline
from taskline.cli import root
from taskline.worker import Worker, WorkerOptions

PATIENCE = 30.0
PROJECT = """
import threading
from typing import Annotated
from taskline import Secret, Taskline

app = Taskline("shop", broker="sqlite:///shop.db", backend={backend}, version="7")
go, begun = threading.Event(), threading.Event()

@app.task(name="hold")
def hold(number: int, key: Annotated[str, Secret]) -> None:
    begun.set()
    go.wait(30)
"""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TASKLINE_APP", raising=False)
    for name, backend in (("kept", '"sqlite:///shop.db"'), ("keepless", "None")):
        Path(f"{name}.py").write_text(PROJECT.replace("{backend}", backend))
    yield
    for name in ("kept", "keepless"):
        sys.modules.pop(name, None)


@pytest.fixture
def app(project: None) -> Iterator[Taskline]:
    """The app, whose worker `mail-1` runs in this process."""
    assert run("inspect").exit_code == 1  # imports it
    found = sys.modules["kept"].app
    assert isinstance(found, Taskline)
    worker = Worker(found, WorkerOptions(name="mail-1"))
    worker.start()
    stop = threading.Event()
    while not found.workers():
        assert not stop.wait(0.02)
    yield found
    sys.modules["kept"].go.set()
    worker.stop(0.0)
    found.close()


def run(*words: str, app: str = "kept") -> Result:
    return CliRunner().invoke(root.cli, [*words, "-A", app], prog_name="taskline")


def test_workers_are_listed(app: Taskline) -> None:
    shown = run("inspect")
    assert (shown.exit_code, shown.stderr) == (0, "")
    head, row = shown.stdout.splitlines()
    assert " ".join(head.split()) == (
        "WORKER STATE HOST PID PROCS SLOTS ACTIVE DONE FAILED QUEUES VERSION UP BEAT"
    )
    assert row.split()[:2] == ["mail-1", "running"]
    assert row.split()[4:11] == ["1", "1", "0", "0", "0", "default", "7"]
    found = json.loads(run("inspect", "workers", "--json").stdout)
    assert found["paused"] == []
    assert found["rates"] == {}
    [worker] = found["workers"]
    assert (worker["name"], worker["versions"], worker["slots"]) == ("mail-1", ["7"], 1)
    assert worker["processes"][0]["done"] == 0, "what is 0 is said, too"


def test_what_they_heed_is_shown(app: Taskline) -> None:
    assert run("control", "pause", "mail").exit_code == 0
    assert run("control", "rate", "hold", "10/s").stdout == "hold: 10/s from now on\n"
    assert run("inspect").stderr == "paused queues: mail\nchanged rate: hold 10/s\n"
    found = json.loads(run("inspect", "--json").stdout)
    assert (found["paused"], found["rates"]) == (["mail"], {"hold": "10/s"})
    assert run("control", "resume", "mail").exit_code == 0
    assert run("control", "rate", "hold", "--default").stdout == "hold: as the code says\n"
    assert run("inspect").stderr == ""


def test_what_runs_is_listed(app: Taskline) -> None:
    assert run("inspect", "active").stdout == "nothing runs\n"
    result = app.tasks["hold"].delay(1, key="hunter2")
    assert sys.modules["kept"].begun.wait(PATIENCE)
    plain = run("inspect", "active").stdout
    assert result.id in plain
    assert "hunter2" not in plain
    assert "ARGUMENTS" not in plain
    shown = run("inspect", "active", "--args")
    assert "1, key='***'" in shown.stdout
    [task] = json.loads(run("inspect", "active", "--json").stdout)["active"]
    assert (task["id"], task["task"], task["worker"]) == (result.id, "hold", "mail-1")
    assert task["arguments"] is None
    assert run("inspect", "reserved").stdout == "nothing is held ahead\n"
    sys.modules["kept"].go.set()


def test_counts_and_tasks_are_listed(app: Taskline) -> None:
    assert "mail-1" in run("inspect", "stats").stdout
    [process] = json.loads(run("inspect", "stats", "--json").stdout)
    assert (process["worker"], process["failed"]) == ("mail-1", 0)
    tasks = run("inspect", "registered").stdout.splitlines()
    assert tasks[1].split() == ["hold", "1", "of", "1", "-"]
    found = json.loads(run("inspect", "registered", "--json").stdout)
    assert list(found["registered"].values()) == [["hold"]]
    assert (found["missing"], found["silent"]) == ({}, [])


def test_a_worker_that_does_not_answer_is_named(
    app: Taskline, monkeypatch: pytest.MonkeyPatch
) -> None:
    from taskline.worker.remote import Remote

    monkeypatch.setattr(Remote, "_obey", lambda *args: None)
    asked = run("inspect", "active", "--timeout", "100ms")
    assert asked.exit_code == 4
    assert "worker mail-1 (pid " in asked.stderr
    assert "did not answer; its last sign of life was " in asked.stderr
    told = run("control", "shutdown", "--all", "--timeout", "100ms")
    assert told.exit_code == 4
    assert "worker mail-1 (pid " in told.stderr


def test_orders(app: Taskline) -> None:
    refused = run("control", "scale", "2", "--all")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "worker mail-1 does not: it has no supervisor that could scale it" in refused.stderr
    told = json.loads(run("control", "restart", "--worker", "mail-1", "--json").stdout)
    assert told["workers"] == []
    assert list(told["refused"]) == ["mail-1"]
    stopped = run("control", "shutdown", "-w", "mail-1")
    assert (stopped.exit_code, stopped.stdout) == (0, "worker mail-1 stops\n")


@pytest.mark.parametrize(
    ("words", "code", "complaint"),
    [
        ("inspect", 1, "no worker of the app shop gives a sign of life in its backend sqlite:"),
        ("inspect active", 1, "no worker of the app shop gives a sign of life"),
        ("inspect stats --worker x", 2, "no worker 'x': none of this app gives a sign of life"),
        ("inspect -w x active", 2, "--worker stands after 'active'"),
        ("inspect actve", 2, "no such command 'actve'; did you mean active?"),
        ("control shutdown", 2, "name the workers with --worker NAME, or say --all"),
        ("control shutdown --all --worker x", 2, "give --worker or --all, not both"),
        ("control shutdown --all", 1, "no worker of the app shop gives a sign of life"),
        ("control scale 0 --all", 2, "'0' is not a whole number of at least 1"),
        ("control scale 5000 --all", 2, "processes=5000: must be a whole number from 1 to 1000"),
        ("control rate hold", 2, "give a RATE such as 10/s, or --default"),
        ("control rate hold 1/s --default", 2, "give a RATE such as 10/s, or --default"),
        ("control rate hold fast", 2, "rate='fast'"),
        ("control rate hol 1/s", 2, "no task 'hol' in this app; did you mean hold?"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(words: str, code: int, complaint: str) -> None:
    done = run(*words.split())
    assert done.exit_code == code
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.parametrize(
    "words",
    [
        "inspect",
        "inspect active",
        "inspect reserved",
        "inspect stats",
        "inspect registered",
        "control shutdown --all",
        "control restart --all",
        "control scale 2 --all",
        "control rate hold 1/s",
    ],
)
def test_without_a_backend_each_says_so(words: str) -> None:
    done = run(*words.split(), app="keepless")
    assert done.exit_code == 2
    assert "the app shop has no result backend, by which workers are asked and told" in done.stderr
    assert done.stderr.count("\n") == 1


def test_control_alone_shows_its_help() -> None:
    done = run("control")
    assert done.exit_code == 2
    assert "Commands:" in done.stderr
