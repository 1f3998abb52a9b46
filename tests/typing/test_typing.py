"""`mypy --strict` accepts right uses of the public face and refuses wrong ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mypy import api

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

Found = set[tuple[str, int, str]]


def complaints() -> Found:
    """File, line and code of every error mypy finds in the two files."""
    files = [str(HERE / "accepted.py"), str(HERE / "refused.py")]
    output, trouble, _ = api.run(
        ["--strict", "--config-file", str(ROOT / "pyproject.toml"), "--hide-error-context", *files]
    )
    assert not trouble, trouble
    found = re.findall(r"([\w.]+):(\d+): error: .*\[([\w-]+)\]$", output, re.MULTILINE)
    assert len(found) == output.count(": error:"), output
    return {(file, int(line), code) for file, line, code in found}


def marks() -> Found:
    """The same of every `# E: code` in the file of wrong uses."""
    lines = (HERE / "refused.py").read_text().splitlines()
    return {
        ("refused.py", number, code)
        for number, line in enumerate(lines, 1)
        if "# E: " in line
        for code in line.partition("# E: ")[2].split()
    }


def test_mypy_refuses_what_is_marked_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found, marked = complaints(), marks()
    assert len(marked) > 40
    assert found == marked
