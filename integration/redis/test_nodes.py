"""Several servers that know nothing of each other: some die, and some come back."""

from __future__ import annotations

from binascii import crc32
from collections.abc import Iterator

import pytest

from integration.conftest import server_or_skip
from integration.nodes import BOUND, DyingServers, drain
from integration.servers.redis import RedisServer
from taskline.backends import open_backend
from taskline.clock import SYSTEM_CLOCK
from taskline.message import SUCCESS, Outcome
from taskline.testing.cases.transport import messages
from taskline.transports import open_transport
from taskline.transports.base import Transport


@pytest.fixture
def servers() -> Iterator[list[RedisServer]]:
    """Three that keep what they answered for."""
    runs = [server_or_skip(lambda: RedisServer(appendonly=True)) for _ in range(3)]
    yield [next(run) for run in runs]
    for run in runs:
        next(run, None)


@pytest.fixture
def urls(servers: list[RedisServer]) -> list[str]:
    return [f"{server.url}?timeout=1" for server in servers]


@pytest.fixture
def transport(urls: list[str]) -> Iterator[Transport]:
    transport = open_transport(urls)
    yield transport
    transport.close()


class TestRedis(DyingServers):
    product = "Redis"
    logger = "taskline.redis"

    @pytest.fixture
    def servers(self, servers: list[RedisServer]) -> list[RedisServer]:
        return servers


def waiting(server: RedisServer) -> int:
    """Messages that a server has."""
    return int(server.do("HLEN", "{taskline}m").strip(":\r\n"))


def test_messages_are_spread_over_all(transport: Transport, servers: list[RedisServer]) -> None:
    transport.send(messages(300))
    assert sum(waiting(server) for server in servers) == 300
    assert min(waiting(server) for server in servers) > 50
    transport.send(messages(1))
    assert len(drain(transport, 301)) == 301


def test_all_are_drained_alike(transport: Transport, servers: list[RedisServer]) -> None:
    transport.send(messages(600))
    drain(transport, 300)
    left = [waiting(server) for server in servers]
    assert max(left) - min(left) < 150


def test_a_send_to_any_node_ends_the_wait(transport: Transport, urls: list[str]) -> None:
    other = open_transport(urls)
    for each in messages(30):
        other.send([each])
        assert drain(transport, 1) == [each.header.id]
    other.close()


def test_a_frozen_node_is_left_out(transport: Transport, servers: list[RedisServer]) -> None:
    transport.send(messages(3))
    servers[2].pause()
    try:
        sent = messages(50)
        for each in sent:
            transport.send([each])
        there = sum(waiting(server) for server in servers[:2])
        assert there >= 50
    finally:
        servers[2].resume()
    done = drain(transport, 53)
    assert len(done) == len(set(done)) == 53


def test_outcomes_of_a_dead_node_are_kept_by_the_next(
    servers: list[RedisServer], urls: list[str]
) -> None:
    here, there = open_backend(urls), open_backend(urls)
    outcomes = [Outcome(f"id-{number}", SUCCESS, 1.0, 1, None, b"") for number in range(60)]
    assert here.store(outcomes[:30]) == []
    servers[0].kill()
    assert here.store(outcomes[30:]) == []
    missing = {each.id for each in outcomes[30:]}
    while missing:
        arrived = there.wait(missing, BOUND)
        assert arrived
        missing -= arrived.keys()
    servers[0].start()
    found: dict[str, Outcome] = {}
    end = SYSTEM_CLOCK.monotonic() + BOUND
    while len(found) < 60 and SYSTEM_CLOCK.monotonic() < end:
        found = there.fetch([each.id for each in outcomes])
    assert found == {each.id: each for each in outcomes}
    here.close()
    there.close()


def test_each_key_and_lock_is_on_the_server_that_its_name_picks(
    servers: list[RedisServer], urls: list[str]
) -> None:
    """So that any process finds it, and no two hold the same lock."""
    backend = open_backend(urls)
    keys = backend.keys()
    names = [f"name-{number}" for number in range(30)]
    for name in names:
        assert keys.set(name, b"1", None)
        keys.acquire(name, "me", 60)
    for kind in "gl":
        found = [
            sorted(
                line for line in server.do("KEYS", f"*{kind}:*").split("\r\n") if "name-" in line
            )
            for server in servers
        ]
        assert found == [
            sorted(f"{{taskline}}{kind}:{name}" for name in names if crc32(name.encode()) % 3 == at)
            for at in range(3)
        ]
    backend.close()
