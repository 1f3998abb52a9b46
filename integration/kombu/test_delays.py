"""Messages that wait in RabbitMQ and in kombu's Redis: none comes early, none is lost."""

from __future__ import annotations

import pytest

from integration.servers.redis import RedisServer
from taskline.testing.cases.transport import message
from taskline.transports import open_transport

BOUND = 60.0
DELAYS = [0.05 + 0.0937 * number for number in range(32)]
"""Seconds, so that all of the lowest levels are gone through."""


@pytest.mark.parametrize("broker", ["rabbitmq", "redis"])
def test_none_comes_early_and_none_is_lost(
    broker: str,
    request: pytest.FixtureRequest,
    redis_server: RedisServer,
    own_prefix: str,
) -> None:
    url = (
        request.getfixturevalue("rabbitmq_url")
        if broker == "rabbitmq"
        else f"kombu+{redis_server.url}/4?prefix={own_prefix}"
    )
    transport = open_transport(url)
    clock = transport.clock
    transport.send([month := message(eta=clock.time() + 30 * 86400)])
    sent = [message(eta=clock.time() + delay) for delay in DELAYS]
    transport.send(sent)
    due = {each.header.id: each.header.eta or 0.0 for each in sent}
    until = clock.monotonic() + BOUND
    while due:
        assert clock.monotonic() < until, f"{len(due)} never came"
        taken = transport.receive(["mail"], 100, 30, 1, "w")
        now = clock.time()
        for delivery in taken:
            assert delivery.id != month.header.id
            assert now >= due.pop(delivery.id) - 0.02
        assert transport.ack(taken) == []
    assert transport.purge("mail") == 1
    transport.close()
