"""The commands against a real SQLite file, each in the process of the test."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from taskline import Taskline
from taskline.cli.root import cli
from taskline.loading import find_app
from taskline.message import DeadLetter, Delivery

PROJECT = '''
import datetime, enum
from taskline import Taskline

app = Taskline("shop", broker="sqlite:///shop.db", backend="sqlite:///shop.db")

@app.task
def add(a: int, b: int = 1) -> int:
    """Add two numbers.

    And no more.
    """
    return a + b

@app.task(queue="mail")
def mail(to: str, at: datetime.datetime, *, copy: bool = False) -> None:
    """Write to somebody."""
'''

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Run:
    """Run a command in a directory with a project."""
    for name in [each for each in os.environ if each.startswith("TASKLINE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "proj.py").write_text(PROJECT)

    def run(*words: str, **more: Any) -> Result:
        # As in a process of its own, which reads its own environment.
        sys.modules.pop("proj", None)
        return CliRunner().invoke(cli, words, catch_exceptions=False, **more)

    yield run
    sys.modules.pop("proj", None)


@pytest.fixture
def app(run: Run) -> Iterator[Taskline]:
    """The project's app, as another process would have it."""
    sys.modules.pop("proj", None)
    with find_app("proj:app") as app:
        yield app


def take(app: Taskline, queue: str = "default") -> Delivery:
    """The next message, as a worker called `w` takes it."""
    [delivery] = app.transport.receive([queue], 1, 30.0, 0.0, "w")
    return delivery


def bury(app: Taskline, task: str = "proj.add", reason: str = "it is poison", at: float = 0) -> str:
    """Send a task and move it to the dead letters; returns its id."""
    sent = app.send_task(task, [1] if task == "proj.add" else ["a", "2030-01-31T00:00:00"])
    queue = app.tasks[task].queue
    delivery = take(app, queue)
    letter = DeadLetter(
        id=sent.id,
        queue=queue,
        reason=reason,
        at=at or app.now(),
        task=task,
        worker="w",
        traceback="Traceback:\n  in add\nValueError: no\n",
        frame=delivery.frame,
    )
    assert app.transport.bury([(delivery, letter)]) == []
    return sent.id


def lines(run: Result) -> list[Any]:
    """What was printed as JSON lines."""
    return [json.loads(each) for each in run.stdout.splitlines()]


# What an app has


def test_what_would_end_with_this_command_is_not_sent(run: Run) -> None:
    refused = run("send", "proj.add", "1", "2", "--broker", "memory://")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "memory:// keeps messages in the process that sends them" in refused.stderr


