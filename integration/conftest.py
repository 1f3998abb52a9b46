"""Servers that a test session shares; each is started when the first test wants it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest

from integration.servers.process import Server
from integration.servers.supply import Missing, demanded

S = TypeVar("S", bound=Server)


def server_or_skip(make: Callable[[], S]) -> Iterator[S]:
    """Start a server; where its program is missing skip, or fail if CI is set."""
    try:
        server = make()
    except Missing as error:
        if demanded():
            raise
        pytest.skip(str(error))
    with server:
        yield server
