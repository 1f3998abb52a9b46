"""Primaries that step down, connections that are cut, servers that are killed or frozen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pymongo
import pytest
from pymongo.errors import PyMongoError

from integration.conftest import server_or_skip
from integration.servers.mongo import MongoServer
from integration.servers.proxy import HANG, PASS, REFUSE, Proxy
from taskline import Taskline
from taskline.clock import SYSTEM_CLOCK
from taskline.errors import TransportError
from taskline.message import Delivery
from taskline.testing.cases.transport import ids, letter, message, messages
from taskline.transports.mongodb import MongoTransport
from taskline.worker import Worker, WorkerOptions

BOUND = 30.0
LOOKS_AGAIN = "serverMonitoringMode=poll&heartbeatFrequencyMS=500"
"""A server that steps down tells those who watch it; one that only says so must be asked."""


@pytest.fixture(scope="module")
def server() -> Iterator[MongoServer]:
    yield from server_or_skip(lambda: MongoServer(durable=True, fail_points=True))


@pytest.fixture
def admin(server: MongoServer) -> Iterator[Any]:
    """The admin database, by a client that no fault is meant for."""
    with pymongo.MongoClient[dict[str, Any]](server.url, appname="referee") as client:
        client.drop_database("taskline")
        yield client.admin
        client.admin.command({"configureFailPoint": "failCommand", "mode": "off"})


@pytest.fixture
def transport(server: MongoServer, admin: Any) -> Iterator[MongoTransport]:
    transport = MongoTransport.from_spec(f"{server.url}?timeout=5&{LOOKS_AGAIN}", SYSTEM_CLOCK)
    transport.ping()
    yield transport
    transport.close()


def fail(admin: Any, *commands: str, times: int = 1, **how: Any) -> None:
    """Let the next commands of these names fail."""
    data = {"failCommands": list(commands), **how}
    admin.command({"configureFailPoint": "failCommand", "mode": {"times": times}, "data": data})


FAULTS: dict[str, dict[str, Any]] = {
    "connection cut": {"closeConnection": True},
    "stepped down": {"errorCode": 189},
    "no primary": {"errorCode": 10107},
    "shutting down": {"errorCode": 11600},
    "network": {"errorCode": 6},
    "cursor gone": {"errorCode": 43},
    "conflict": {"errorCode": 112},
    "write concern": {
        "writeConcernError": {"code": 64, "errmsg": "waiting for replication timed out"}
    },
}

every_fault = pytest.mark.parametrize("fault", FAULTS.values(), ids=list(FAULTS))


@every_fault
def test_a_send_is_stored_once(
    transport: MongoTransport, admin: Any, fault: dict[str, Any]
) -> None:
    fail(admin, "insert", times=2, **fault)
    sent = messages(3)
    transport.send(sent[:1])
    transport.send(sent[1:])
    assert sorted(ids(transport.peek("mail"))) == sorted(ids(sent))


@every_fault
def test_a_claim_hands_over_each_message_once(
    transport: MongoTransport, admin: Any, fault: dict[str, Any]
) -> None:
    transport.send(sent := messages(10))
    fail(admin, "update", "find", times=1, **fault)
    taken = transport.receive(["mail"], 5, 60, 0, "w")
    fail(admin, "update", times=1, **fault)
    taken += transport.receive(["mail"], 5, 60, 0, "w")
    assert sorted(ids(taken)) == sorted(ids(sent))
    assert {each.deliveries for each in taken} == {1}
    assert transport.ack(taken) == []


@every_fault
def test_what_is_done_with_what_is_held_is_done_once(
    transport: MongoTransport, admin: Any, fault: dict[str, Any]
) -> None:
    transport.send(messages(10))
    held = transport.receive(["mail"], 10, 60, 0, "w")
    commands = "update", "find", "delete", "insert", "commitTransaction"
    done: list[Callable[[], list[Delivery]]] = [
        lambda: transport.extend(held, 60),
        lambda: transport.ack(held[:4]),
        lambda: transport.release(held[4:6]),
        lambda: transport.replace([(each, message(each.id)) for each in held[6:8]]),
        lambda: transport.bury([(each, letter(each)) for each in held[8:]]),
    ]
    for work in done:
        fail(admin, *commands, **fault)
        assert work() == []
    admin.command({"configureFailPoint": "failCommand", "mode": "off"})
    (stats,) = transport.stats(["mail"])
    assert (stats.ready, stats.leased, stats.dead) == (4, 0, 2)
    fail(admin, *commands, **fault)
    assert transport.requeue([message(held[8].id)]) == [held[8].id]


def test_a_worker_rides_out_elections(server: MongoServer, admin: Any) -> None:
    """The primary steps down again and again, while tasks are sent, run and acknowledged."""
    app = Taskline("elections", broker=f"{server.url}?timeout=10&{LOOKS_AGAIN}", lease=5.0)
    ran: list[int] = []

    @app.task(name="count")
    def count(number: int) -> None:
        ran.append(number)

    with running(app):
        for number in range(30):
            if number in (10, 20):
                step_down(admin)
            count.delay(number)
        wait_until(lambda: len(set(ran)) == 30)
        wait_until(lambda: left(app) == 0)
    assert sorted(set(ran)) == list(range(30))


def step_down(admin: Any) -> None:
    try:
        admin.command({"replSetStepDown": 1, "force": True})
    except PyMongoError:
        return  # it may hang up as it does so


def test_a_worker_rides_out_a_network_that_fails(server: MongoServer, admin: Any) -> None:
    with Proxy(server.port) as proxy:
        url = f"mongodb://127.0.0.1:{proxy.port}/?directConnection=true&timeout=1&{LOOKS_AGAIN}"
        app = Taskline("network", broker=url, lease=2.0)
        caller = Taskline("caller", broker=server.url)
        ran: list[int] = []

        @app.task(name="count")
        def count(number: int) -> None:
            ran.append(number)

        def send(first: int, last: int) -> None:
            for number in range(first, last):
                caller.send_task("count", (number,))

        with running(app):
            send(0, 10)
            wait_until(lambda: len(ran) >= 5)
            proxy.cut()
            send(10, 20)
            wait_until(lambda: len(set(ran)) == 20)
            proxy.set(HANG)
            send(20, 30)
            SYSTEM_CLOCK.sleep(0.5)
            proxy.set(PASS)
            wait_until(lambda: len(set(ran)) == 30)
            proxy.set(REFUSE)
            proxy.reset()
            send(30, 40)
            SYSTEM_CLOCK.sleep(0.5)
            proxy.set(PASS)
            wait_until(lambda: len(set(ran)) == 40)
            wait_until(lambda: left(caller) == 0)
        caller.close()


def test_a_frozen_server_is_an_error_in_seconds(server: MongoServer, admin: Any) -> None:
    transport = MongoTransport.from_spec(f"{server.url}?timeout=0.5", SYSTEM_CLOCK)
    transport.ping()
    server.pause()
    try:
        began = SYSTEM_CLOCK.monotonic()
        with pytest.raises(TransportError, match=f"MongoDB at mongodb://127.0.0.1:{server.port}"):
            transport.send(messages(1))
        assert SYSTEM_CLOCK.monotonic() - began < 10
    finally:
        server.resume()
    transport.send(sent := messages(1))
    assert ids(sent)[0] in ids(transport.peek("mail"))
    transport.close()


def test_nothing_is_lost_when_the_server_is_killed(server: MongoServer, admin: Any) -> None:
    transport = MongoTransport.from_spec(f"{server.url}?timeout=10", SYSTEM_CLOCK)
    transport.send(sent := messages(50))
    held = transport.receive(["mail"], 20, 60, 0, "w")
    server.kill()
    server.start()
    assert transport.ack(held) == []
    rest = transport.receive(["mail"], 50, 60, 0, "w")
    assert sorted(ids([*held, *rest])) == sorted(ids(sent))
    transport.close()


class running:  # noqa: N801
    """A worker while the block runs."""

    def __init__(self, app: Taskline) -> None:
        self.app = app

    def __enter__(self) -> None:
        self.worker = Worker(self.app, WorkerOptions(queues=["default"], threads=2))
        self.worker.start()

    def __exit__(self, *error: object) -> None:
        self.worker.stop()
        self.app.close()


def left(app: Taskline) -> int:
    return sum((s.ready or 0) + (s.leased or 0) for s in app.transport.stats(["default"]))


def wait_until(probe: Callable[[], bool]) -> None:
    end = SYSTEM_CLOCK.monotonic() + BOUND
    while not probe():
        assert SYSTEM_CLOCK.monotonic() < end, "did not happen"
        SYSTEM_CLOCK.sleep(0.02)
