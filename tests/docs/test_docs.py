"""Every code block of the README and of docs/ is executed; see `page.py` for how."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUNNER = Path(__file__).with_name("page.py")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WITH_CODE = [
    page for page in PAGES if re.search(r"^\s*```(python|console|bash)", page.read_text(), re.M)
]


def run(page: Path, directory: Path) -> subprocess.CompletedProcess[str]:
    scripts = Path(sys.executable).parent
    assert (scripts / "taskline").exists(), "Taskline is not installed here: run `make env`"
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("TASKLINE_")
    }
    environment |= {
        "PATH": f"{scripts}{os.pathsep}{environment['PATH']}",
        "HOME": str(directory),
        "CHECKOUT": str(ROOT),
        "COLUMNS": "100",
        "NO_COLOR": "1",
    }
    return subprocess.run(
        [sys.executable, str(RUNNER), str(page)],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: str(page.relative_to(ROOT)))
def test_page_does_what_it_says(page: Path, tmp_path: Path) -> None:
    done = run(page, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_readme_is_among_the_pages() -> None:
    assert ROOT / "README.md" in WITH_CODE


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("```python\n1 / 0\n```\n", "ZeroDivisionError"),
        ("<!-- test: raises ValueError -->\n```python\n1\n```\n", "nothing was raised"),
        ("<!-- test: raises ValueError -->\n```python\n1 / 0\n```\n", "ZeroDivisionError"),
        ("```console\n$ echo a\nb\n```\n", "where the page shows"),
        ("```console\n$ exit 3\n```\n", "exit code 3, not 0"),
        ("```bash\nfalse\ntrue\n```\n", "exit code 1"),
        ("<!-- test: skip -->\n```python\n1\n```\n", "needs a reason"),
        ("<!-- test: skipp why -->\n```python\n1\n```\n", "unknown directive"),
        ("<!-- test: background -->\n```console\n$ sleep 60\n```\n", "ended with"),
        ("<!-- test: run\nassert False, 'hidden'\n-->\n", "hidden"),
    ],
)
def test_a_page_that_is_wrong_fails(text: str, complaint: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    done = run(page, tmp_path)
    assert done.returncode == 1
    assert complaint in done.stderr


def test_a_page_that_is_right_passes(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        '```python title="a.py"\nX = 1\n```\n'
        "```python\nimport a\n```\n"
        "Text.\n\n    ```python\n    assert a.X == 1\n    ```\n"
        "```console\n$ echo one; echo two three\none\n...three\n```\n"
        "<!-- test: raises LookupError -->\n```python\n{}[1]\n```\n"
        "<!-- test: fails 2 -->\n```bash\nexit 2\n```\n"
        "```toml\nnot = run\n```\n"
    )
    done = run(page, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "6 blocks ran\n"
