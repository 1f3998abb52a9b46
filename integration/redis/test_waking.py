"""A receiver sends its claim along with its wait: what is handed over then is not lost either."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from integration.conftest import server_or_skip
from integration.servers.proxy import Proxy
from integration.servers.redis import RedisServer
from taskline.clock import SYSTEM_CLOCK
from taskline.message import Delivery
from taskline.redis.connection import Connection
from taskline.redis.location import locate
from taskline.redis.node import parse_info
from taskline.testing.cases.transport import ids, message, messages
from taskline.transports import open_transport
from taskline.transports.redis import RedisTransport
from taskline.transports.redis.store import Store

BOUND = 30.0


@pytest.fixture
def server() -> Iterator[RedisServer]:
    yield from server_or_skip(
        lambda: RedisServer(users={"ann": "on >secret ~{taskline}* &{taskline}* +@all -@dangerous"})
    )


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[Proxy]:
    with Proxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def sender(server: RedisServer) -> Iterator[RedisTransport]:
    transport = open_transport(server.url)
    assert isinstance(transport, RedisTransport)
    yield transport
    transport.close()


@pytest.fixture
def waiting(server: RedisServer) -> Iterator[Callable[..., Future[list[Delivery]]]]:
    """Receives in a thread; returns once the server has that wait."""
    with ThreadPoolExecutor() as pool:

        def begin(transport: RedisTransport, seconds: float = 600.0) -> Future[list[Delivery]]:
            before = blocked(server)
            future = pool.submit(transport.receive, ["mail"], 10, 600, seconds, "w")
            while blocked(server) == before:
                SYSTEM_CLOCK.sleep(0.005)
            return future

        yield begin


def blocked(server: RedisServer) -> int:
    """How many clients wait."""
    return int(parse_info(server.do("INFO", "clients").encode())["blocked_clients"])


def through(proxy: Proxy, options: str = "") -> RedisTransport:
    transport = open_transport(f"redis://127.0.0.1:{proxy.port}?timeout=1{options}")
    assert isinstance(transport, RedisTransport)
    return transport


@pytest.mark.parametrize("answered", [1, 20, 60, 110, 200])
def test_what_an_answer_that_got_lost_handed_over_is_handed_over_again(
    proxy: Proxy,
    sender: RedisTransport,
    waiting: Callable[..., Future[list[Delivery]]],
    answered: int,
) -> None:
    transport = through(proxy)
    taken = waiting(transport)
    proxy.cut_after(answered)
    sender.send([message("precious")])
    [delivery] = taken.result(BOUND)
    assert (delivery.id, delivery.lost) == ("precious", 0)
    assert transport.ack([delivery]) == []
    transport.close()


def test_a_claim_that_comes_too_late_takes_nothing_and_wakes_another(
    server: RedisServer,
    sender: RedisTransport,
    waiting: Callable[..., Future[list[Delivery]]],
) -> None:
    """The server comes to it once a receiver that was stopped has waited in vain."""
    store = Store(sender._members[0].node)
    store.claim(["mail"], 1, 30, "stopped")
    connection = Connection(locate(server.url)[0])
    late = store.packed_claim(["mail"], 10, 30, "stopped", -0.001)
    other = open_transport(server.url)
    assert isinstance(other, RedisTransport)
    taken = waiting(other)
    server.do("CONFIG", "RESETSTAT")
    assert store.claimed(connection.call(late)).taken == []
    while server.counts().get("evalsha", 0) < 2:  # The bell was rung, and the other looks.
        SYSTEM_CLOCK.sleep(0.005)
    sender.send([message("a")])
    assert store.claimed(connection.call(late)).taken == []
    assert ids(taken.result(BOUND)) == ["a"]
    in_time = store.packed_claim(["mail"], 10, 30, "living", 10.0)
    sender.send([message("b")])
    assert ids(store.claimed(connection.call(in_time)).taken) == ["b"]
    connection.close()
    other.close()


def test_only_some_are_handed_over_to_one_who_waits(
    sender: RedisTransport, server: RedisServer, waiting: Callable[..., Future[list[Delivery]]]
) -> None:
    """It may have died in the meantime; whoever lives asks again and gets the rest."""
    other = open_transport(server.url)
    assert isinstance(other, RedisTransport)
    with ThreadPoolExecutor() as pool:
        taken = pool.submit(other.receive, ["mail"], 1000, 600, 600, "w")
        while not blocked(server):
            SYSTEM_CLOCK.sleep(0.005)
        sender.send(messages(200))
        first = taken.result(BOUND)
    assert 0 < len(first) < 100
    assert len(other.receive(["mail"], 1000, 600, 600, "w")) == 200 - len(first)
    other.close()


def test_scripts_that_were_flushed_during_the_wait(
    server: RedisServer, sender: RedisTransport, waiting: Callable[..., Future[list[Delivery]]]
) -> None:
    other = open_transport(server.url)
    assert isinstance(other, RedisTransport)
    taken = waiting(other)
    server.do("SCRIPT", "FLUSH")
    sender.send([message("a")])
    assert ids(taken.result(BOUND)) == ["a"]
    other.close()


@pytest.mark.parametrize("user", ["", "ann:secret@"], ids=["unblocks", "may not unblock"])
def test_a_wait_that_is_interrupted_ends_though_it_has_just_begun(
    server: RedisServer, sender: RedisTransport, user: str
) -> None:
    """What was sent in the meantime is handed over, now or by the next call."""
    transport = open_transport(server.url.replace("//", f"//{user}"))
    assert isinstance(transport, RedisTransport)
    taken = []
    for number in range(100):
        interrupter = threading.Timer(0.0001 * (number % 10), transport.interrupt)
        interrupter.start()
        if number % 3 == 0:
            sender.send([message(f"{number}")])
        taken += transport.receive(["mail"], 10, 600, 600, "w")
        interrupter.join()
    while len(taken) < 34:
        taken += transport.receive(["mail"], 10, 600, 5, "w")
    assert sorted(ids(taken)) == sorted(f"{number}" for number in range(0, 100, 3))
    transport.close()
