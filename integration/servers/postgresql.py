"""A PostgreSQL server of the tests' own, in a directory of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from functools import cache
from pathlib import Path

from integration.servers.process import START_WITHIN, Server
from integration.servers.supply import Missing, from_debian

REMEDY = (
    "no PostgreSQL server: apt-get install postgresql, or name a running one, as "
    "postgresql://user:password@host:port/database, in TASKLINE_TEST_POSTGRES"
)
ACCOUNT = "postgres"
"""Who runs the server where the tests are run by root, whom it refuses."""


@cache
def programs() -> Path:
    """The directory of PostgreSQL's programs, installed first where that is allowed."""
    from_debian("pg_ctlcluster", "postgresql")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    elsewhere = shutil.which("initdb")
    if elsewhere is None:
        raise Missing(REMEDY)
    return Path(elsewhere).parent


class PostgreSQLServer(Server):
    """One server, which trusts everybody on this host. `fsync` is for tests of durability."""

    def __init__(self, *, fsync: bool = False) -> None:
        self._programs = programs()
        super().__init__()
        self._fsync = "on" if fsync else "off"
        self._data = self.directory / "data"
        if os.geteuid() == 0:
            shutil.chown(self.directory, ACCOUNT)
        subprocess.run(
            [
                *self._as_account(),
                str(self._programs / "initdb"),
                *("--pgdata", str(self._data), "--username", "postgres", "--auth", "trust"),
                *("--encoding", "UTF8", "--no-locale", "--no-sync"),
            ],
            cwd=self.directory,
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=120,
        )

    def command(self) -> list[str]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "fsync": self._fsync,
            "max_connections": "100",
            "shared_buffers": "32MB",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        program = str(self._programs / "postgres")
        return [*self._as_account(), program, "-D", str(self._data), *options]

    def listens(self) -> bool:
        """Whether the server takes connections and is ready for work."""
        ready = [str(self._programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(ready, timeout=START_WITHIN).returncode == 0

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        """Also its children, each of which leads a session of its own."""
        children = self._children() if self.process is not None else []
        super().kill(how)
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        end = time.monotonic() + START_WITHIN
        while any(map(_is_there, children)) and time.monotonic() < end:
            time.sleep(0.01)

    def _children(self) -> list[int]:
        assert self.process is not None
        found = subprocess.run(
            ["pgrep", "-P", str(self.process.pid)], stdout=subprocess.PIPE, timeout=START_WITHIN
        )
        return [int(child) for child in found.stdout.split()]

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def _as_account(self) -> list[str]:
        if os.geteuid() != 0:
            return []
        return ["setpriv", "--reuid", ACCOUNT, "--regid", ACCOUNT, "--init-groups", "--"]


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
