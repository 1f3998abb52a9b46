from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from itertools import count
from urllib.parse import urlsplit

import pytest

from integration.conftest import server_or_skip
from integration.servers.redis import RedisServer, valkey_program

_numbers = count(1)


class Running:
    """A server that runs already: TASKLINE_TEST_REDIS."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.port = urlsplit(url).port or 6379


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer | Running]:
    """A Redis for tests that need nothing special."""
    given = os.environ.get("TASKLINE_TEST_REDIS")
    if given:
        yield Running(given)
    else:
        yield from server_or_skip(RedisServer)


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[RedisServer]:
    """A Valkey for tests that need nothing special."""
    yield from server_or_skip(lambda: RedisServer(program=valkey_program()))


@pytest.fixture(scope="session")
def redis_nodes(redis_server: RedisServer) -> Iterator[list[RedisServer]]:
    """Three servers."""
    with contextlib.ExitStack() as stack:
        more = [server_or_skip(RedisServer) for _ in range(2)]
        yield [
            redis_server,
            *(stack.enter_context(contextlib.contextmanager(lambda it=it: it)()) for it in more),
        ]


@pytest.fixture
def redis_url(redis_server: RedisServer | Running) -> str:
    """A store of the test's own on the session's Redis."""
    return f"{redis_server.url}?namespace=test-{os.getpid()}-{next(_numbers)}"
