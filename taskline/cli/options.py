"""What every command shares: its options, and the app that they lead to."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from taskline.cli import output
from taskline.errors import ConfigurationError
from taskline.loading import did_you_mean

if TYPE_CHECKING:
    from taskline.app import Taskline

F = TypeVar("F", bound=Callable[..., Any])


class Choice(msgspec.Struct):
    """What the shared options say; the same object for a command and its groups."""

    app: str | None = None
    broker: str | None = None
    backend: str | None = None
    config: str | None = None
    json: bool = False
    debug: bool = False

    def target(self) -> str | None:
        """The value for `-A`: as given, or of TASKLINE_APP unless a URL or file is given."""
        if self.app or self.broker or self.backend or self.config:
            return self.app
        return os.environ.get("TASKLINE_APP") or None


class Commands(click.Group):
    """A group that names the nearest command to a mistyped one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.list_commands(ctx)
        if args and args[0] not in known and not args[0].startswith("-"):
            ctx.fail(f"no such command {args[0]!r}{did_you_mean(args[0], known)}")
        return super().resolve_command(ctx, args)


def choice() -> Choice:
    """What the shared options of the running command say."""
    chosen = click.get_current_context().ensure_object(Choice)
    assert isinstance(chosen, Choice)
    return chosen


def as_json() -> bool:
    """Whether `--json` was given."""
    return choice().json


def _remember(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    # The same option may stand before or after the command's name.
    if value:
        setattr(ctx.ensure_object(Choice), param.name or "", value)


def _option(*names: str, help: str, **more: Any) -> Callable[[F], F]:
    return click.option(*names, help=help, expose_value=False, callback=_remember, **more)


def app_option(command: F) -> F:
    """`-A`."""
    return _option(
        "-A",
        "--app",
        metavar="MODULE[:NAME]",
        help="Your app: proj, proj.tasks or proj.mod:name.  [env: TASKLINE_APP]",
    )(command)


def broker_options(command: F) -> F:
    """`-A`, or instead of it `--broker`, `--backend` and `--config`."""
    for option in (
        _option("--config", metavar="FILE", help="Settings in YAML or TOML.", type=click.Path()),
        _option("--backend", metavar="URL", help="Result backend.  [env: TASKLINE_BACKEND]"),
        _option("--broker", metavar="URL", help="Broker.  [env: TASKLINE_BROKER]"),
    ):
        command = option(command)
    return app_option(command)


def common_options(command: F) -> F:
    """`--json` and `--debug`, which every command has."""
    debug = _option("--debug", is_flag=True, help="Show the traceback of an error.")
    return _option("--json", is_flag=True, help="Print JSON.")(debug(command))


def the_app() -> tuple[Taskline, str]:
    """The user's own app and its path, for commands that need its code."""
    from taskline.cli.find import find

    target = choice().target()
    if target is None:
        raise ConfigurationError("which app? Name it with -A proj, or set TASKLINE_APP")
    try:
        app, path = find(target)
    finally:  # behind the user's own modules, which may have set up the logging
        quiet_logs()
    _close_at_end(app)
    return app, path


def app_or_broker() -> Taskline:
    """The user's app, or one made of a broker's URL or a file alone.

    Says when a file is about to be made: a mistyped name and a wrong working
    directory otherwise show nothing but empty queues.
    """
    from taskline.cli.checks import new_files

    app = silent_app_or_broker()
    tell_of_new_files(new_files(app))
    return app


def tell_of_new_files(paths: list[str]) -> None:
    """Say that these files have not been there before."""
    for path in paths:
        output.note(f"note: there was no file {path}; it is made now")


def silent_app_or_broker() -> Taskline:
    """As `app_or_broker`, without a word."""
    chosen = choice()
    if chosen.app and (chosen.broker or chosen.backend or chosen.config):
        raise ConfigurationError(
            "-A and --broker, --backend or --config exclude each other: the app has its own"
        )
    if chosen.target() is not None:
        return the_app()[0]
    if not (chosen.broker or chosen.config or os.environ.get("TASKLINE_BROKER")):
        raise ConfigurationError(
            "which broker? Name your app with -A, a URL with --broker, or set TASKLINE_BROKER"
        )
    quiet_logs()
    app = _bare_app(chosen)
    _close_at_end(app)
    return app


def _bare_app(chosen: Choice) -> Taskline:
    from taskline.app import Taskline

    urls: dict[str, Any] = {
        name: url
        for name, url in (("broker", chosen.broker), ("backend", chosen.backend))
        if url is not None
    }
    return Taskline.from_config(chosen.config or {}, name="taskline", **urls)


def _close_at_end(app: Taskline) -> None:
    click.get_current_context().call_on_close(app.close)


def quiet_logs() -> None:
    """Show only what people must know of what the library logs."""
    from taskline.log import setup

    setup("DEBUG" if choice().debug else "WARNING")
