"""Several servers that know nothing of each other: one dies, and comes back."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from integration.conftest import server_or_skip
from integration.servers.mongo import MongoServer
from taskline.clock import SYSTEM_CLOCK
from taskline.errors import TransportError
from taskline.testing.cases.transport import ids, messages
from taskline.transports import open_transport
from taskline.transports.base import Transport

BOUND = 30.0


@pytest.fixture
def servers() -> Iterator[list[MongoServer]]:
    """Two that keep what they answered for."""
    runs = [server_or_skip(lambda: MongoServer(durable=True)) for _ in range(2)]
    yield [next(run) for run in runs]
    for run in runs:
        next(run, None)


@pytest.fixture
def transport(servers: list[MongoServer]) -> Iterator[Transport]:
    transport = open_transport([f"{server.url}?timeout=1" for server in servers])
    yield transport
    transport.close()


def drain(transport: Transport, number: int) -> list[str]:
    """Take and acknowledge until so many have come."""
    done: list[str] = []
    end = SYSTEM_CLOCK.monotonic() + BOUND
    while len(done) < number and SYSTEM_CLOCK.monotonic() < end:
        taken = transport.receive(["mail"], 100, 60, 0.2, "w")
        assert transport.ack(taken) == []
        done += ids(taken)
    return done


def test_nothing_is_lost_when_a_server_dies_and_returns(
    transport: Transport, servers: list[MongoServer], caplog: pytest.LogCaptureFixture
) -> None:
    sent = messages(60)
    transport.send(sent[:40])
    alone = open_transport(servers[1].url)
    (stats,) = alone.stats(["mail"])
    held = stats.ready or 0
    alone.close()
    assert 5 < held < 35
    with caplog.at_level(logging.INFO, "taskline"):
        servers[1].kill()
        for each in sent[40:]:
            transport.send([each])
        done = drain(transport, 60 - held)
        servers[1].start()
        done += drain(transport, held)
    assert sorted(done) == sorted(ids(sent))
    lines = [each for each in caplog.records if each.name == "taskline.mongo"]
    told = [each.levelname for each in lines if "change stream" not in each.getMessage()]
    assert told == ["WARNING", "INFO"], "one line on loss, one on return"
    assert str(servers[1].port) in lines[0].getMessage()


def test_what_a_dead_server_is_owed_is_done_when_it_returns(
    transport: Transport, servers: list[MongoServer]
) -> None:
    transport.send(messages(20))
    taken = []
    while len(taken) < 20:
        taken += transport.receive(["mail"], 20, 600, 1, "w")
    servers[0].kill()
    assert transport.extend(taken, 600) == []
    assert transport.release(taken[:6]) == []
    assert transport.ack(taken[6:]) == []
    servers[0].start()
    assert sorted(drain(transport, 6)) == sorted(ids(taken[:6]))
    (stats,) = transport.stats(["mail"])
    assert (stats.ready, stats.leased) == (0, 0)


def test_without_any_server_the_sender_is_told(
    transport: Transport, servers: list[MongoServer]
) -> None:
    for server in servers:
        server.kill()
    with pytest.raises(TransportError, match="no MongoDB node takes the message") as caught:
        transport.send(messages(1))
    assert caught.value.retryable
    with pytest.raises(TransportError):
        transport.receive(["mail"], 1, 30, 0, "w")
