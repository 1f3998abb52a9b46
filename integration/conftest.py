"""Servers that a test session shares; each is started when the first test wants it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from integration.servers.redis import Missing, RedisServer, demanded


def server_or_skip(make: Callable[[], RedisServer]) -> Iterator[RedisServer]:
    """Start a server; where its program is missing skip, or fail if CI is set."""
    try:
        server = make()
    except Missing as error:
        if demanded():
            raise
        pytest.skip(str(error))
    with server:
        yield server
