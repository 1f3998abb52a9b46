"""`taskline result` and `taskline send --wait`: states, values, tracebacks, exit codes."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from taskline import Taskline, outcomes
from taskline.cli import result as result_module
from taskline.cli.root import cli
from taskline.context import Progress
from taskline.message import EXPIRED, REVOKED, STARTED, Outcome
from taskline.revoking import Wish, read

WORDS = ("--broker", "sqlite:///shop.db", "--backend", "sqlite:///shop.db")

Run = Callable[..., Result]


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Taskline]:
    """An app on a file in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TASKLINE_APP", raising=False)
    with Taskline("shop", broker="sqlite:///shop.db", backend="sqlite:///shop.db") as app:
        app.transport.ping()
        yield app


def run(*words: str) -> Result:
    """Run `taskline` with the app's broker and backend."""
    return CliRunner().invoke(cli, [*words, *WORDS], catch_exceptions=False)


def finish(app: Taskline, value: Any = None, state: str = "") -> str:
    """Send a task, take it from its queue, store its outcome; returns its id."""
    sent = app.send_task("shop.add", [1])
    store(app, value, state)
    return sent.id


def store(app: Taskline, value: Any = None, state: str = "") -> None:
    """Do the next task as a worker would."""
    [delivery] = app.transport.receive(["default"], 1, 30.0, 10.0, "w")
    header, _ = app.codec.open(delivery.frame)
    known: dict[str, Any] = {"deliveries": 1, "worker": "w", "started": 100.0, "finished": 103.5}
    made: Outcome
    if state:
        made = outcomes.outcome(app.codec, header, state, **known)
    elif isinstance(value, Exception):
        made = outcomes.failure(app.codec, header, value, **known)
    else:
        made = outcomes.success(app.codec, header, value, **known)
    assert app.require_backend().store([made]) == []
    app.transport.ack([delivery])


def raised() -> Exception:
    """An exception with a traceback."""
    try:
        raise ValueError("no such order")
    except ValueError as error:
        return error


def test_a_success_shows_its_value(app: Taskline) -> None:
    done = finish(app, {"total": [1, "two"]})
    shown = run("result", done)
    assert shown.exit_code == 0
    for part in (done, "SUCCESS", "shop.add", "{'total': [1, 'two']}", "3.5s"):
        assert part in shown.stdout
    content = json.loads(run("result", done, "--json").stdout)
    assert (content["state"], content["result"]) == ("SUCCESS", {"total": [1, "two"]})
    assert (content["worker"], content["started"], content["finished"]) == ("w", 100.0, 103.5)


def test_a_failure_shows_its_traceback(app: Taskline) -> None:
    failed = finish(app, raised())
    shown = run("result", failed)
    assert shown.exit_code == 1
    for part in ("FAILURE", "ValueError: no such order", "traceback\n    Traceback (most recent"):
        assert part in shown.stdout
    content = json.loads(run("result", failed, "--json").stdout)
    assert content["error"]["message"] == "no such order"
    assert "result" not in content


@pytest.mark.parametrize(
    ("state", "exit_code"), [(REVOKED, 1), (EXPIRED, 1), (STARTED, 4), ("PENDING", 4)]
)
def test_the_exit_code_tells_the_state(app: Taskline, state: str, exit_code: int) -> None:
    sent = "nobody-sent-it" if state == "PENDING" else finish(app, state=state)
    shown = run("result", sent)
    assert shown.exit_code == exit_code
    assert state in shown.stdout


def test_several_results_are_a_table(app: Taskline) -> None:
    done, failed = finish(app, 1), finish(app, raised())
    shown = run("result", done, failed, done, "pending")
    assert shown.exit_code == 1
    table = shown.stdout.splitlines()
    assert [row.split()[:2] for row in table] == [
        ["ID", "STATE"],
        [done, "SUCCESS"],
        [failed, "FAILURE"],
        ["pending", "PENDING"],
    ]
    assert run("result", done, "pending").exit_code == 4
    assert run("result", done, done).exit_code == 0


def test_several_results_as_json_come_as_they_end(app: Taskline) -> None:
    done = finish(app, 1)
    sent = app.send_task("shop.add", [1])
    shown = run("result", sent.id, done, "--json", "--wait", "0.05")
    assert [json.loads(each)["id"] for each in shown.stdout.splitlines()] == [done, sent.id]
    assert shown.exit_code == 4
    assert shown.stderr == (
        "taskline: error: 1 of 2 not ended after 50ms: do workers serve their queues?\n"
    )


