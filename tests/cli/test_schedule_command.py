from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from taskline.cli import root

PROJECT = """
from taskline import Taskline
app = Taskline("shop", broker="sqlite:///shop.db", backend={backend})

@app.periodic(cron="0 3 * * *", tz="Europe/Berlin")
@app.task(name="report")
def report() -> None: ...

@app.task(name="add")
def add(a: int, b: int = 0) -> int:
    return a + b
"""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TASKLINE_APP", raising=False)
    write("scheduled", '"sqlite:///shop.db"')
    write("keepless", "None")
    yield
    for name in ("scheduled", "keepless"):
        sys.modules.pop(name, None)


def write(name: str, backend: str) -> None:
    Path(f"{name}.py").write_text(PROJECT.replace("{backend}", backend))


def run(*words: str, app: str = "scheduled") -> Result:
    return CliRunner().invoke(root.cli, ["schedule", *words, "-A", app], prog_name="taskline")


def listed() -> dict[str, dict[str, object]]:
    return {each["name"]: each for each in json.loads(run("list", "--json").stdout)}


def test_a_schedule_from_add_to_remove() -> None:
    added = run("add", "sums", "add", "1", "--kw", "b=2", "--every", "5m", "--jitter", "10")
    assert (added.exit_code, added.stderr) == (0, "")
    assert added.stdout.startswith("sums: added: next at ")
    assert listed()["sums"]["stored"] is True
    assert listed()["report"]["stored"] is False
    assert run("pause", "sums").stdout == "sums: paused\n"
    assert listed()["sums"]["state"] == "paused"
    assert run("resume", "sums").stdout == "sums: resumed\n"
    assert listed()["sums"]["state"] == "active"
    sent = json.loads(run("run", "sums", "--json").stdout)
    assert (sent["schedule"], sent["done"]) == ("sums", "sent")
    assert len(sent["id"]) == 32
    table = run().stdout
    assert "every 300 s" in table
    assert "0 3 * * * Europe/Berlin" in table
    assert run("remove", "sums", "--json").stdout == '{"schedule":"sums","done":"removed"}\n'
    assert set(listed()) == {"report"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["pause", "reprot"], "no schedule 'reprot': did you mean 'report'?"),
        (["remove", "report"], "the schedule 'report' is declared in the code: pause it"),
        (["add", "x", "add", "1"], "it has no time: a schedule needs one of cron="),
        (["add", "x", "add", "one", "--every", "5"], "'one'"),
        (["add", "x", "add", "--every", "5"], "missing a required argument: 'a'"),
        (["add", "x", "add", "1", "--cron", "* *"], "wrong number of fields"),
        (["add", "x", "nothing", "--every", "5"], "the app has no task 'nothing'"),
    ],
)
def test_mistakes_are_one_line(words: list[str], says: str) -> None:
    done = run(*words)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_a_backend_it_says_what_is_needed() -> None:
    done = run("list", app="keepless")
    assert done.exit_code == 2
    assert "the app shop has no result backend, and schedules need one" in done.stderr
    worker = CliRunner().invoke(root.cli, ["worker", "-A", "keepless"], prog_name="taskline")
    assert worker.exit_code == 2
    assert "or start the worker with --no-schedule" in worker.stderr
    assert worker.stderr.count("\n") == 1
