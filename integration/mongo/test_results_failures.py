"""Results, locks and keys while MongoDB steps down, is cut off, is killed."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pymongo
import pytest

from integration.conftest import server_or_skip
from integration.servers.mongo import MongoServer
from integration.servers.proxy import HANG, PASS, REFUSE, Proxy
from taskline.backends import mongodb
from taskline.backends.base import Revocation
from taskline.backends.mongodb import MongoBackend
from taskline.clock import SYSTEM_CLOCK
from taskline.errors import BackendError
from taskline.message import STARTED
from taskline.mongo import stream
from taskline.testing.cases.backend import outcome
from taskline.testing.cases.base import Running

BOUND = 30.0
LONG = 600.0
LOOKS_AGAIN = "serverMonitoringMode=poll&heartbeatFrequencyMS=500"
"""A server that steps down tells those who watch it; one that only says so must be asked."""

FAULTS: dict[str, dict[str, Any]] = {
    "connection cut": {"closeConnection": True},
    "stepped down": {"errorCode": 189},
    "write concern": {
        "writeConcernError": {"code": 64, "errmsg": "waiting for replication timed out"}
    },
}

every_fault = pytest.mark.parametrize("fault", FAULTS.values(), ids=list(FAULTS))


@pytest.fixture(scope="module")
def server() -> Iterator[MongoServer]:
    yield from server_or_skip(lambda: MongoServer(durable=True, fail_points=True))


@pytest.fixture
def admin(server: MongoServer) -> Iterator[Any]:
    """The admin database, by a client that no fault is meant for."""
    with pymongo.MongoClient[dict[str, Any]](f"{server.url}/?{LOOKS_AGAIN}") as client:
        client.drop_database("taskline")
        yield client.admin
        client.admin.command({"configureFailPoint": "failCommand", "mode": "off"})


@pytest.fixture
def open_backend(server: MongoServer, admin: Any) -> Iterator[Callable[..., MongoBackend]]:
    made: list[MongoBackend] = []

    def open_backend(url: str = f"{server.url}?timeout=5&{LOOKS_AGAIN}") -> MongoBackend:
        made.append(MongoBackend.from_spec(url, SYSTEM_CLOCK))
        return made[-1]

    yield open_backend
    for each in made:
        each.close()


@pytest.fixture
def backend(open_backend: Callable[..., MongoBackend]) -> MongoBackend:
    opened = open_backend()
    opened.ping()
    return opened


@pytest.fixture
def proxy(server: MongoServer) -> Iterator[Proxy]:
    with Proxy(server.port) as proxy:
        yield proxy


def fail(admin: Any, *commands: str, times: int = 1, **how: Any) -> None:
    """Let the next commands of these names fail."""
    data = {"failCommands": list(commands), **how}
    admin.command({"configureFailPoint": "failCommand", "mode": {"times": times}, "data": data})


def until(probe: Callable[[], Any]) -> Any:
    end = SYSTEM_CLOCK.monotonic() + BOUND
    while not (answer := probe()):
        if SYSTEM_CLOCK.monotonic() > end:
            pytest.fail(f"did not happen within {BOUND:g} s; the last answer was {answer!r}")
        SYSTEM_CLOCK.sleep(0.01)
    return answer


@every_fault
def test_what_is_stored_is_stored_once(
    backend: MongoBackend, admin: Any, fault: dict[str, Any]
) -> None:
    fail(admin, "update", times=2, **fault)
    assert backend.store([outcome("a"), outcome("b", STARTED)]) == []
    fail(admin, "update", **fault)
    refused = backend.store([outcome("a", STARTED), outcome("b"), outcome("c")])
    assert [each.id for each in refused] == ["a"]
    fail(admin, "aggregate", "find", **fault)
    assert sorted(backend.fetch("abc")) == ["a", "b", "c"]
    fail(admin, "update", **fault)
    backend.expire(["b"], LONG)
    fail(admin, "delete", **fault)
    backend.forget(["c"])
    assert sorted(backend.fetch("abc")) == ["a", "b"]


@every_fault
def test_what_is_counted_is_counted_once(
    backend: MongoBackend, admin: Any, fault: dict[str, Any]
) -> None:
    keys = backend.keys()
    for number, member in enumerate("ab", 1):
        fail(admin, "findAndModify", "insert", **fault)
        assert backend.count("group", member, LONG) == number
        fail(admin, "findAndModify", "insert", **fault)
        assert keys.increment("hits", 1, LONG) == number
    fail(admin, "findAndModify", "insert", **fault)
    assert backend.count_all({"group": ["b", "c", "d", "c"], "new": ["x", "y"]}, LONG) == {
        "group": 4,
        "new": 2,
    }
    fail(admin, "findAndModify", "insert", **fault)
    assert keys.set("once", b"1", LONG, if_absent=True)
    fail(admin, "findAndModify", "insert", **fault)
    assert not keys.set("once", b"2", LONG, if_absent=True)
    assert keys.get("once") == b"1"


@every_fault
def test_a_lock_is_taken_and_released_once(
    backend: MongoBackend, admin: Any, fault: dict[str, Any]
) -> None:
    keys = backend.keys()
    fail(admin, "findAndModify", "aggregate", **fault)
    lease = keys.acquire("a", "me", LONG)
    assert lease.token == "me"
    fail(admin, "findAndModify", "aggregate", **fault)
    assert keys.acquire("a", "you", LONG).fence == lease.fence
    fail(admin, "update", **fault)
    assert keys.renew("a", "me", LONG)
    fail(admin, "update", **fault)
    assert keys.release("a", "me")
    assert not keys.release("a", "me")


@every_fault
def test_a_wish_is_remembered_once(
    backend: MongoBackend, admin: Any, fault: dict[str, Any]
) -> None:
    fail(admin, "insert", times=2, **fault)
    backend.revoke([Revocation("a"), Revocation("b", terminate=True)], LONG)
    fail(admin, "find", **fault)
    cursor, seen = backend.revoked(0)
    assert seen == [Revocation("a"), Revocation("b", terminate=True)]
    assert backend.revoked(cursor) == (cursor, [])


def told(backend: MongoBackend) -> bool:
    return all(each.live for each in backend._streams)


@pytest.fixture
def only_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A waiter does not look by itself, as long as it believes that it is told."""
    monkeypatch.setattr(mongodb, "RECHECK", LONG)
    monkeypatch.setattr(stream, "IDLE", 2 * LONG)


