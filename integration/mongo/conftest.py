from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import count
from typing import Any, NamedTuple

import pymongo
import pytest

from integration.conftest import server_or_skip
from integration.servers.mongo import MongoServer

_numbers = count(1)


class Running:
    """A deployment that runs already: TASKLINE_TEST_MONGODB, a replica set."""

    def __init__(self, url: str) -> None:
        self.url = url


def with_options(url: str, **options: object) -> str:
    """The URL with more options."""
    query = "&".join(f"{name}={value}" for name, value in options.items())
    slash = "" if "/" in url.partition("://")[2].partition("?")[0] or "?" in url else "/"
    return f"{url}{slash}{'&' if '?' in url else '?'}{query}"


@pytest.fixture(scope="session")
def mongo_server() -> Iterator[MongoServer | Running]:
    """A MongoDB for tests that need nothing special."""
    given = os.environ.get("TASKLINE_TEST_MONGODB")
    if given:
        yield Running(given)
    else:
        yield from server_or_skip(MongoServer)


@pytest.fixture(scope="session")
def second_server() -> Iterator[MongoServer]:
    """Another one, which knows nothing of the first."""
    yield from server_or_skip(MongoServer)


@pytest.fixture
def mongo_url(mongo_server: MongoServer | Running) -> Iterator[str]:
    """A store of the test's own on the session's MongoDB; it is dropped afterwards."""
    namespace = _name()
    yield with_options(mongo_server.url, namespace=namespace)
    drop(mongo_server.url, namespace)


@pytest.fixture
def own_client(mongo_url: str) -> str:
    """As `mongo_url`, for connections that share no driver's client with any other test's."""
    return with_options(mongo_url, appName=_name())


class Stores(NamedTuple):
    """Stores on several servers."""

    urls: list[str]


@pytest.fixture
def mongo_nodes(
    mongo_server: MongoServer | Running, second_server: MongoServer
) -> Iterator[Stores]:
    """A store of the test's own on two servers."""
    namespace = _name()
    servers = mongo_server.url, second_server.url
    yield Stores([with_options(url, namespace=namespace) for url in servers])
    for url in servers:
        drop(url, namespace)


def _name() -> str:
    return f"test-{os.getpid()}-{next(_numbers)}"


def drop(url: str, namespace: str) -> None:
    """Delete all collections of a store."""
    with pymongo.MongoClient[dict[str, Any]](url, serverSelectionTimeoutMS=5000) as client:
        database = client.get_default_database("taskline")
        for name in database.list_collection_names():
            if name.startswith(f"{namespace}."):
                database.drop_collection(name)