def test_that_is_asked_of_the_queues_broker(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "mixed.yaml"
    file.write_text(
        f"{{name: mixed, broker: 'memory://', queues: {{there: {{broker: 'sqlite:///{tmp_path}/x.db'}},"
        " here: {name: other}}}"
    )
    sent = ("send", "proj.add", "1", "--config", str(file), "--queue")
    assert run(*sent, "there").exit_code == 0
    for queue in ("here", "default"):
        refused = run(*sent, queue)
        assert refused.exit_code == 2
        assert "memory:// keeps messages" in refused.stderr


def test_tasks_shows_names_signatures_and_docs(run: Run) -> None:
    assert run("tasks", "-A", "proj").stdout == (
        "proj.add(a: int, b: int = 1) -> int\n"
        "    Add two numbers.\n"
        "proj.mail(to: str, at: datetime.datetime, *, copy: bool = False) -> None  [queue mail]\n"
        "    Write to somebody.\n"
    )


def test_tasks_picks_by_name(run: Run) -> None:
    [task] = json.loads(run("tasks", "-A", "proj", "m?il", "--json").stdout)
    assert (task["name"], task["queue"], task["doc"]) == ("proj.mail", "mail", "Write to somebody.")
    missed = run("tasks", "-A", "proj", "nothing")
    assert missed.exit_code == 1
    assert "no task of proj:app has 'nothing' in its name" in missed.stderr


def test_the_app_may_come_from_the_environment(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKLINE_APP", "proj")
    assert "proj.add" in run("tasks").stdout
    # A URL in the command line goes before it.
    assert "no messages" in run("queues", "--broker", "sqlite:///other.db").stdout


def test_shared_options_may_stand_before_the_command(run: Run) -> None:
    [task] = json.loads(run("-A", "proj", "--json", "tasks", "add").stdout)
    assert task["name"] == "proj.add"


@pytest.mark.parametrize(
    ("words", "environment"),
    [
        (["--broker", "sqlite:///shop.db"], {}),
        (["--config", "shop.yaml"], {}),
        ([], {"TASKLINE_BROKER": "sqlite:///shop.db"}),
    ],
)
def test_a_broker_does_without_an_app(
    run: Run, app: Taskline, tmp_path: Path, words: list[str], environment: dict[str, str]
) -> None:
    (tmp_path / "shop.yaml").write_text("name: shop\nbroker: sqlite:///shop.db\n")
    app.send_task("proj.add", [1])
    [stats] = json.loads(run("queues", "--json", *words, env=environment).stdout)
    assert (stats["queue"], stats["ready"]) == ("default", 1)


def test_a_new_file_is_told_of(run: Run, tmp_path: Path) -> None:
    first = run("queues", "--broker", "sqlite:///typo.db")
    assert f"note: there was no file {tmp_path}/typo.db; it is made now" in first.stderr
    assert run("queues", "--broker", "sqlite:///typo.db").stderr == ""


# Pausing


def test_a_queue_is_paused_seen_and_resumed(run: Run, app: Taskline) -> None:
    app.send_task("proj.mail", ["a", "2030-01-31T00:00:00"], queue="mail")
    assert "PAUSED" not in run("queues", "-A", "proj").stdout
    assert run("queues", "pause", "mail", "-A", "proj").stdout == "mail: paused\n"
    assert app.paused_queues() == {"mail": None}
    header, row = run("queues", "list", "-A", "proj").stdout.splitlines()
    assert header.split()[-1] == "PAUSED"
    assert row.split()[0] == "mail"
    assert row.split()[-1] == "yes"
    [stats] = json.loads(run("queues", "-A", "proj", "--json").stdout)
    assert (stats["queue"], stats["paused"], stats["paused_until"]) == ("mail", True, None)
    found = run("doctor", "-A", "proj").stdout
    assert "mail is paused: workers take nothing of it, 1 ready" in found
    assert "taskline queues resume mail" in found
    assert run("queues", "resume", "mail", "-A", "proj").stdout == "mail: resumed\n"
    assert run("queues", "resume", "mail", "-A", "proj").stdout == "mail: was not paused\n"
    assert "is paused" not in run("doctor", "-A", "proj").stdout


def test_a_queue_is_paused_for_a_time(run: Run, app: Taskline) -> None:
    found = json.loads(
        run("queues", "pause", "default", "--for", "10m", "-A", "proj", "--json").stdout
    )
    assert found["queue"] == "default"
    assert 590 < found["until"] - app.now() <= 600
    shown = run("queues", "-A", "proj").stdout
    assert "default" in shown, "also without a message"
    assert "until 20" in shown


def test_a_slip_in_the_name_of_a_queue_is_told(run: Run, app: Taskline) -> None:
    slip = run("queues", "pause", "mial", "-A", "proj")
    assert slip.exit_code == 0
    assert "no message is of 'mial'; did you mean mail?" in slip.stderr


def test_pausing_needs_the_app_and_a_backend(run: Run, tmp_path: Path) -> None:
    without = run("queues", "pause", "mail")
    assert without.exit_code == 2
    assert "which app? Name it with -A proj" in without.stderr
    (tmp_path / "proj.py").write_text(
        "from taskline import Taskline\napp = Taskline('bare', broker='sqlite:///shop.db')\n"
    )
    bare = run("queues", "pause", "mail", "-A", "proj")
    assert bare.exit_code == 2
    assert "the app bare has no result backend" in bare.stderr
    assert bare.stderr.count("\n") == 1
    assert run("queues", "-A", "proj").exit_code == 0


# Sending


def test_send_converts_as_the_signature_declares(run: Run, app: Taskline) -> None:
    sent = run(
        *("send", "-A", "proj", "proj.mail", "12", "2030-01-31T00:00:00", "--kw", "copy=true")
    )
    assert sent.exit_code == 0
    header, body = app.codec.open(take(app, "mail").frame)
    assert header.id == sent.stdout.strip()
    assert app.codec.arguments(header, body) == (["12", "2030-01-31T00:00:00"], {"copy": True})


def test_send_without_the_code_reads_json_or_text(run: Run, app: Taskline) -> None:
    words = ("--broker", "sqlite:///shop.db", "any.task", "1", "-2.5", "x", "--kw", 'y={"z":null}')
    sent = json.loads(run("send", *words, "--json", "--", "--dash").stdout)
    header, body = app.codec.open(take(app).frame)
    assert sent == {"id": header.id, "task": "any.task"}
    assert app.codec.arguments(header, body) == ([1, -2.5, "x", "--dash"], {"y": {"z": None}})


def test_send_takes_all_arguments_as_json(run: Run, app: Taskline) -> None:
    run("send", "-A", "proj", "proj.add", "--args", "[1]", "--kwargs", '{"b": 5}')
    assert app.codec.arguments(*app.codec.open(take(app).frame)) == ([1], {"b": 5})


def test_send_with_an_idempotency_key(run: Run, app: Taskline) -> None:
    words = ("send", "-A", "proj", "proj.add", "--idempotency-key", "k", "--json")
    first = json.loads(run(*words, "1").stdout)
    assert json.loads(run(*words, "1").stdout) == {**first, "duplicate": True}
    other = run(*words, "2")
    assert other.exit_code != 0
    assert "other arguments" in other.stderr
    assert len(app.transport.peek("default")) == 1


def test_send_options_reach_the_message(run: Run, app: Taskline) -> None:
    now = app.now()
    words = ("--queue", "q", "--priority", "9", "--id", "mine", "--retry", "2")
    run("send", "-A", "proj", "proj.add", "1", *words, "--countdown", "2h", "--expires", "1d")
    [stored] = app.transport.peek("q")
    header, _ = app.codec.open(stored.frame)
    assert (header.id, header.priority, stored.state) == ("mine", 9, "delayed")
    assert header.retry is not None
    assert header.eta == pytest.approx(now + 7200, abs=60)
    assert header.expires == pytest.approx(now + 86_400, abs=60)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["proj.add", "x"], "a = 'x': Expected `int`, got `str`"),
        (["proj.add"], "missing a required argument: 'a'"),
        (["proj.add", "1", "2", "3"], "too many positional arguments"),
        (["proj.add", "1", "--kw", "c=2"], "got an unexpected keyword argument 'c'"),
        (["proj.ad", "1"], "the app has no task 'proj.ad'"),
        (["proj.ad", "1"], "did you mean proj.add?"),
        (["proj.add", "--args", "[1", "--kw", "b=1"], "'[1' is not JSON"),
        (["proj.add", "--args", "{}"], "'{}' is not a JSON array"),
        (["proj.add", "1", "--args", "[1]"], "give values, or --args and --kwargs, not both"),
        (["proj.add", "1", "--cuontdown", "5"], "did you mean --countdown?"),
        (["proj.add", "1", "--countdown", "-5"], "'-5' is not a duration"),
        (["proj.add", "1", "--countdown", "1", "--eta", "2030-01-01"], "both given"),
        (["proj.add", "1", "--priority", "10"], "10 is not in the range 0<=x<=9"),
        (["proj.add", "1", "--queue", "a,b"], "a queue's name has no comma"),
        (["proj.add", "1", "--kw", "b"], "'b' is not NAME=VALUE"),
    ],
)
def test_what_cannot_be_sent_is_refused(
    run: Run, app: Taskline, words: list[str], said: str
) -> None:
    refused = run("send", "-A", "proj", *words)
    assert refused.exit_code == 2
    assert said in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert app.transport.stats() == []


