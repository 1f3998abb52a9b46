"""A server that speaks MongoDB's protocol, for tests without a real one.

SecantusDB: an emulator over a real storage engine, run as a program of its own.
docs/contributing.md tells what it can show and what it cannot.
"""

from __future__ import annotations

import shutil
import sys
from functools import cache
from pathlib import Path

from integration.servers.process import Server
from integration.servers.supply import Missing

REMEDY = (
    "no MongoDB: name a running replica set in TASKLINE_TEST_MONGODB, "
    "or pip install 'secantusdb>=0.7.0b3' for a stand-in"
)


@cache
def secantus_program() -> str:
    """The path of secantusd-py; raises `Missing`."""
    beside = Path(sys.executable).with_name("secantusd-py")
    found = str(beside) if beside.exists() else shutil.which("secantusd-py")
    if found is None:
        raise Missing(REMEDY)
    return found


class MongoServer(Server):
    """One server, a replica set of one member by what it says. `durable` survives kill -9."""

    replica_set = "secantus"

    def __init__(
        self,
        *arguments: str,
        port: int | None = None,
        durable: bool = False,
        fail_points: bool = False,
    ) -> None:
        super().__init__(port)
        self.program = secantus_program()
        self._arguments = [
            "--host", "127.0.0.1", "--log-level", "WARNING",
            "--storage-path", str(self.directory / "data"),
        ]  # fmt: skip
        if durable:
            self._arguments.append("--sync-on-commit")
        if fail_points:
            self._arguments.append("--enable-test-commands")
        self._arguments += arguments

    def command(self) -> list[str]:
        return [self.program, "--port", str(self.port), *self._arguments]

    @property
    def url(self) -> str:
        return f"mongodb://127.0.0.1:{self.port}"
