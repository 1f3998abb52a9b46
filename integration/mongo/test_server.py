"""One deployment as the transport and the backend use it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pymongo
import pytest
from pymongo import IndexModel
from pymongo.errors import DuplicateKeyError

from integration.servers.process import free_port
from taskline.clock import SYSTEM_CLOCK, ManualClock
from taskline.errors import ConfigurationError, TransportError
from taskline.mongo.client import Server
from taskline.mongo.layout import Layout
from taskline.mongo.location import locate

LAYOUT = Layout("things", 1, {"things": [IndexModel([("name", 1)], name="by_name")]})


@pytest.fixture
def server(mongo_url: str) -> Iterator[Server]:
    server = opened(mongo_url)
    yield server
    server.close()


def opened(url: str, layout: Layout = LAYOUT) -> Server:
    (location,) = locate(url)
    return Server(location, SYSTEM_CLOCK, layout)


def test_indexes_are_there_at_first_use_and_made_once(server: Server, mongo_url: str) -> None:
    server.run(lambda: server.collection("things").insert_one({"name": "a"}))
    assert "by_name" in server.collection("things").index_information()
    asked: list[str] = []

    class Listener(pymongo.monitoring.CommandListener):
        def started(self, event: pymongo.monitoring.CommandStartedEvent) -> None:
            asked.append(event.command_name)

        def succeeded(self, event: object) -> None: ...

        def failed(self, event: object) -> None: ...

    pymongo.monitoring.register(Listener())
    try:
        (location,) = locate(f"{mongo_url}&timeout=4")  # hence a client of its own
        again = Server(location, SYSTEM_CLOCK, LAYOUT)
        assert again.run(lambda: again.collection("things").find_one({}))
        again.close()
    finally:
        pymongo.monitoring._LISTENERS.command_listeners.pop()
    assert asked == ["hello", "find", "find", "endSessions"]


def test_an_older_store_is_migrated(server: Server, mongo_url: str) -> None:
    things = server.collection("things")
    server.run(lambda: things.insert_many([{"name": "a"}, {"name": "b"}]))

    def rename(where: Server) -> None:
        where.collection("things").update_many({}, {"$rename": {"name": "title"}})

    later = Layout(
        "things", 3, {"things": [IndexModel([("title", 1)], name="by_title")]}, {2: rename}
    )
    newer = opened(mongo_url, later)
    assert newer.run(lambda: things.count_documents({"title": "b"})) == 1
    newer.close()
    old = opened(mongo_url)
    with pytest.raises(TransportError, match="are of layout 3, this release knows 1: upgrade"):
        old.run(lambda: None)
    old.close()


def test_a_client_is_shared_and_goes_with_its_last_user(mongo_url: str) -> None:
    one, two = opened(mongo_url), opened(mongo_url)
    assert one.client is two.client
    one.close()
    one.close()
    assert two.run(lambda: 1) == 1
    with pytest.raises(TransportError, match="was closed"):
        one.run(lambda: one.collection("things").find_one({}))
    two.close()
    three = opened(mongo_url)
    assert three.client is not two.client
    three.close()


def test_a_child_process_has_a_client_of_its_own(server: Server, mongo_url: str) -> None:
    server.run(lambda: server.collection("things").insert_one({"name": "a"}))
    child = os.fork()
    if child == 0:
        here = opened(mongo_url)
        ok = here.client is not server.client
        here.run(lambda: here.collection("things").insert_one({"name": "b"}))
        here.close()
        os._exit(0 if ok else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert server.run(lambda: server.collection("things").count_documents({})) == 2


def test_stamps_grow_and_follow_the_servers_clock(server: Server, mongo_url: str) -> None:
    server.run(lambda: None)
    other = opened(mongo_url)
    stamps = [each.stamp() for _ in range(100) for each in (server, other)]
    assert stamps == sorted(set(stamps))
    assert abs(stamps[-1] / 1e6 - SYSTEM_CLOCK.time()) < 60
    other.close()
    clock = ManualClock(1000.0)
    (location,) = locate(mongo_url)
    tested = Server(location, clock, LAYOUT)
    assert [tested.stamp(), tested.stamp()] == [1_000_000_000, 1_000_000_001]
    tested.close()


def test_a_transaction_is_all_or_nothing(server: Server) -> None:
    things = server.collection("things")
    server.run(lambda: things.insert_one({"_id": 1}))
    with pytest.raises(TransportError, match="E11000") as caught:
        server.transact(
            lambda session: [things.insert_one({"_id": key}, session=session) for key in (2, 1)]
        )
    assert not caught.value.retryable
    assert isinstance(caught.value.__context__, DuplicateKeyError)
    assert server.run(lambda: things.count_documents({})) == 1


def test_an_unreachable_server_is_an_error_in_seconds_with_its_address() -> None:
    port = free_port()
    server = opened(f"mongodb://ann:hush@127.0.0.1:{port}/?timeout=0.5")
    began = SYSTEM_CLOCK.monotonic()
    with pytest.raises(TransportError) as caught:
        server.run(lambda: None)
    assert SYSTEM_CLOCK.monotonic() - began < 5
    text = str(caught.value)
    assert f"MongoDB at mongodb://127.0.0.1:{port}/taskline: " in text
    assert "refused" in text
    assert "hush" not in text
    assert "\n" not in text
    assert caught.value.retryable
    server.close()


@pytest.mark.parametrize("option", ["readPreference=wrong", "compresors=zstd", "tls=maybe"])
def test_what_the_driver_does_not_know_is_a_configuration_error(option: str) -> None:
    with pytest.raises(ConfigurationError, match="MongoDB at mongodb://db:27017/taskline: "):
        opened(f"mongodb://db/?{option}")
