"""Code that a page shows as part of a file of this repository is in that file, word for word."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHOWN = re.compile(
    r'^```\w+ title="(?P<file>(?:examples|integration|taskline)/[^"]+)"\n(?P<code>.*?)^```$',
    re.MULTILINE | re.DOTALL,
)
FOUND = [
    pytest.param(match["file"], match["code"], id=f"{page.name}-{index}")
    for page in sorted((ROOT / "docs").rglob("*.md"))
    for index, match in enumerate(SHOWN.finditer(page.read_text()))
]


@pytest.mark.parametrize(("file", "code"), FOUND)
def test_what_is_shown_is_there(file: str, code: str) -> None:
    text = (ROOT / file).read_text()
    shown = [textwrap.indent(code, " " * depth) for depth in (0, 4, 8, 12)]
    assert any(each in text for each in shown), f"{file} does not contain\n{code}"


def test_some_code_is_shown() -> None:
    assert len(FOUND) > 5
