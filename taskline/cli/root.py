"""The `taskline` command itself: its subcommands, loaded when used, and how errors end it."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

import taskline
from taskline.cli import output
from taskline.cli.options import Choice, Commands, broker_options, common_options
from taskline.errors import (
    ConfigurationError,
    InvalidArguments,
    NotSupported,
    ResultTimeout,
    SerializationError,
    TasklineError,
    TransportError,
    UnknownTask,
)
from taskline.loading import BrokenModule

COMMANDS = {
    "worker": "worker",
    "send": "send",
    "result": "result",
    "revoke": "revoke",
    "queues": "queues",
    "dead": "dead",
    "purge": "queues:purge",
    "schedule": "schedule",
    "inspect": "inspect",
    "control": "control",
    "ping": "ping",
    "health": "health",
    "tasks": "tasks",
    "doctor": "doctor",
    "version": "version",
    "completion": "completion",
}
"""Each command's module in this package, and its name there where that differs."""


class Root(Commands):
    """Loads a command's module when the command is used, and ends every error in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module_name, _, attribute = COMMANDS[cmd_name].partition(":")
        module = importlib.import_module(f"taskline.cli.{module_name}")
        command = getattr(module, attribute or cmd_name)
        assert isinstance(command, click.Command)
        return command

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> NoReturn:
        prog_name = prog_name or "taskline"
        self._main_shell_completion(extra, prog_name, complete_var)
        chosen = extra.setdefault("obj", Choice())
        _prepare_streams()
        try:
            arguments = sys.argv[1:] if args is None else list(args)
            with self.make_context(prog_name, arguments, **extra) as ctx:
                self.invoke(ctx)
            sys.stdout.flush()
            code = output.OK
        except click.exceptions.Exit as stop:
            code = stop.exit_code
        except (KeyboardInterrupt, EOFError, click.Abort):
            code = output.INTERRUPTED
        except (click.ClickException, TasklineError) as error:
            code = _report(error, chosen.debug)
        except OSError as error:
            code = _broken_output(error, chosen.debug)
        sys.exit(code)


def _prepare_streams() -> None:
    """Let every text be printed, also where a stream is closed or speaks ASCII only."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _broken_output(error: OSError, debug: bool) -> int:
    """The exit code after output that could not be written; a closed pipe ends us in silence."""
    if debug:
        import traceback

        traceback.print_exception(error)
    # What is still buffered must not be complained about at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if error.errno == errno.EPIPE:
        return output.BROKEN_PIPE
    output.error(str(error))
    return output.FAILED


def _report(error: click.ClickException | TasklineError, debug: bool) -> int:
    """Say in one line on standard error what is wrong; returns the exit code."""
    if debug:
        import traceback

        traceback.print_exception(error)
    elif isinstance(error, BrokenModule):
        click.echo(error.trace, err=True, nl=False)
    if isinstance(error, click.ClickException):
        text = _in_our_words(error)
    else:
        text = str(error) or type(error).__name__
    output.error(text)
    return exit_code(error)


def _in_our_words(error: click.ClickException) -> str:
    if isinstance(error, click.NoSuchOption):
        near = error.possibilities or []
        text = f"no such option {error.option_name!r}"
        text += f"; did you mean {near[0]}?" if near else ""
    else:
        text = error.format_message().rstrip(".")
        text = text[:1].lower() + text[1:]
    if isinstance(error, click.UsageError) and error.ctx is not None:
        text += f" (see {error.ctx.command_path} --help)"
    return text


def exit_code(error: Exception) -> int:
    """The exit code for an error."""
    if isinstance(error, ResultTimeout):
        return output.UNFINISHED
    if isinstance(error, NotSupported):
        return output.FAILED
    if isinstance(error, TransportError):
        return output.UNREACHABLE
    if isinstance(
        error,
        ConfigurationError
        | InvalidArguments
        | UnknownTask
        | SerializationError
        | click.ClickException,
    ):
        return output.USAGE
    return output.FAILED


@click.group(
    name="taskline",
    cls=Root,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 failed or not found, 2 wrong use or configuration, "
    "3 broker unreachable, 4 timed out or not finished, 130 interrupted.",
)
@broker_options
@common_options
@click.version_option(taskline.__version__, message="taskline %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Run Python functions later, elsewhere, reliably.

    With --json every command prints one JSON document; `result` and `doctor` print one on
    each line. Errors are one line on standard error.

    \b
    Examples:
      taskline worker -A proj -c 4
      taskline send -A proj proj.add 1 2 --wait 10
      taskline queues -A proj
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        raise click.exceptions.Exit(output.USAGE)