# Queues


def test_queues_counts(run: Run, app: Taskline) -> None:
    app.send_task("proj.add", [1])
    app.send_task("proj.add", [1], countdown=60)
    app.send_task("proj.add", [1], priority=9)
    take(app)
    bury(app, "proj.mail")
    stats = json.loads(run("queues", "list", "-A", "proj", "--json").stdout)
    assert [
        (each["queue"], each["ready"], each["delayed"], each["leased"], each["dead"])
        for each in stats
    ] == [("default", 1, 1, 1, 0), ("mail", 0, 0, 0, 1)]
    table = run("queues", "-A", "proj").stdout.splitlines()
    assert table[0].split() == ["QUEUE", "READY", "DELAYED", "LEASED", "DEAD", "OLDEST"]
    assert table[1].split()[:5] == ["default", "1", "1", "1", "0"]
    assert run("queues", "list", "mail", "-A", "proj").stdout.count("\n") == 2
    assert "did you mean 'mail'?" in run("queues", "list", "mial", "-A", "proj").stderr


def test_peek_shows_messages_and_takes_none(run: Run, app: Taskline) -> None:
    first = app.send_task("proj.add", [1], {"b": 2})
    app.send_task("proj.add", [3])
    [content] = json.loads(
        run("queues", "peek", "default", "-A", "proj", "--limit", "1", "--json").stdout
    )
    assert (content["id"], content["task"], content["args"], content["kwargs"]) == (
        *(first.id, "proj.add", [1]),
        {"b": 2},
    )
    assert "1, b=2" in run("queues", "peek", "default", "-A", "proj").stdout
    assert app.transport.stats()[0].ready == 2


