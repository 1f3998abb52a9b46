"""How the programs of real servers get onto this machine, and what happens when they cannot."""

from __future__ import annotations

import os
import shutil
import subprocess


class Missing(Exception):
    """A server's program is not on this machine; the message says how to get it."""


def demanded() -> bool:
    """Whether a missing server is an error, not a reason to skip."""
    return bool(os.environ.get("CI"))


def may_install() -> bool:
    """Whether the tests may install packages of the system: as root, where CI or a wish is set."""
    wanted = os.environ.get("CI") or os.environ.get("TASKLINE_TEST_INSTALL")
    return bool(wanted) and os.geteuid() == 0


def from_debian(program: str, package: str) -> str | None:
    """The path of a program, its Debian package installed first where that is allowed."""
    found = shutil.which(program)
    if found is None and may_install() and shutil.which("apt-get"):
        install = ["install", "-y", "-q", "--no-install-recommends", package]
        if not _apt(*install):  # the lists of packages are too old, or not there at all
            _apt("update", "-q")
            _apt(*install)
        found = shutil.which(program)
    return found


def _apt(*arguments: str) -> bool:
    """Whether apt-get could do this."""
    done = subprocess.run(
        ["apt-get", "-o", "DPkg::Lock::Timeout=240", *arguments],
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=300,
        check=False,
    )
    return done.returncode == 0