@pytest.mark.parametrize("how", ["cut", "reset"])
def test_what_was_missed_while_the_stream_was_cut_is_found(
    backend: MongoBackend,
    open_backend: Callable[..., MongoBackend],
    proxy: Proxy,
    only_told: None,
    how: str,
) -> None:
    waiter = open_backend(f"mongodb://127.0.0.1:{proxy.port}/?directConnection=true&timeout=2")
    waiter.ping()
    waiting = Running(lambda: waiter.wait(["a", "b"], LONG), BOUND)
    until(lambda: told(waiter))
    proxy.set(REFUSE)
    getattr(proxy, how)()
    until(lambda: not told(waiter))
    backend.store([outcome("b")])
    proxy.set(PASS)
    assert list(follow(waiter, waiting, ["a", "b"])) == ["b"]


def follow(waiter: MongoBackend, waiting: Running[Any], ids: list[str]) -> dict[str, Any]:
    """As `taskline.waiters`: an error that may pass is no answer, so wait again."""
    for _ in range(100):
        with contextlib.suppress(BackendError):
            found: dict[str, Any] = waiting.result()
            return found
        waiting = Running(lambda: waiter.wait(ids, LONG), BOUND)
    pytest.fail("it never answered")


def test_a_server_that_answers_no_more_is_left_within_seconds(
    open_backend: Callable[..., MongoBackend], proxy: Proxy
) -> None:
    frozen = open_backend(f"mongodb://127.0.0.1:{proxy.port}/?directConnection=true&timeout=0.5")
    frozen.ping()
    proxy.set(HANG)
    calls: list[Callable[[], Any]] = [
        lambda: frozen.store([outcome("a")]),
        lambda: frozen.wait(["a"], LONG),
    ]
    for call in calls:
        with pytest.raises(BackendError, match=f"127.0.0.1:{proxy.port}") as caught:
            Running(call, BOUND).result()
        assert caught.value.retryable
        assert "\n" not in str(caught.value)
    proxy.set(PASS)


def test_a_waiter_outlasts_an_election(
    backend: MongoBackend, open_backend: Callable[..., MongoBackend], admin: Any, only_told: None
) -> None:
    waiter = open_backend()
    waiting = Running(lambda: waiter.wait(["a"], LONG), BOUND)
    until(lambda: told(waiter))
    admin.command({"replSetStepDown": 1, "force": True})
    backend.store([outcome("a")])
    assert list(follow(waiter, waiting, ["a"])) == ["a"]


def test_a_lock_outlasts_an_election(backend: MongoBackend, admin: Any) -> None:
    keys = backend.keys()
    lease = keys.acquire("a", "me", LONG)
    admin.command({"replSetStepDown": 1, "force": True})
    assert keys.acquire("a", "you", LONG).fence == lease.fence
    assert keys.release("a", "me")
    assert keys.acquire("a", "you", LONG).fence > lease.fence


def test_what_was_acknowledged_is_there_after_a_kill() -> None:
    with MongoServer(durable=True) as own:
        backend = MongoBackend.from_spec(f"{own.url}?timeout=10", SYSTEM_CLOCK)
        backend.ping()
        stored: list[str] = []

        def store() -> None:
            for number in range(100_000):
                try:
                    backend.store([outcome(f"id-{number}")])
                except BackendError:
                    return
                stored.append(f"id-{number}")

        thread = threading.Thread(target=store, daemon=True)
        thread.start()
        until(lambda: len(stored) > 50)
        own.kill()
        known = len(stored)
        own.start()
        until(lambda: len(stored) > known + 20)
        backend.close()
        thread.join(BOUND)
        reader = MongoBackend.from_spec(own.url, SYSTEM_CLOCK)
        try:
            assert reader.fetch(stored).keys() == set(stored)
        finally:
            reader.close()


def test_threads_end_with_the_backend(server: MongoServer, admin: Any) -> None:
    backend = MongoBackend.from_spec(server.url, SYSTEM_CLOCK)
    waiting = Running(lambda: backend.wait(["a"], LONG), BOUND)
    until(lambda: told(backend))
    backend.interrupt()
    assert waiting.result() == {}
    backend.close()
    until(
        lambda: (
            not any(
                thread.name.startswith(("taskline-outcomes", "taskline-locks"))
                for thread in threading.enumerate()
            )
        )
    )