def test_wait_ends_when_the_task_has_ended(app: Taskline) -> None:
    sent = app.send_task("shop.add", [1])
    worker = threading.Thread(target=store, args=(app, 42), name="worker")
    worker.start()
    shown = run("result", sent.id, "--wait", "1m", "--json")
    worker.join(timeout=60)
    assert (shown.exit_code, json.loads(shown.stdout)["result"]) == (0, 42)


def test_send_waits_for_the_result(app: Taskline) -> None:
    worker = threading.Thread(target=store, args=(app, "done"), name="worker")
    worker.start()
    sent = run("send", "shop.add", "1", "--wait", "1m")
    worker.join(timeout=60)
    assert sent.exit_code == 0
    first, second = sent.stdout.splitlines()
    assert (len(first), second) == (32, "'done'")


def test_send_shows_the_failure_that_it_waited_for(app: Taskline) -> None:
    worker = threading.Thread(target=store, args=(app, raised()), name="worker")
    worker.start()
    sent = run("send", "shop.add", "1", "--wait", "1m")
    worker.join(timeout=60)
    assert sent.exit_code == 1
    assert sent.stderr.startswith("Traceback (most recent call last)")
    [line] = [each for each in sent.stderr.splitlines() if each.startswith("taskline: error: ")]
    assert line.endswith("is FAILURE: ValueError: no such order")


def test_send_waits_no_longer_than_it_is_told(app: Taskline) -> None:
    sent = run("send", "shop.add", "1", "--wait", "0.01")
    assert sent.exit_code == 4
    assert sent.stdout.count("\n") == 1
    assert "1 of 1 not ended after 10ms" in sent.stderr


def test_a_result_that_cannot_be_read_is_an_error(
    app: Taskline, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Taskline(
        "shop",
        broker="sqlite:///shop.db",
        backend="sqlite:///shop.db",
        serializer="pickle",
        accept=["pickle"],
        accept_unsigned=True,
    ) as trusting:
        done = finish(trusting, 1)
    shown = run("result", done)
    assert shown.exit_code == 1
    assert "unreadable" in shown.stdout
    assert "pickle" in shown.stdout
    both = run("result", finish(app, 1), done)
    assert (both.exit_code, both.stdout.count("SUCCESS")) == (1, 2)


def test_forget(app: Taskline) -> None:
    done = finish(app, 1)
    assert json.loads(run("result", done, "--forget", "--json").stdout)["done"] == "forgotten"
    assert run("result", done).exit_code == 4


def test_revoke_removes_what_waits(app: Taskline) -> None:
    sent = app.send_task("shop.add", [1])
    assert run("result", sent.id, "--revoke").stdout == f"{sent.id}: revoked\n"
    assert sent.state == REVOKED


def test_revoke_tells_the_workers_of_what_runs(app: Taskline) -> None:
    sent = app.send_task("shop.add", [1])
    app.transport.receive(["default"], 1, 30.0, 0.0, "w")
    assert "workers are told" in run("result", sent.id, "--revoke", "--terminate").stdout
    [revocation] = app.require_backend().revoked(0)[1]
    assert (revocation.id, revocation.terminate) == (sent.id, True)


def test_without_a_backend_there_are_no_results(app: Taskline) -> None:
    for words in (["result", "x"], ["send", "shop.add", "--wait", "1"]):
        refused = CliRunner().invoke(cli, [*words, "--broker", "sqlite:///shop.db"])
        assert refused.exit_code == 2
        assert "results are not kept: name a result backend" in refused.stderr
    assert app.transport.stats() == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--wait", "1", "--forget"], "exclude each other"),
        (["--revoke", "--forget"], "exclude each other"),
        (["--terminate"], "--terminate goes with --revoke"),
        (["--wait", "long"], "is not a duration"),
    ],
)
def test_options_that_make_no_sense(app: Taskline, words: list[str], said: str) -> None:
    refused = run("result", "x", *words)
    assert refused.exit_code == 2
    assert said in refused.stderr


