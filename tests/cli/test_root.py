"""The command as a whole: help, errors, exit codes, completion, start-up."""

from __future__ import annotations

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

import taskline as package
from taskline import errors
from taskline.cli import version as version_module
from taskline.cli.root import COMMANDS, cli, exit_code
from taskline.loading import BrokenModule


def commands() -> Iterator[tuple[list[str], click.Command]]:
    """Every command and subcommand with the words that call it."""
    ctx = click.Context(cli, info_name="taskline")
    for name in cli.list_commands(ctx):
        command = cli.get_command(ctx, name)
        assert command is not None
        yield [name], command
        if isinstance(command, click.Group):
            for subname, subcommand in command.commands.items():
                yield [name, subname], subcommand


@pytest.mark.parametrize("words", [words for words, _ in commands()], ids=" ".join)
def test_every_command_has_help_with_an_example_and_json(words: list[str]) -> None:
    run = CliRunner().invoke(cli, [*words, "--help"])
    assert run.exit_code == 0
    assert "Examples:\n    " in run.output
    assert f"taskline {' '.join(words)}" in run.output
    assert "--json " in run.output
    assert "--debug " in run.output
    assert CliRunner().invoke(cli, [*words, "-h"]).output == run.output


def test_the_short_help_of_no_command_is_cut() -> None:
    run = CliRunner().invoke(cli, ["--help"])
    assert all(f"  {name} " in run.output for name in COMMANDS)
    assert "..." not in run.output.partition("Commands:")[2]
    assert "Exit codes: 0 done" in run.output


