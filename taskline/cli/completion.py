"""`taskline completion`: the script that teaches a shell to complete our commands."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from taskline.cli import output
from taskline.cli.options import as_json, common_options


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@common_options
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script for a shell.

    \b
    Examples:
      echo 'eval "$(taskline completion bash)"' >> ~/.bashrc
      echo 'eval "$(taskline completion zsh)"' >> ~/.zshrc
      taskline completion fish > ~/.config/fish/completions/taskline.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(ctx.find_root().command, {}, "taskline", "_TASKLINE_COMPLETE").source()
    if as_json():
        output.json({"shell": shell, "script": script})
    else:
        click.echo(script)
