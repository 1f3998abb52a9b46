"""`taskline worker`: its options, and real workers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

import taskline
from taskline import Taskline
from taskline.cli.root import cli
from taskline.cli.worker import parse_queues
from taskline.errors import ConfigurationError
from taskline.worker import WorkerOptions
from taskline.worker.options import START_METHODS


@pytest.mark.parametrize(
    ("given", "names", "weights", "ranks"),
    [
        ((), [], {}, {}),
        (("a",), ["a"], {}, {}),
        (("a,b:5",), ["a", "b"], {"b": 5}, {}),
        ((" a , b:5 ", "c"), ["a", "b", "c"], {"b": 5}, {"c": 1}),
        (("a", "b", "c:2,d"), ["a", "b", "c", "d"], {"c": 2}, {"b": 1, "c": 2, "d": 2}),
    ],
)
def test_queues_with_weights_and_ranks(
    given: tuple[str, ...], names: list[str], weights: dict[str, int], ranks: dict[str, int]
) -> None:
    assert parse_queues(given) == (names, weights, ranks)


@pytest.mark.parametrize("given", ["", "a,", "a:", ":5", "a:0", "a:-1", "a:x", "a:b:", "a:1.5"])
def test_what_is_no_queue_is_refused(given: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a queue: write NAME or NAME:WEIGHT"):
        parse_queues((given,))


def test_a_strict_order_is_written_otherwise() -> None:
    with pytest.raises(click.BadParameter, match="such as -Q critical -Q default"):
        parse_queues(("critical>default",))


def test_a_name_that_no_queue_can_have_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="queue='my queue': must be 1 to 200 characters"):
        parse_queues(("my queue",))


def test_a_queue_named_twice_is_refused() -> None:
    with pytest.raises(click.BadParameter, match="queue 'a' is named twice"):
        parse_queues(("a,b", "a:3"))
    with pytest.raises(click.BadParameter, match="queue 'a' is named twice"):
        parse_queues(("a,b,a",))


# Real workers, in processes of their own

PROJECT = """
import os
from taskline import Taskline
app = Taskline(
    "shop", broker="sqlite:///shop.db", backend="sqlite:///shop.db", include=["proj.tasks"]
)

@app.task(queue="mail")
def pid() -> int:
    return os.getpid()
"""

TASKS = """
from proj.app import app

@app.task
def add(a: int, b: int) -> int:
    return a + b
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A directory with a project."""
    (tmp_path / "proj").mkdir()
    (tmp_path / "proj" / "app.py").write_text(PROJECT)
    (tmp_path / "proj" / "tasks.py").write_text(TASKS)
    return tmp_path


def test_every_option_reaches_the_supervisor(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[WorkerOptions] = []

    class Supervisor:
        """Keeps what it is given, and ends at once."""

        def __init__(self, app: Taskline, options: WorkerOptions) -> None:
            given.append(options)

        def run(self) -> int:
            return 7

    monkeypatch.setattr("taskline.worker.Supervisor", Supervisor)
    monkeypatch.chdir(project)
    monkeypatch.setattr(sys, "path", [str(project), *sys.path])
    words = (
        "worker -A proj -c 3 --threads 4 --async-slots 5 -Q a,b:2 -Q c --lease 1m --grace 0 "
        "--prefetch 6 --max-deliveries 8 -n me -l error --start-method spawn"
    )
    run = CliRunner().invoke(cli, words.split())
    for name in [each for each in sys.modules if each.partition(".")[0] == "proj"]:
        del sys.modules[name]
    assert run.exit_code == 7
    assert given == [
        WorkerOptions(
            queues=["a", "b", "c"],
            weights={"b": 2},
            ranks={"c": 1},
            processes=3,
            threads=4,
            async_slots=5,
            lease=60.0,
            grace=0.0,
            prefetch=6,
            max_deliveries=8,
            name="me",
            start_method="spawn",
            app_path="proj.app:app",
            loglevel="error",
        )
    ]


def command(project: Path, *words: str) -> subprocess.Popen[str]:
    """`taskline` in a process of its own, in the directory of the project."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("TASKLINE_")}
    return subprocess.Popen(
        [sys.executable, "-m", "taskline", *words],
        cwd=project,
        env={**env, "PYTHONPATH": str(Path(taskline.__file__).parent.parent)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str], order: signal.Signals | None = None) -> tuple[int, str]:
    """The exit code and what was said on standard error, after a signal."""
    if order is not None:
        process.send_signal(order)
    try:
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, said


