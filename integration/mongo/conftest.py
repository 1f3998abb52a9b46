from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import count

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


@pytest.fixture
def mongo_url(mongo_server: MongoServer | Running) -> Iterator[str]:
    """A store of the test's own on the session's MongoDB; it is dropped afterwards."""
    namespace = f"test-{os.getpid()}-{next(_numbers)}"
    yield with_options(mongo_server.url, namespace=namespace)
    drop(mongo_server.url, namespace)


def drop(url: str, namespace: str) -> None:
    """Delete all collections of a store."""
    with pymongo.MongoClient(url, serverSelectionTimeoutMS=5000) as client:
        database = client.get_default_database("taskline")
        for name in database.list_collection_names():
            if name.startswith(f"{namespace}."):
                database.drop_collection(name)
