"""The command line: prints, never decides. One file for each group of commands.

Exit codes: 0 done; 1 the answer is no, or what was asked for failed; 2 a mistake
in the command line, the configuration or the app's code; 3 the broker or the
result backend cannot be reached; 4 timed out, or not finished yet; 130 interrupted.
"""

from __future__ import annotations

from typing import NoReturn


def main() -> NoReturn:
    """The console entry point."""
    from taskline.cli.root import cli

    cli.main(prog_name="taskline")
    raise AssertionError("click's main always exits")


__all__ = ["main"]
