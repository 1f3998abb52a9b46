from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from integration.conftest import server_or_skip
from integration.servers.redis import RedisServer


@pytest.fixture(scope="session")
def redis_server() -> Iterator[str]:
    """`host:port` of a server that nobody else uses: these tests empty it."""
    for server in server_or_skip(RedisServer):
        yield f"127.0.0.1:{server.port}"


@pytest.fixture
def redis(redis_server: str) -> Iterator[Any]:
    """A redis-py client of the server, which is empty."""
    from redis import Redis

    client = Redis.from_url(f"redis://{redis_server}/0")
    client.flushall()
    yield client
    client.close()


@pytest.fixture
def until() -> Callable[..., Any]:
    """Poll until the probe answers with something true; fails after 15 seconds."""

    def until(probe: Callable[[], Any]) -> Any:
        end = time.monotonic() + 15
        while not (answer := probe()):
            if time.monotonic() > end:
                pytest.fail(f"did not happen; the last answer was {answer!r}")
            time.sleep(0.01)
        return answer

    return until
