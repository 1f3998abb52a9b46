"""Sentinel, Cluster and TLS, on servers of the tests' own."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from integration.conftest import server_or_skip
from integration.servers.redis import ClusterNode, RedisServer, Sentinel, form_cluster
from taskline.backends import open_backend
from taskline.backends.redis import RedisBackend
from taskline.clock import SYSTEM_CLOCK, Clock
from taskline.errors import TransportError
from taskline.message import SUCCESS, Outcome
from taskline.redis.node import parse_info
from taskline.testing.backend_suite import BackendConformance
from taskline.testing.cases.transport import ids, message, messages
from taskline.testing.transport_suite import TransportConformance
from taskline.transports import open_transport
from taskline.transports.redis import RedisTransport

_numbers = count(1)
BOUND = 30.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The URL of three masters."""
    runs = [server_or_skip(ClusterNode) for _ in range(3)]
    nodes = [next(run) for run in runs]
    form_cluster(nodes)  # type: ignore[arg-type]
    yield "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in nodes)
    for run in runs:
        next(run, None)


class TestClusterTransport(TransportConformance):
    histories = 5

    @pytest.fixture
    def make_transport(self, cluster: str) -> Callable[[Clock], RedisTransport]:
        store = f"{cluster}?namespace=topology-{next(_numbers)}"
        return lambda clock: RedisTransport.from_spec(store, clock)


class TestClusterBackend(BackendConformance):
    manual_clock = False
    short = 0.5
    early = 0.05

    @pytest.fixture
    def make_backend(self, cluster: str) -> Callable[[Clock], RedisBackend]:
        store = f"{cluster}?namespace=topology-{next(_numbers)}"
        return lambda clock: RedisBackend.from_spec(store, clock)


def test_a_store_in_parts_is_spread_over_the_cluster(cluster: str) -> None:
    transport = open_transport(f"{cluster}?namespace=parts-{next(_numbers)}&partitions=6")
    transport.send(sent := messages(120))
    taken = []
    while len(taken) < 120:
        taken += transport.receive(["mail"], 100, 30, 1, "w")
    assert sorted(ids(taken)) == sorted(ids(sent))
    assert transport.ack(taken) == []
    transport.close()


def test_a_slot_that_moves_is_followed(cluster: str) -> None:
    namespace = f"moving-{next(_numbers)}"
    transport = open_transport(f"{cluster}?namespace={namespace}")
    nodes = [RedisNode(int(each.rpartition(":")[2])) for each in cluster.split(",")]
    transport.send(messages(1))
    transport.ack(transport.receive(["mail"], 1, 30, 1, "w"))
    slot = int(nodes[0].do("CLUSTER", "KEYSLOT", f"{{{namespace}}}").strip(":\r\n"))
    owner = next(
        node
        for node in nodes
        if f"{{{namespace}}}q" in node.do("CLUSTER", "GETKEYSINSLOT", slot, 10)
    )
    other = next(node for node in nodes if node is not owner)
    owner.do("DEL", f"{{{namespace}}}q", f"{{{namespace}}}s")
    name = other.do("CLUSTER", "MYID").split("\r\n")[1]
    for node in (other, *nodes):
        node.do("CLUSTER", "SETSLOT", slot, "NODE", name)
    transport.send(messages(2))
    assert len(transport.receive(["mail"], 10, 30, 1, "w")) == 2
    transport.close()


def until(condition: Callable[[], object]) -> None:
    end = SYSTEM_CLOCK.monotonic() + BOUND
    while not condition():
        assert SYSTEM_CLOCK.monotonic() < end
        SYSTEM_CLOCK.sleep(0.02)