def test_peek_tells_of_what_it_cannot_read(run: Run, app: Taskline) -> None:
    app.send_task("proj.add", [1])
    signed = run("queues", "peek", "default", "-A", "proj", env={"TASKLINE_SIGNING_KEY": "k" * 32})
    assert signed.exit_code == 0
    assert "sign" in signed.stdout


def test_control_characters_of_a_message_are_not_printed(run: Run, app: Taskline) -> None:
    app.send_task("any.task", ["\x1b]0;title\x07"])
    for command in (["queues", "peek", "default"], ["queues", "peek", "default", "--json"]):
        printed = run(*command, "-A", "proj").stdout
        assert "title" in printed
        assert "\x1b" not in printed


def test_an_empty_queue_is_told_with_the_nearest(run: Run, app: Taskline) -> None:
    app.send_task("proj.mail", ["a", "2030-01-31T00:00:00"])
    peeked = run("queues", "peek", "mial", "-A", "proj")
    assert (peeked.exit_code, peeked.stdout) == (0, "")
    assert peeked.stderr == "no messages in queue 'mial'; did you mean 'mail'?\n"


def test_purge_deletes_what_waits(run: Run, app: Taskline) -> None:
    for _ in range(3):
        app.send_task("proj.add", [1])
    held = take(app)
    asked = run("purge", "default", "-A", "proj")
    assert asked.exit_code == 2
    assert "delete 2 messages of default? Say so with --yes" in asked.stderr
    assert run("purge", "default", "-A", "proj", "--yes").stdout == "default: 2 messages deleted\n"
    assert json.loads(run("purge", "default", "-A", "proj", "-y", "--json").stdout) == {
        "default": 0
    }
    assert app.transport.ack([held]) == []


def test_ping(run: Run) -> None:
    answers = json.loads(run("ping", "-A", "proj", "--json").stdout)
    assert answers["broker"]["ok"]
    assert answers["backend"]["ok"]
    assert "shop.db answered in" in run("ping", "-A", "proj").stdout


def test_ping_of_what_cannot_be_reached(run: Run) -> None:
    words = ("--broker", "sqlite:///shop.db", "--backend", "sqlite:////no/such/dir/x.db")
    failed = run("ping", *words)
    assert failed.exit_code == 3
    assert "shop.db answered in" in failed.stdout
    assert "taskline: error: backend: /no/such/dir/x.db cannot be opened" in failed.stderr
    answers = json.loads(run("ping", "--json", *words).stdout)
    assert (answers["broker"]["ok"], answers["backend"]["ok"]) == (True, False)


# Dead letters


def test_dead_lists_the_newest_first(run: Run, app: Taskline) -> None:
    old = bury(app, reason="died\nof old age", at=app.now() - 7200)
    new = bury(app, "proj.mail", reason="Timeout")
    found = json.loads(run("dead", "-A", "proj", "--json").stdout)
    assert [each["id"] for each in found] == [new, old]
    assert found[1]["reason"] == "died\nof old age"
    table = run("dead", "list", "-A", "proj").stdout.splitlines()
    assert table[0].split() == ["ID", "AGE", "QUEUE", "TASK", "REASON"]
    assert table[2].endswith("died of old age")
    limited = run("dead", "list", "-A", "proj", "--limit", "1")
    assert limited.stdout.count("\n") == 2
    assert "there are more" in limited.stderr