def test_progress_is_shown_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Told:
        def progress(self) -> Progress:
            return Progress(3, 4, "three")

    some: list[Any] = [Told(), Told()]
    with result_module._bar(some) as bar:
        assert bar is None
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with result_module._bar(some) as bar:
        assert bar is not None
        bar.ended()
        bar.look(some[:1])
        bar.ended()
    shown = capsys.readouterr().err
    assert "2/2" in shown
    assert "the last: 3/4 three" in shown
    with result_module._bar(some[:1]) as bar:
        assert bar is not None
        bar.look(some[:1])
    shown = capsys.readouterr().err
    assert "3/4" in shown
    assert "three" in shown


def test_a_tree_of_tasks_and_workflows(app: Taskline) -> None:
    from taskline.testing.stepping import Hand
    from taskline.workflows import chord

    @app.task(name="shop.add")
    def add(number: int) -> int:
        return number

    @app.task(name="shop.total")
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    @app.task(name="shop.parent")
    def parent() -> None:
        add.delay(1)
        chord([add.s(1), add.s(2) | add.s()], total.s()).apply_async(task_id="whole")

    sent = parent.delay()
    worker = Hand(app)
    worker.work()
    worker.close()
    shown = run("result", sent.id, "--tree")
    assert shown.exit_code == 0
    lines = [line.rstrip() for line in shown.output.splitlines()]
    assert lines[0] == f"✓ shop.parent {sent.id} SUCCESS"
    assert lines[1].startswith("  ✓ shop.add ")
    assert lines[2:5] == [
        "  ✓ workflow whole SUCCESS",
        "    ✓ 0 2 x shop.add, …",
        "    ✓ 1 shop.total",
    ]
    assert lines[5].startswith("      ✓ workflow whole-0-1 SUCCESS")
    [whole] = [
        json.loads(line) for line in run("result", "whole", "--tree", "--json").output.splitlines()
    ]
    assert [step["state"] for step in whole["steps"]] == ["2 of 2", "SUCCESS"]
    plain = run("result", "whole", "--wait", "5")
    assert plain.exit_code == 0
    assert "SUCCESS" in plain.output


# taskline revoke


def test_revoke_by_id(app: Taskline) -> None:
    sent = app.send_task("shop.add", [1])
    assert run("revoke", sent.id).stdout == f"{sent.id}: revoked\n"
    assert sent.state == REVOKED


def test_revoke_by_task_and_header(app: Taskline) -> None:
    assert run("revoke", "--task", "shop.add", "--terminate").stdout == (
        "workers are told to revoke all messages of shop.add\n"
    )
    words = (
        "revoke",
        "--header",
        "tenant=7",
        "--header",
        "x-name=ann",
        "--before",
        "2030-01-31T12Z",
    )
    assert json.loads(run(*words, "--json").stdout) == {
        "task": None,
        "headers": {"tenant": 7, "x-name": "ann"},
        "done": "workers are told to revoke them",
    }
    first, second = app.require_backend().revoked(0)[1]
    assert first.terminate
    assert read(first.id).task == "shop.add"
    assert second.terminate is False
    assert read(second.id) == Wish(1896091200.0, headers={"tenant": 7, "x-name": "ann"})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give IDs, or --task and --header"),
        (["id", "--task", "a"], "give IDs, or --task and --header"),
        (["id", "--before", "2030-01-31"], "--before goes with --task and --header"),
        (["--header", "tenant"], "'tenant' is not NAME=VALUE, such as tenant=7"),
        (["--header", "a=1", "--header", "a=2"], "'a' is given twice"),
        (["--task", "my task"], "task='my task': must be 1 to 200 characters"),
    ],
)
def test_revoke_says_what_is_wrong(app: Taskline, words: list[str], message: str) -> None:
    wrong = run("revoke", *words)
    assert wrong.exit_code == 2
    assert message in wrong.stderr


def test_a_task_that_the_app_has_not_may_be_a_slip(
    app: Taskline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slip.py").write_text(
        "from taskline import Taskline\n"
        "app = Taskline('slip', broker='sqlite:///shop.db', backend='sqlite:///shop.db')\n"
        "@app.task(name='slip.mail')\n"
        "def mail(): ...\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    slip = CliRunner().invoke(cli, ["revoke", "--task", "slip.mial", "-A", "slip"])
    assert slip.exit_code == 0
    assert "slip has no task 'slip.mial'; did you mean slip.mail?" in slip.stderr
    right = CliRunner().invoke(cli, ["revoke", "--task", "slip.mail", "-A", "slip"])
    assert right.stderr == ""
    del sys.modules["slip"]