def test_a_master_of_a_cluster_that_is_replaced_is_followed() -> None:
    with contextlib.ExitStack() as stack:
        runs = [server_or_skip(ClusterNode) for _ in range(4)]
        nodes = [
            stack.enter_context(contextlib.contextmanager(lambda run=run: run)()) for run in runs
        ]
        masters, replica = nodes[:3], nodes[3]
        form_cluster(masters)
        slot = int(masters[0].do("CLUSTER", "KEYSLOT", "{taskline}").strip(":\r\n"))
        master = masters[3 * slot // 16384]
        replica.do("CONFIG", "SET", "cluster-announce-ip", "127.0.0.1")
        replica.do("CLUSTER", "MEET", "127.0.0.1", master.port, master.bus)
        name = master.do("CLUSTER", "MYID").split("\r\n")[1]
        until(lambda: "+OK" in replica.do("CLUSTER", "REPLICATE", name))
        until(lambda: "master_link_status:up" in replica.do("INFO", "replication"))
        known = replica.do("CLUSTER", "MYID").split("\r\n")[1]
        until(lambda: all(known in each.do("CLUSTER", "NODES") for each in masters))
        url = "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in nodes)
        transport, backend = open_transport(f"{url}?timeout=20"), open_backend(f"{url}?timeout=20")
        assert transport.shares(backend)
        transport.send(messages(3))
        (held,) = transport.receive(["mail"], 1, 600, 1, "w")
        written = _offset(master)
        until(lambda: _offset(replica) >= written)
        master.kill()
        transport.send([message()])
        taken = [held]
        while len(taken) < 4:
            with contextlib.suppress(TransportError):
                taken += transport.receive(["mail"], 10, 30, 1, "w")
        assert len(set(ids(taken))) == 4
        outcomes = [Outcome(each.id, SUCCESS, 1.0, 1, 60, b"") for each in taken]
        assert transport.ack(taken, outcomes) == []
        assert len(backend.wait([each.id for each in taken], 5)) == 4
        transport.close()
        backend.close()


def _offset(node: RedisServer) -> int:
    return int(parse_info(node.do("INFO", "replication").encode())["master_repl_offset"])


class RedisNode:
    """A server that runs already, by its port."""

    def __init__(self, port: int) -> None:
        self.port = port

    do = RedisServer.do


def test_a_failover_is_survived() -> None:
    with contextlib.ExitStack() as stack:
        run = server_or_skip(RedisServer)
        master = next(run)
        stack.callback(lambda: next(run, None))
        replica = stack.enter_context(RedisServer("--replicaof", f"127.0.0.1 {master.port}"))
        sentinels = [stack.enter_context(Sentinel(master.port)) for _ in range(3)]
        end = SYSTEM_CLOCK.monotonic() + BOUND
        while not all(
            "num-other-sentinels\r\n$1\r\n2" in s.do("SENTINEL", "MASTER", "mymaster")
            and "num-slaves\r\n$1\r\n1" in s.do("SENTINEL", "MASTER", "mymaster")
            for s in sentinels
        ):
            assert SYSTEM_CLOCK.monotonic() < end
            SYSTEM_CLOCK.sleep(0.05)
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in sentinels)
        transport = open_transport(f"redis+sentinel://{hosts}/mymaster?timeout=20")
        backend = open_backend(f"redis+sentinel://{hosts}/mymaster?timeout=20")
        assert transport.shares(backend)
        transport.ping()
        transport.send(messages(3))
        while replica.do("HLEN", "{taskline}m") != ":3\r\n":
            SYSTEM_CLOCK.sleep(0.01)
        master.kill()
        transport.send([message()])
        taken = []
        while len(taken) < 4:
            with contextlib.suppress(TransportError):
                taken += transport.receive(["mail"], 10, 30, 1, "w")
        outcomes = [Outcome(each.id, SUCCESS, 1.0, 1, 60, b"") for each in taken]
        assert transport.ack(taken, outcomes) == []
        assert len(backend.wait([each.id for each in taken], 5)) == 4
        transport.close()
        backend.close()


def test_an_unknown_master_is_named() -> None:
    for server in server_or_skip(lambda: Sentinel(1)):
        transport = open_transport(f"redis+sentinel://127.0.0.1:{server.port}/nobody?timeout=0.2")
        with pytest.raises(TransportError, match="knows no master 'nobody'"):
            transport.send([message()])
        transport.close()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Certificate, key and authority for 127.0.0.1."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl: apt-get install openssl")
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", key,
         "-out", certificate, "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    return certificate, key, certificate


def test_tls_verifies_the_server(certificates: tuple[Path, Path, Path]) -> None:
    for server in server_or_skip(lambda: RedisServer(tls=certificates)):
        url = f"rediss://127.0.0.1:{server.port}?timeout=2"
        stranger = open_transport(url)
        with pytest.raises(TransportError, match="certificate is not trusted"):
            stranger.ping()
        stranger.close()
        trusted = f"{url}&tls_ca={certificates[2]}"
        transport, backend = open_transport(trusted), open_backend(trusted)
        transport.ping()
        for each in messages(3, frame=b"x" * 100_000):
            transport.send([each])
            (taken,) = transport.receive(["mail"], 1, 30, 1, "w")
            assert taken.frame == each.frame
            backend.store([Outcome(taken.id, SUCCESS, 1.0, 1, 60, each.frame)])
            assert list(backend.wait([taken.id], 5)) == [taken.id]
        assert transport.receive(["mail"], 1, 30, 0.05, "w") == []
        transport.close()
        backend.close()
