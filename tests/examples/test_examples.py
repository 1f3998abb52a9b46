"""The programs of examples/ print what their docstrings say."""

from __future__ import annotations

import ast
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
PROGRAMS = sorted(path.stem for path in EXAMPLES.glob("*.py") if not path.stem.startswith("test_"))
SCRIPTS = Path(sys.executable).parent


def promised(program: Path) -> str:
    """The lines after `prints` in the docstring."""
    text = ast.get_docstring(ast.parse(program.read_text()))
    assert text is not None
    head, _, lines = text.partition("\nprints\n")
    assert f"taskline worker -A {program.stem}\n" in head
    assert lines.strip()
    return textwrap.dedent(lines).strip() + "\n"


@pytest.mark.parametrize("name", PROGRAMS)
def test_program_prints_what_it_says(name: str, tmp_path: Path) -> None:
    shutil.copy(EXAMPLES / f"{name}.py", tmp_path)
    environment = {key: text for key, text in os.environ.items() if not key.startswith("TASKLINE_")}
    log = tmp_path / "worker.log"
    with log.open("w") as stream:
        worker = subprocess.Popen(
            [SCRIPTS / "taskline", "worker", "-A", name],
            cwd=tmp_path,
            env=environment,
            stdout=stream,
            stderr=stream,
        )
    try:
        program = subprocess.run(
            [sys.executable, f"{name}.py"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(timeout=60) == 0, log.read_text()
    finally:
        worker.kill()
        worker.wait()
    assert (program.stdout, program.stderr) == (promised(tmp_path / f"{name}.py"), "")


def test_the_examples_of_tests_pass() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_shop.py"],
        cwd=EXAMPLES,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stdout


def test_every_example_is_in_the_table() -> None:
    table = (EXAMPLES / "README.md").read_text()
    for path in EXAMPLES.glob("*.py"):
        assert f"| `{path.name}` |" in table
