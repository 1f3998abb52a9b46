"""What the distribution promises: version, entry points, typing, and a light import."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import taskline

ROOT = Path(taskline.__file__).parent.parent

HEAVY = [
    "asyncio",
    "click",
    "cloudpickle",
    "difflib",
    "kombu",
    "rich",
    "sqlite3",
    "tenacity",
    "tomli",
    "yaml",
]


def test_the_version_is_a_literal_that_setuptools_reads_without_importing() -> None:
    source = Path(taskline.__file__).read_text()
    match = re.search(r'^__version__ = "(\d+\.\d+\.\d+\S*)"$', source, re.MULTILINE)
    assert match is not None
    assert match[1] == taskline.__version__


def test_type_checkers_see_the_types() -> None:
    for package in "taskline", "taskline_contrib":
        assert (ROOT / package / "py.typed").exists()


def test_import_leaves_out_what_is_loaded_when_used() -> None:
    code = "import sys, taskline; print(*sorted(set(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert set(HEAVY) & set(run.stdout.split()) == set()


def test_every_entry_point_can_be_loaded() -> None:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    groups = config["options.entry_points"]
    assert set(groups) == {"console_scripts", "pytest11", "taskline.transports"}
    for group, text in groups.items():
        for line in text.strip().splitlines():
            name, _, value = (part.strip() for part in line.partition("="))
            point = importlib.metadata.EntryPoint(name, value, group)
            assert point.load() is not None