@pytest.mark.parametrize(
    ("filters", "picked"),
    [
        (["--queue", "mail"], "new"),
        (["--task", "proj.add"], "old"),
        (["--reason", "timeout"], "new"),
        (["--older-than", "1h"], "old"),
        (["--newer-than", "1h"], "new"),
        (["--newer-than", "1h", "--queue", "default"], None),
    ],
)
def test_filters_pick_dead_letters(
    run: Run, app: Taskline, filters: list[str], picked: str | None
) -> None:
    ids = {"old": bury(app, at=app.now() - 7200), "new": bury(app, "proj.mail", "a Timeout")}
    expected = [ids[picked]] if picked else []
    listed = json.loads(run("dead", "list", "-A", "proj", "--json", *filters).stdout)
    assert [each["id"] for each in listed] == expected
    done = json.loads(run("dead", "requeue", "-A", "proj", "--json", *filters).stdout)
    assert done == {"requeued": expected}
    left = json.loads(run("dead", "list", "-A", "proj", "--json").stdout)
    assert [each["id"] for each in left] == [i for i in reversed(ids.values()) if i not in expected]


def test_show_tells_all(run: Run, app: Taskline) -> None:
    dead = bury(app)
    shown = run("dead", "show", dead, "-A", "proj").stdout
    for part in (dead, "proj.add", "it is poison", "[1]", "    ValueError: no", "deliveries"):
        assert part in shown
    content = json.loads(run("dead", "show", dead, "-A", "proj", "--json").stdout)
    assert (content["args"], content["worker"], content["attempt"]) == ([1], "w", 1)
    assert content["traceback"].endswith("ValueError: no\n")


def test_requeue_by_id(run: Run, app: Taskline) -> None:
    dead = bury(app)
    done = run("dead", "requeue", dead, "-A", "proj")
    assert (done.exit_code, done.stdout) == (0, "1 requeued\n")
    assert take(app).id == dead


def test_requeue_of_many_asks(run: Run, app: Taskline) -> None:
    dead = [bury(app), bury(app)]
    asked = run("dead", "requeue", "--all", "-A", "proj")
    assert asked.exit_code == 2
    assert "requeue 2 dead letters? Say so with --yes" in asked.stderr
    assert len(app.transport.dead_letters()) == 2
    done = json.loads(run("dead", "requeue", "--all", "--yes", "-A", "proj", "--json").stdout)
    assert sorted(done["requeued"]) == sorted(dead)


@pytest.mark.parametrize(
    ("answer", "exit_code", "left"), [("n\n", 1, 2), ("y\n", 0, 0), ("", 130, 2)]
)
def test_a_terminal_is_asked(
    run: Run,
    app: Taskline,
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
    exit_code: int,
    left: int,
) -> None:
    bury(app), bury(app)
    monkeypatch.setattr("taskline.cli.output.stdin_is_terminal", lambda: True)
    asked = run("dead", "purge", "--all", "-A", "proj", input=answer)
    assert "Delete 2 dead letters for ever? [y/N]: " in asked.stderr
    assert asked.exit_code == exit_code
    assert len(app.transport.dead_letters()) == left


def test_purge_of_dead_letters(run: Run, app: Taskline) -> None:
    dead = bury(app)
    assert json.loads(run("dead", "purge", dead, "-A", "proj", "--json").stdout) == {"purged": 1}
    assert app.transport.dead_letters() == []


def test_a_dead_letter_that_is_not_there(run: Run, app: Taskline) -> None:
    dead = bury(app)
    for command in ("show", "requeue", "purge"):
        missed = run("dead", command, "nope", "-A", "proj")
        assert missed.exit_code == 1
        assert "no dead letter 'nope'" in missed.stderr
    both = run("dead", "requeue", dead, "nope", "-A", "proj", "--yes")
    assert (both.exit_code, both.stdout) == (1, "1 requeued\n")