def test_without_a_command_the_help_is_shown_as_an_error() -> None:
    run = CliRunner().invoke(cli, [])
    assert run.exit_code == 2
    assert "Commands:" in run.stderr
    assert run.stdout == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["wroker"], "no such command 'wroker'; did you mean worker? (see taskline --help)"),
        (["xyzzy"], "no such command 'xyzzy' (see taskline --help)"),
        (["dead", "shwo"], "no such command 'shwo'; did you mean show? (see taskline dead --help)"),
        (["worker", "--thread", "4"], "no such option '--thread'; did you mean --threads?"),
        (["ping", "-x"], "no such option '-x' (see taskline ping --help)"),
        (["worker", "-c", "0"], "'0' is no number of processes: write 4, or 2..8"),
        (["worker", "-c"], "option '-c' requires an argument"),
        (["worker", "-l", "loud"], "'loud' is not one of 'debug', 'info'"),
        (["worker", "--grace", "soon"], "'soon' is not a duration: write seconds, or 30s, 5m"),
        (["result"], "missing argument 'ID...' (see taskline result --help)"),
        (["queues", "peek"], "missing argument 'QUEUE'"),
        (["queues", "peek", "a", "b"], "unexpected extra argument (b)"),
        (["ping", "--json=x"], "option '--json' does not take a value"),
        (["completion", "tcsh"], "'tcsh' is not one of 'bash', 'zsh', 'fish'"),
        (["ping"], "which broker? Name your app with -A, a URL with --broker, or set TASKLINE_BR"),
        (["tasks"], "which app? Name it with -A proj, or set TASKLINE_APP"),
        (["worker"], "which app? Name it with -A proj, or set TASKLINE_APP"),
        (["ping", "-A", "a", "--broker", "b"], "-A and --broker, --backend or --config exclude"),
    ],
)
def test_a_mistake_in_the_command_line_is_one_line_and_exit_code_2(
    words: list[str], said: str
) -> None:
    run = CliRunner(env={"TASKLINE_APP": None, "TASKLINE_BROKER": None}).invoke(cli, words)
    assert run.exit_code == 2
    assert run.stdout == ""
    assert run.stderr.startswith("taskline: error: ")
    assert said in run.stderr
    assert run.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigurationError("x"), 2),
        (BrokenModule("x", ""), 2),
        (errors.InvalidArguments("x"), 2),
        (errors.UnknownTask("x"), 2),
        (errors.SerializationError("x"), 2),
        (errors.TransportError("x"), 3),
        (errors.BackendError("x", retryable=False), 3),
        (errors.NotSupported("x"), 1),
        (errors.ResultTimeout("x"), 4),
        (errors.TaskFailed("x"), 1),
        (errors.NoResult("x"), 1),
        (errors.TasklineError("x"), 1),
        (click.UsageError("x"), 2),
        (click.FileError("x"), 2),
    ],
)
def test_the_exit_code_tells_what_was_wrong(error: Exception, code: int) -> None:
    assert exit_code(error) == code


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let `taskline version` raise."""

    def packages() -> dict[str, str]:
        raise error

    monkeypatch.setattr(version_module, "packages", packages)


def test_an_error_is_one_line_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, errors.TransportError("cannot reach it\nnor \x1b[31mthat"))
    run = CliRunner().invoke(cli, ["version"])
    assert run.exit_code == 3
    assert run.stderr == "taskline: error: cannot reach it nor \\x1b[31mthat\n"


@pytest.mark.parametrize("words", [["--debug", "version"], ["version", "--debug"]])
def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    fail_with(monkeypatch, errors.TransportError("cannot reach it"))
    run = CliRunner().invoke(cli, words)
    assert run.exit_code == 3
    assert "Traceback" in run.stderr
    assert run.stderr.endswith("taskline: error: cannot reach it\n")


def test_the_users_traceback_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, BrokenModule("importing proj failed", "Traceback …\n  proj.py\n"))
    run = CliRunner().invoke(cli, ["version"])
    assert run.exit_code == 2
    assert run.stderr == "Traceback …\n  proj.py\ntaskline: error: importing proj failed\n"


def test_a_bug_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, RuntimeError("a bug"))
    run = CliRunner().invoke(cli, ["version"])
    assert isinstance(run.exception, RuntimeError)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), EOFError(), click.Abort()])
def test_an_interrupt_is_quiet(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    fail_with(monkeypatch, error)
    run = CliRunner().invoke(cli, ["version"])
    assert (run.exit_code, run.output) == (130, "")


def taskline(*words: str, **more: Any) -> subprocess.Popen[str]:
    """The real command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "taskline", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def test_a_closed_pipe_is_quiet() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with subprocess.Popen(
        [sys.executable, "-m", "taskline", "completion", "bash"],
        stdout=write_end,
        stderr=subprocess.PIPE,
    ) as process:
        os.close(write_end)
        _, printed = process.communicate(timeout=60)
    assert (process.returncode, printed) == (141, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_said_in_one_line() -> None:
    with (
        open("/dev/full", "w") as full,
        subprocess.Popen(
            [sys.executable, "-m", "taskline", "version"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        _, printed = process.communicate(timeout=60)
    assert process.returncode == 1
    assert printed == "taskline: error: [Errno 28] No space left on device\n"


def test_without_a_standard_output_the_work_is_done() -> None:
    words = f"'{sys.executable}' -m taskline version >&-"
    run = subprocess.run(words, shell=True, stderr=subprocess.PIPE, timeout=60)
    assert (run.returncode, run.stderr) == (0, b"")


def test_output_that_the_terminal_cannot_encode_is_escaped() -> None:
    env = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    with taskline("queues", "--broker", "ł://", env=env) as process:
        _, printed = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "\\u0142" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_names_our_command(shell: str) -> None:
    run = CliRunner().invoke(cli, ["completion", shell])
    assert run.exit_code == 0
    assert "_TASKLINE_COMPLETE" in run.stdout
    as_json = json.loads(CliRunner().invoke(cli, ["completion", shell, "--json"]).stdout)
    assert as_json == {"shell": shell, "script": run.stdout.removesuffix("\n")}


@pytest.mark.parametrize(
    ("line", "completed"),
    [("taskline wo", {"worker"}), ("taskline dead re", {"requeue"})],
)
def test_a_shell_completes_commands(line: str, completed: set[str]) -> None:
    env = {
        **os.environ,
        "_TASKLINE_COMPLETE": "bash_complete",
        "COMP_WORDS": line,
        "COMP_CWORD": str(line.count(" ")),
    }
    with taskline(env=env) as process:
        printed, _ = process.communicate(timeout=60)
    assert {each.partition(",")[2] for each in printed.split()} == completed


def test_version() -> None:
    known = json.loads(CliRunner().invoke(cli, ["--json", "version"]).stdout)
    assert known["python"] == sys.version.split()[0]
    assert "click" in known
    assert CliRunner().invoke(cli, ["--version"]).stdout == f"taskline {known['taskline']}\n"


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom taskline.cli import main\nsys.argv = ['taskline', '--help']\n"
        "try: main()\nexcept SystemExit: pass\nprint(*sys.modules, file=sys.stderr)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    heavy = {"rich", "sqlite3", "asyncio", "kombu", "yaml", "tenacity", "cloudpickle"}
    assert not heavy & set(run.stderr.split())


def test_ctrl_c_in_a_real_process_is_quiet(tmp_path: Path) -> None:
    """Interrupt it where it certainly runs: in the user's module."""
    (tmp_path / "proj.py").write_text(
        "import sys, time\nprint('here', file=sys.stderr, flush=True)\nwhile True: time.sleep(60)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(package.__file__).parent.parent)}

    def heed() -> None:  # what a shell starts in the background ignores SIGINT, and so do we then
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with taskline("tasks", "-A", "proj", cwd=tmp_path, env=env, preexec_fn=heed) as process:
        try:
            assert process.stderr is not None
            assert process.stderr.readline() == "here\n"
            process.send_signal(signal.SIGINT)
            _, rest = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, rest) == (130, "")
