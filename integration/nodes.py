"""Several servers that know nothing of each other: some die, and some come back."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from taskline.clock import SYSTEM_CLOCK
from taskline.errors import TransportError
from taskline.testing.cases.transport import ids, messages
from taskline.transports import open_transport
from taskline.transports.base import Transport

BOUND = 30.0


def drain(transport: Transport, number: int) -> list[str]:
    """Take and acknowledge until so many have come."""
    done: list[str] = []
    end = SYSTEM_CLOCK.monotonic() + BOUND
    while len(done) < number and SYSTEM_CLOCK.monotonic() < end:
        taken = transport.receive(["mail"], 100, 60, 0.2, "w")
        assert transport.ack(taken) == []
        done += ids(taken)
    return done


class DyingServers:
    """What holds of every transport that spreads over several servers, each with `kill()`,
    `start()`, `url` and `port`. Subclasses have the fixture `servers`."""

    product: str
    logger: str

    @pytest.fixture
    def servers(self) -> Iterator[list[Any]]:
        """Those that keep what they answered for."""
        raise NotImplementedError

    @pytest.fixture
    def urls(self, servers: list[Any]) -> list[str]:
        return [f"{server.url}?timeout=1" for server in servers]

    @pytest.fixture
    def transport(self, urls: list[str]) -> Iterator[Transport]:
        transport = open_transport(urls)
        yield transport
        transport.close()

    def waiting(self, server: Any) -> int:
        """Messages that a server has, and nobody holds."""
        alone = open_transport(server.url)
        (stats,) = alone.stats(["mail"])
        alone.close()
        return stats.ready or 0

    def test_nothing_is_lost_when_one_dies_and_returns(
        self, transport: Transport, servers: list[Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        sent = messages(60)
        transport.send(sent[:40])
        held = self.waiting(servers[1])
        assert 2 < held < 38
        with caplog.at_level(logging.INFO, "taskline"):
            servers[1].kill()
            for each in sent[40:]:
                transport.send([each])
            done = drain(transport, 60 - held)
            servers[1].start()
            done += drain(transport, held)
        assert sorted(done) == sorted(ids(sent))
        lines = [each for each in caplog.records if each.name == self.logger]
        told = [each.levelname for each in lines if "change stream" not in each.getMessage()]
        assert told == ["WARNING", "INFO"], "one line on loss, one on return"
        assert str(servers[1].port) in lines[0].getMessage()

    def test_what_a_dead_one_is_owed_is_done_when_it_returns(
        self, transport: Transport, servers: list[Any]
    ) -> None:
        transport.send(messages(30))
        taken = []
        while len(taken) < 30:
            taken += transport.receive(["mail"], 30, 600, 1, "w")
        servers[0].kill()
        assert transport.extend(taken, 600) == []
        assert transport.release(taken[:6]) == []
        assert transport.ack(taken[6:]) == []
        servers[0].start()
        assert sorted(drain(transport, 6)) == sorted(ids(taken[:6]))
        end = SYSTEM_CLOCK.monotonic() + BOUND
        while _left(transport) != (0, 0) and SYSTEM_CLOCK.monotonic() < end:
            assert transport.receive(["mail"], 100, 600, 0.2, "w") == []
        assert _left(transport) == (0, 0)

    def test_without_any_the_sender_is_told(self, transport: Transport, servers: list[Any]) -> None:
        for server in servers:
            server.kill()
        with pytest.raises(
            TransportError, match=f"no {self.product} node takes the message"
        ) as caught:
            transport.send(messages(1))
        assert caught.value.retryable
        with pytest.raises(TransportError):
            transport.receive(["mail"], 1, 30, 0, "w")
        servers[1].start()
        transport.send(messages(1))
        assert len(drain(transport, 1)) == 1


def _left(transport: Transport) -> tuple[int | None, int | None]:
    (stats,) = transport.stats(["mail"])
    return stats.ready, stats.leased