@contextlib.contextmanager
def working(project: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """A worker, and what it said of itself when it was started."""
    process = command(project, "worker", "-A", "proj", "--json", *words)
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        if not first:
            pytest.fail(end(process)[1])
        yield process, json.loads(first)
    finally:
        process.kill()
        process.wait(timeout=60)


@pytest.mark.parametrize("method", START_METHODS)
def test_a_worker_runs_what_is_sent(project: Path, method: str) -> None:
    with working(project, "--start-method", method, "-c", "2", "--threads", "2") as (process, said):
        assert (said["pid"], said["path"]) == (process.pid, "proj.app:app")
        assert said["queues"] == {"default": 1, "mail": 1}
        assert (said["processes"], said["threads"]) == (2, 2)
        assert said["tasks"] == ["proj.app.pid", "proj.tasks.add"]
        sent = command(project, "send", "-A", "proj", "proj.tasks.add", "1", "2", "--wait", "50")
        printed, complaint = sent.communicate(timeout=60)
        assert (sent.returncode, complaint) == (0, "")
        assert printed.splitlines()[1] == "3"
        code, log = end(process, signal.SIGTERM)
    assert code == 0, log


def test_a_worker_serves_the_queues_it_is_told(project: Path) -> None:
    with working(project, "-Q", "mail:5,other") as (process, said):
        assert said["queues"] == {"mail": 5, "other": 1}
        other = command(project, "send", "-A", "proj", "proj.tasks.add", "1", "2")
        assert end(other)[0] == 0
        sent = command(project, "send", "-A", "proj", "proj.app.pid", "--wait", "50")
        assert end(sent)[0] == 0
        code, log = end(process, signal.SIGTERM)
    assert code == 0, log
    counted = command(project, "queues", "-A", "proj", "--json")
    assert counted.stdout is not None
    [stats] = json.loads(counted.stdout.read())
    assert (stats["queue"], stats["ready"]) == ("default", 1)
    assert end(counted)[0] == 0


def test_one_pidfile_is_for_one_worker(project: Path) -> None:
    path = project / "worker.pid"
    with working(project, "--pidfile", str(path)) as (process, said):
        assert path.read_text() == f"{said['pid']}\n"
        code, complaint = end(command(project, "worker", "-A", "proj", "--pidfile", str(path)))
        assert (code, complaint.count("\n")) == (2, 1)
        assert f"process {said['pid']} is running with it" in complaint
        code, log = end(process, signal.SIGINT)
    assert code == 0, log
    assert not path.exists()


def test_the_banner_says_what_was_started(project: Path) -> None:
    process = command(project, "worker", "-A", "proj")
    assert process.stderr is not None
    banner = [process.stderr.readline() for _ in range(7)]
    assert [each.split()[0] for each in banner] == [
        *("taskline", "app", "broker", "backend", "queues", "slots", "tasks"),
    ]
    assert "shop (proj.app:app)" in banner[1]
    assert "2: proj.app.pid, proj.tasks.add" in banner[6]
    assert "INFO     taskline.supervisor: process" in process.stderr.readline()
    assert "1 process x (1 thread, 100 async)" in banner[5]
    assert end(process, signal.SIGTERM)[0] == 0


@pytest.mark.parametrize("method", START_METHODS)
def test_logging_that_the_app_sets_up_is_left_as_it_is(tmp_path: Path, method: str) -> None:
    (tmp_path / "proj.py").write_text(
        "import logging\n"
        "from taskline import Taskline\n"
        "logging.basicConfig(level='INFO', format='mine %(message)s')\n"
        "app = Taskline('shop', broker='sqlite:///shop.db')\n"
        "@app.task\n"
        "def add(): logging.getLogger('proj').info('added')\n"
    )
    end(command(tmp_path, "send", "-A", "proj", "proj.add"))
    words = ("worker", "-A", "proj", "--drain", "--start-method", method)
    code, said = end(command(tmp_path, *words))
    assert code == 0
    logged = said.splitlines()[7:]
    assert "mine added" in logged
    assert [line for line in logged if not line.startswith("mine ")] == []


def test_a_queue_that_may_be_misspelt_is_named(project: Path) -> None:
    code, said = end(command(project, "worker", "-A", "proj", "--drain", "-Q", "defualt,other"))
    assert code == 0
    assert [line for line in said.splitlines() if line.startswith("warning")] == [
        "warning: no task of shop is of 'defualt'; did you mean 'default'?"
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--nice 20", "20 is not in the range 0<=x<=19"),
        ("--lease 10ms", "'10ms' is too short: give 1s or more"),
        ("-c 100000", "processes=100000: Expected `int` <= 1000"),
        ("--async-slots 99999999", "async_slots=99999999: Expected `int` <= 100000"),
        ("--memory-limit 1M", "memory_limit=1 MiB: a process uses"),
        ("--http nohost.invalid:80", "http='nohost.invalid:80': there is no host nohost.invalid"),
    ],
)
def test_options_that_cannot_be_are_refused_in_one_line(
    project: Path, words: str, said: str
) -> None:
    code, complaint = end(command(project, "worker", "-A", "proj", *words.split()))
    assert (code, complaint.splitlines()[-1].partition(": ")[0]) == (2, "taskline")
    assert said in complaint.splitlines()[-1]
    assert "Traceback" not in complaint


@pytest.mark.parametrize(
    ("app", "code", "said"),
    [
        ("Taskline('x', broker='sqlite:////no/such/dir/x.db')", 3, "there is no directory"),
        ("Taskline('x', broker='sqlite:///app.py')", 2, "is not an SQLite database"),
        ("Taskline('x', broker='redsi://host')", 2, "unknown broker 'redsi'"),
        ("Taskline('x', broker='memory://', backend='nonsense')", 2, "is not a URL"),
        ("Taskline('x', brokre='memory://')", 2, "did you mean 'broker'?"),
    ],
)
def test_a_worker_that_cannot_work_says_why(tmp_path: Path, app: str, code: int, said: str) -> None:
    (tmp_path / "app.py").write_text(f"from taskline import Taskline\napp = {app}\n")
    ended, complaint = end(command(tmp_path, "worker", "-A", "app"))
    assert ended == code
    assert said in complaint
    assert complaint.startswith("taskline: error: ")
    assert complaint.count("\n") == 1
