from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from taskline.errors import ConfigurationError
from taskline.sqlite.location import Location, locate


def test_three_slashes_are_relative_and_four_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here = os.path.realpath(tmp_path)
    assert locate("sqlite:///jobs.db") == Location(f"{here}/jobs.db", "normal", 30.0)
    assert locate("sqlite:///sub/jobs.db").path == f"{here}/sub/jobs.db"
    assert locate(f"sqlite:///{here}/jobs.db").path == f"{here}/jobs.db"


def test_a_relative_path_does_not_follow_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    location = locate("sqlite:///jobs.db")
    monkeypatch.chdir("/")
    assert location.path == f"{os.path.realpath(tmp_path)}/jobs.db"


def test_all_ways_to_one_file_are_one_location(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    straight = locate(f"sqlite:///{tmp_path}/jobs.db")
    assert locate(f"sqlite:///{tmp_path}/link/./jobs.db") == straight
    assert locate({"type": "sqlite", "path": tmp_path / "link" / "jobs.db"}) == straight


def test_options_in_the_url() -> None:
    location = locate("sqlite:////tmp/a%20b.db?durability=full&busy_timeout=2.5")
    assert location == Location(os.path.realpath("/tmp/a b.db"), "full", 2.5)


@pytest.mark.parametrize(
    "spec",
    [
        {"type": "sqlite", "path": "/tmp/jobs.db", "durability": "full", "busy_timeout": 5},
        {"type": "local", "params": {"file_path": "/tmp/jobs.db"}, "durability": "full"},
    ],
)
def test_a_mapping_and_sergeants_connector(spec: dict[str, Any]) -> None:
    location = locate(spec)
    assert (location.path, location.durability) == (os.path.realpath("/tmp/jobs.db"), "full")


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("sqlite://jobs.db", "sqlite:///jobs.db"),
        ("sqlite://", "sqlite:///file.db"),
        ("sqlite:///", "sqlite:///file.db"),
        ("sqlite:///:memory:", "memory://"),
        ("sqlite:///jobs.db?durability=most", "normal or full"),
        ("sqlite:///jobs.db?busy_timeout=long", "'long'"),
        ("sqlite:///jobs.db?busy_timeout=-1", "-1"),
        ("sqlite:///jobs.db?busy_timeout=inf", "inf"),
        ("sqlite:///jobs.db?durabilty=full", "durability"),
        ({"type": "sqlite"}, "sqlite:///file.db"),
        ({"type": "sqlite", "path": 5}, "5"),
        ({"type": "sqlite", "path": "jobs.db", "durability": 1}, "normal or full"),
        ({"type": "sqlite", "path": "jobs.db", "busy_timeout": None}, "seconds"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(spec: Any, hint: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        locate(spec)
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)
