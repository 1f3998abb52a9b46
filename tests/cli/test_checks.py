"""The doctor's checks, one by one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from taskline.cli import checks
from taskline.cli.checks import FAIL, OK, WARN, Finding


def the(findings: Any, check: str) -> Finding:
    """The one finding of a check."""
    found = [each for each in findings if each.check == check]
    assert len(found) == 1, found
    return found[0]


def test_a_missing_package_is_wrong() -> None:
    finding = the(checks.versions({"click": "8", "kombu": "5"}), "packages")
    assert finding.status == FAIL
    assert finding.message == "not installed: cloudpickle, msgspec, rich, tenacity"
    assert finding.remedy == "pip install cloudpickle msgspec rich tenacity"


def test_settings_in_the_environment_are_shown_without_secrets() -> None:
    finding = the(
        checks.environment(
            {
                "TASKLINE_BROKER": "redis://me:secret@host",
                "TASKLINE_SIGNING_KEY": "hush",
                "TASKLINE_VERIFY_KEYS": "hush,hush",
                "TASKLINE_LEASE": "30",
                "TASKLINE_APP": "proj",
                "HOME": "/",
            }
        ),
        "environment",
    )
    assert finding.status == OK
    assert finding.message == (
        "TASKLINE_APP=proj, TASKLINE_BROKER=redis://me:***@host, TASKLINE_LEASE=30, "
        "TASKLINE_SIGNING_KEY=***, TASKLINE_VERIFY_KEYS=***"
    )


def test_an_unknown_variable_is_told_of_with_the_nearest() -> None:
    finding = the(checks.environment({"TASKLINE_BROKERS": "x"}), "environment")
    assert finding.status == WARN
    assert "TASKLINE_BROKERS is set, but there is no such setting" in finding.message
    assert finding.remedy == "did you mean TASKLINE_BROKER?"
    assert the(checks.environment({"TASKLINE_QUUX": "x"}), "environment").remedy != ""


def test_the_file_system_is_the_one_mounted_nearest(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/sda1 / ext4 rw 0 0\n"
        "server:/x /mnt/share nfs4 rw 0 0\n"
        "tmpfs /mnt/share/local tmpfs rw 0 0\n"
        "server:/y /mnt/two\\040words cifs rw 0 0\n"
        "old /over nfs rw 0 0\nnew /over ext4 rw 0 0\n"
    )
    assert checks.file_system(Path("/srv/x.db"), mounts) == "ext4"
    assert checks.file_system(Path("/mnt/share/x.db"), mounts) == "nfs4"
    assert checks.file_system(Path("/mnt/shared/x.db"), mounts) == "ext4"
    assert checks.file_system(Path("/mnt/share/local/x.db"), mounts) == "tmpfs"
    assert checks.file_system(Path("/mnt/two words/x.db"), mounts) == "cifs"
    assert checks.file_system(Path("/over/x.db"), mounts) == "ext4"
    assert checks.file_system(Path("/x.db"), tmp_path / "none") is None


def test_a_file_on_a_network_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.db"
    path.touch()
    monkeypatch.setattr(checks, "file_system", lambda path, mounts: "nfs4")
    finding = the(checks.file(path), "file system")
    assert finding.status == WARN
    assert "is on nfs4" in finding.message


class Usage(NamedTuple):
    free: int


@pytest.mark.parametrize(("free", "status"), [(2**20, FAIL), (500 * 2**20, WARN), (50 * 2**30, OK)])
def test_disk_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, status: str
) -> None:
    path = tmp_path / "x.db"
    path.touch()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(free))
    finding = the(checks.file(path), "disk")
    assert finding.status == status
    assert bool(finding.remedy) == (status != OK)


def test_a_file_that_everyone_may_write_is_warned_of(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    path.touch(0o600)
    assert the(checks.file(path), "permissions").status == OK
    path.chmod(0o666)
    finding = the(checks.file(path), "permissions")
    assert (finding.status, finding.remedy) == (WARN, f"chmod o-w {path}")


def test_a_file_that_we_may_not_write_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.db"
    path.touch()
    (tmp_path / "x.db-wal").touch()
    monkeypatch.setattr(os, "access", lambda each, mode: not str(each).endswith("-wal"))
    finding = the(checks.file(path), "permissions")
    assert finding.status == FAIL
    assert finding.message == f"not allowed to write: {path}-wal"


def test_the_clock_is_compared_where_the_broker_tells_the_time() -> None:
    assert list(checks.clock(None, 1000.0)) == []
    assert the(checks.clock(1000.5, 1000.0), "clock").status == OK
    behind = the(checks.clock(4600.5, 1000.0), "clock")
    assert behind.status == WARN
    assert "is 1h behind the broker's" in behind.message
    assert "is 1m 39s ahead of the broker's" in the(checks.clock(901, 1000.0), "clock").message
