"""Pages that are made of something else: of files outside of docs/, of the command line's help."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from taskline.cli.root import cli

ROOT = Path(__file__).parent.parent
MADE_OF = {"index.md": ROOT / "README.md", "changelog.md": ROOT / "CHANGELOG.md"}


def on_page_read_source(page: Any, config: Any) -> str | None:
    """The text of a page; None leaves it to MkDocs."""
    source = MADE_OF.get(page.file.src_uri)
    return source.read_text(encoding="utf-8").replace("](docs/", "](") if source else None


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Put the commands' help into the page of the command line."""
    if page.file.src_uri != "cli.md":
        return markdown
    marker = "<!-- commands: docs/hooks.py puts them here -->"
    assert marker in markdown
    return markdown.replace(marker, "\n".join(sections(cli, "taskline", None)))


def sections(command: click.Command, name: str, parent: click.Context | None) -> Iterator[str]:
    """A heading and the help of a command and of all below it."""
    context = click.Context(
        command, info_name=name, parent=parent, max_content_width=90, terminal_width=90
    )
    yield f"## `{context.command_path}`\n\n```text\n{command.get_help(context)}\n```\n"
    if isinstance(command, click.Group):
        for each in command.list_commands(context):
            below = command.get_command(context, each)
            if below is not None and not below.hidden:
                yield from sections(below, each, context)
