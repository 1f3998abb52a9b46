"""Several servers that know nothing of each other: some die, and some come back."""

from __future__ import annotations

import logging
from binascii import crc32
from collections.abc import Iterator

import pytest

from integration.conftest import server_or_skip
from integration.servers.redis import RedisServer
from taskline.backends import open_backend
from taskline.clock import SYSTEM_CLOCK
from taskline.errors import TransportError
from taskline.message import SUCCESS, Outcome
from taskline.testing.cases.transport import ids, messages
from taskline.transports import open_transport
from taskline.transports.base import Transport

BOUND = 20.0


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


def drain(transport: Transport, number: int) -> list[str]:
    """Take and acknowledge until so many have come."""
    done: list[str] = []
    end = SYSTEM_CLOCK.monotonic() + BOUND
    while len(done) < number and SYSTEM_CLOCK.monotonic() < end:
        taken = transport.receive(["mail"], 100, 30, 0.2, "w")
        assert transport.ack(taken) == []
        done += ids(taken)
    return done


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


def test_nothing_is_lost_when_a_node_dies_and_returns(
    transport: Transport, servers: list[RedisServer], caplog: pytest.LogCaptureFixture
) -> None:
    sent = messages(300)
    transport.send(sent[:150])
    held = waiting(servers[1])
    with caplog.at_level(logging.INFO, "taskline"):
        servers[1].kill()
        for each in sent[150:]:
            transport.send([each])
        done = drain(transport, 300 - held)
        servers[1].start()
        done += drain(transport, held)
    assert sorted(done) == sorted(ids(sent))
    assert [each.levelname for each in caplog.records] == ["WARNING", "INFO"]
    assert str(servers[1].port) in caplog.messages[0]


def test_what_a_dead_node_is_owed_is_done_when_it_returns(
    transport: Transport, servers: list[RedisServer]
) -> None:
    transport.send(messages(60))
    taken = []
    while len(taken) < 60:
        taken += transport.receive(["mail"], 100, 600, 1, "w")
    servers[0].kill()
    assert transport.extend(taken, 600) == []
    assert transport.release(taken[:10]) == []
    assert transport.ack(taken[10:]) == []
    servers[0].start()
    assert sorted(drain(transport, 10)) == sorted(ids(taken[:10]))
    end = SYSTEM_CLOCK.monotonic() + BOUND
    while waiting(servers[0]) and SYSTEM_CLOCK.monotonic() < end:
        assert transport.receive(["mail"], 100, 600, 0.2, "w") == []
    assert [waiting(server) for server in servers] == [0, 0, 0]


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


def test_without_any_node_the_sender_is_told(
    transport: Transport, servers: list[RedisServer]
) -> None:
    for server in servers:
        server.kill()
    with pytest.raises(TransportError, match="no Redis node takes the message") as caught:
        transport.send(messages(1))
    assert caught.value.retryable
    with pytest.raises(TransportError):
        transport.receive(["mail"], 1, 30, 0, "w")
    servers[1].start()
    transport.send(messages(1))
    assert len(drain(transport, 1)) == 1


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