def test_a_dead_letter_that_cannot_be_read_stays(run: Run, app: Taskline) -> None:
    delivery = (app.send_task("proj.add", [1]), take(app))[1]
    letter = DeadLetter(
        id=delivery.id, queue="default", reason="not JSON", at=app.now(), frame=b"\xff\x1b[31m"
    )
    app.transport.bury([(delivery, letter)])
    shown = run("dead", "show", delivery.id, "-A", "proj")
    assert shown.exit_code == 0
    assert "unreadable" in shown.stdout
    kept = run("dead", "requeue", delivery.id, "-A", "proj")
    assert kept.exit_code == 1
    assert "its message cannot be read" in kept.stderr
    assert len(app.transport.dead_letters()) == 1


@pytest.mark.parametrize("command", ["requeue", "purge"])
@pytest.mark.parametrize("words", [[], ["x", "--all"], ["x", "--queue", "q"], ["--yes"]])
def test_which_dead_letters_must_be_said(run: Run, command: str, words: list[str]) -> None:
    refused = run("dead", command, "-A", "proj", *words)
    assert refused.exit_code == 2
    assert "which dead letters? Give their ids, or filters, or --all" in refused.stderr


# The doctor


def test_the_doctor_finds_nothing(run: Run, app: Taskline) -> None:
    app.transport.ping()
    found = run("doctor", "-A", "proj")
    assert found.exit_code == 0
    assert "0 wrong, 0 to look at" in found.stdout
    assert {each["status"] for each in lines(run("doctor", "-A", "proj", "--json"))} == {"ok"}


@pytest.mark.parametrize(
    ("words", "check", "said"),
    [
        ([], "configuration", "which broker?"),
        (["-A", "nope"], "configuration", "no module 'nope'"),
        (["--broker", "nonsense"], "broker", "is not a URL"),
        (["--broker", "sqlite:////no/such/dir/x.db"], "broker", "there is no directory"),
        (["--broker", "sqlite:///proj.py"], "broker", "is not an SQLite database"),
        (
            ["--broker", "sqlite:///x.db", "--backend", "sqlite:////no/such/dir/x.db"],
            "backend",
            "there is no directory",
        ),
        (["--config", "nope.toml"], "configuration", "No such file"),
    ],
)
def test_the_doctor_finds_what_is_wrong(run: Run, words: list[str], check: str, said: str) -> None:
    found = run("doctor", "--json", *words)
    assert found.exit_code == 1
    [wrong] = [each for each in lines(found) if each["status"] == "fail"]
    assert wrong["check"] == check
    assert said in wrong["message"]


def test_the_doctor_warns(run: Run, app: Taskline) -> None:
    app.send_task("proj.mial", [1], queue="post")
    bury(app)
    found = run(
        *("doctor", "--json", "-A", "proj"),
        env={"TASKLINE_LEESA": "1", "TASKLINE_ACCEPT": "json,pickle", "TASKLINE_SIGNING_KEY": "k"},
    )
    warned = {each["check"]: each for each in lines(found) if each["status"] == "warn"}
    assert warned["environment"]["remedy"] == "did you mean TASKLINE_LEASE?"
    assert warned["signing"]["message"].startswith("a signing key has fewer than 16")
    assert warned["dead letters"]["message"].startswith("1 messages will not be tried")
    assert found.exit_code == 0


def test_the_doctor_finds_tasks_that_the_app_has_not_got(run: Run, app: Taskline) -> None:
    app.send_task("proj.mial", [1], queue="post")
    warned = [each for each in lines(run("doctor", "--json", "-A", "proj")) if each["remedy"]]
    assert "post: messages wait for task 'proj.mial', which this app has" in warned[0]["message"]
    assert warned[0]["remedy"] == "did you rename 'proj.mail'?"


def test_the_doctor_finds_a_queue_that_nobody_serves(
    run: Run, app: Taskline, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.send_task("proj.add", [1], queue="post")
    monkeypatch.setattr("taskline.cli.checks.PATIENCE", -1.0)
    warned = [each for each in lines(run("doctor", "--json", "-A", "proj")) if each["remedy"]]
    assert warned[0]["message"].startswith("post: 1 ready, the oldest for ")
    assert warned[0]["remedy"] == "start a worker with -Q post"


def test_the_doctor_warns_of_memory(run: Run) -> None:
    warned = [
        each for each in lines(run("doctor", "--json", "--broker", "memory://")) if each["remedy"]
    ]
    assert [each["check"] for each in warned] == ["durability"]
