"""Printing: tables and text for people, JSON for programs.

On a terminal tables are rich's (which respects NO_COLOR); elsewhere they are
plain columns. Text that came out of a message is never trusted: control
characters are shown as escapes, so that no task can paint on the terminal.
"""

from __future__ import annotations

import datetime
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import click

OK = 0
FAILED = 1
USAGE = 2
UNREACHABLE = 3
UNFINISHED = 4
INTERRUPTED = 130
BROKEN_PIPE = 141


def line(text: str = "") -> None:
    """A line on standard output."""
    click.echo(clean(text, keep="\n\t"))


def note(text: str) -> None:
    """A line for people on standard error, where it cannot disturb a program that reads us."""
    click.echo(clean(text), err=True)


def error(text: str) -> None:
    """The one line on standard error that says what is wrong."""
    click.echo(f"taskline: error: {clean(' '.join(text.split()))}", err=True)


def json(value: Any) -> None:
    """A JSON document on a line of its own."""
    click.echo(encode(value))
    sys.stdout.flush()


def encode(value: Any) -> str:
    """A value as JSON. What JSON cannot carry is shown as its `repr`."""
    import msgspec

    try:
        return msgspec.json.encode(value, enc_hook=repr).decode()
    except (TypeError, ValueError, OverflowError, RecursionError):
        return msgspec.json.encode(_jsonable(value, 0)).decode()


def _jsonable(value: Any, depth: int) -> Any:
    """Also what msgspec refuses: odd keys, numbers beyond 64 bits, lone surrogates, cycles."""
    if depth < 50 and isinstance(value, dict):
        return {
            clean(key if isinstance(key, str) else repr(key)): _jsonable(item, depth + 1)
            for key, item in value.items()
        }
    if depth < 50 and isinstance(value, list | tuple | set | frozenset):
        return [_jsonable(item, depth + 1) for item in value]
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int) and abs(value) < 2**63:
        return value
    return clean(value if isinstance(value, str) else repr(value), keep="\n\t")


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], empty: str = "") -> None:
    """A table. Numbers stand right, None is a dash; `empty` is said when there are no rows."""
    given = [list(row) for row in rows]
    cells = [["-" if cell is None else clean(str(cell)) for cell in row] for row in given]
    if not cells:
        if empty:
            line(empty)
        return
    right = [
        all(cell is None or isinstance(cell, int | float) for cell in column)
        for column in zip(*given, strict=True)
    ]
    if sys.stdout.isatty():
        _rich_table(columns, cells, right)
    else:
        _plain_table(columns, cells, right)


def _plain_table(columns: Sequence[str], rows: list[list[str]], right: list[bool]) -> None:
    rows = [[column.upper() for column in columns], *rows]
    widths = [max(len(row[index]) for row in rows) for index in range(len(columns))]
    for row in rows:
        padded = (
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        )
        line("  ".join(padded).rstrip())


def _rich_table(columns: Sequence[str], rows: list[list[str]], right: list[bool]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    view = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column, to_right in zip(columns, right, strict=True):
        justify: Literal["left", "right"] = "right" if to_right else "left"
        # An id must stay in one piece, to be copied.
        view.add_column(column, justify=justify, overflow="fold", no_wrap=column == "id")
    for row in rows:
        view.add_row(*(Text(cell) for cell in row))
    Console().print(view)


def fields(pairs: Iterable[tuple[str, Any]]) -> None:
    """One `name  value` a line; a value of several lines stands indented below its name."""
    shown = [(name, clean(str(value), keep="\n\t")) for name, value in pairs if value is not None]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        if "\n" in value:
            click.echo(style(name, bold=True))
            for part in value.rstrip("\n").split("\n"):
                line(f"    {part}")
        else:
            click.echo(f"{style(name.ljust(width), bold=True)}  {value}")


def entry(name: str, rest: str, text: str) -> None:
    """A name, what belongs to it, and below it a line of text."""
    click.echo(style(clean(name), bold=True) + clean(rest))
    if text:
        click.echo(style(f"    {clean(text)}", dim=True))


def style(text: str, **styles: Any) -> str:
    """Text in a colour or weight, where standard output is a terminal that wants it."""
    import os

    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return click.style(text, **styles)


def masked(value: Any, name: str = "") -> Any:
    """A setting's value fit to be shown: no passwords, no keys."""
    from taskline.registry import hide_password

    if isinstance(value, dict):
        return {key: masked(item, str(key)) for key, item in value.items()}
    if value and re.search("pass|secret|key|token", name, re.IGNORECASE):
        return "***"
    if isinstance(value, list | tuple):
        return [masked(item) for item in value]
    if isinstance(value, str) and value[:1] in ("{", "["):  # as the environment has mappings
        import msgspec

        try:
            return msgspec.json.encode(masked(msgspec.json.decode(value))).decode()
        except msgspec.DecodeError:
            return "***"
    return hide_password(value) if isinstance(value, str) and "://" in value else value


def address(spec: Any) -> str:
    """A broker or backend setting on one line, without passwords."""
    shown = masked(spec)
    return ", ".join(map(str, shown)) if isinstance(shown, list) else str(shown)


def clean(text: str, keep: str = "") -> str:
    """Text without characters that command a terminal; those of `keep` stay."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each in keep else each.encode("unicode_escape").decode()
        for each in text
    )


def shorten(text: str, width: int) -> str:
    """One line of at most `width` characters."""
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"


def when(seconds: float | None) -> str | None:
    """Unix seconds as local time."""
    if seconds is None:
        return None
    try:
        moment = datetime.datetime.fromtimestamp(seconds)
    except (ValueError, OverflowError, OSError):
        return str(seconds)
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def count(number: int, noun: str) -> str:
    """`1 process`, `2 processes`."""
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun}{'es' if noun.endswith('s') else 's'}"


def span(seconds: float | None) -> str | None:
    """A duration in its two greatest units: `3m 12s`."""
    if seconds is None:
        return None
    if seconds < 0:
        return f"-{span(-seconds)}"
    if seconds < 0.01:
        return f"{seconds * 1000:.1f}ms"
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 10:
        return f"{seconds:.1f}s"
    rest = round(seconds)
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        if count or parts:
            parts.append(f"{count}{unit}")
    return " ".join(part for part in parts[:2] if not part.startswith("0"))


def stdin_is_terminal() -> bool:
    """Whether somebody is there to answer."""
    return sys.stdin.isatty()


def confirm(question: str, yes: bool) -> None:
    """Ask on a terminal; elsewhere insist on `--yes`. Exits when the answer is no."""
    if yes:
        return
    if not stdin_is_terminal():
        raise click.UsageError(f"{question} Say so with --yes; there is no terminal to ask on")
    if not click.confirm(clean(question), err=True):
        note("nothing was changed")
        raise click.exceptions.Exit(FAILED)
