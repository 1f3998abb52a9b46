"""What Redis is asked to do for a task, counted by Redis itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from integration.conftest import server_or_skip
from integration.servers.redis import RedisServer
from taskline import Taskline
from taskline.message import SUCCESS, Outcome
from taskline.redis.node import parse_info
from taskline.transports.redis import RedisTransport

TASKS = 20_000
FROM_CLIENTS = {"evalsha", "eval", "bzpopmin", "client|unblock", "client|id", "mget", "ssubscribe"}


@pytest.fixture
def server() -> Iterator[RedisServer]:
    yield from server_or_skip(RedisServer)


def asked(server: RedisServer) -> int:
    """Commands that clients sent since CONFIG RESETSTAT; what scripts call is not among them."""
    return sum(calls for name, calls in server.counts().items() if name in FROM_CLIENTS)


def info(server: RedisServer) -> dict[str, str]:
    return parse_info(server.do("INFO", "everything").encode())


@pytest.fixture
def app(server: RedisServer) -> Iterator[Taskline]:
    app = Taskline("costs", broker=server.url)

    @app.task(name="bench.noop")
    def noop(number: int) -> None: ...

    noop.delay(0)
    server.do("FLUSHALL")
    yield app
    app.close()


def fill(app: Taskline, number: int) -> None:
    with app.batch():
        for each in range(number):
            app.tasks["bench.noop"].delay(each)


def test_a_call_is_one_command_of_few_bytes(server: RedisServer, app: Taskline) -> None:
    server.do("CONFIG", "RESETSTAT")
    before = int(info(server)["total_net_input_bytes"])
    for _ in range(500):
        app.tasks["bench.noop"].delay(1)
    after = int(info(server)["total_net_input_bytes"])
    assert asked(server) == 500
    assert (after - before) / 500 <= 260


def test_what_waits_is_as_long_as_the_list_by_which_others_scale(
    server: RedisServer, app: Taskline
) -> None:
    app.tasks["bench.noop"].map(range(7))
    # As scaler.yaml of docs/deploy.md names it.
    assert server.do("LLEN", "{taskline}r5:default").strip() == ":7"


def test_many_calls_are_few_commands_and_take_little_memory(
    server: RedisServer, app: Taskline
) -> None:
    before = int(info(server)["used_memory"])
    server.do("CONFIG", "RESETSTAT")
    fill(app, TASKS)
    assert asked(server) <= TASKS / 200
    assert (int(info(server)["used_memory"]) - before) / TASKS <= 220


@pytest.mark.parametrize("results", [False, True])
def test_a_full_queue_is_drained_by_few_commands(
    server: RedisServer, app: Taskline, results: bool
) -> None:
    fill(app, TASKS)
    transport = app.open_transport()
    transport.receive(["default"], 1, 30, 0, "w")
    server.do("CONFIG", "RESETSTAT")
    done = 1
    while taken := transport.receive(["default"], 1000, 30, 0, "w"):
        outcomes = [Outcome(each.id, SUCCESS, 1.0, 1, 60, b"{}") for each in taken]
        assert transport.ack(taken, outcomes if results else ()) == []
        done += len(taken)
    transport.close()
    assert done == TASKS
    assert asked(server) / TASKS <= 0.01
    assert isinstance(transport, RedisTransport)


def test_a_drained_store_keeps_nothing_but_its_books(server: RedisServer, app: Taskline) -> None:
    fill(app, 100)
    transport = app.open_transport()
    transport.ack(transport.receive(["default"], 1000, 30, 0, "w"))
    assert transport.receive(["default"], 1000, 30, 0, "w") == []
    transport.close()
    assert server.do("DBSIZE") == ":2\r\n"


def test_who_is_woken_has_asked_already(server: RedisServer, app: Taskline) -> None:
    transport = app.open_transport()
    transport.receive(["default"], 1, 30, 0, "w")
    server.do("CONFIG", "RESETSTAT")
    for number in range(100):
        app.tasks["bench.noop"].delay(number)
        taken = transport.receive(["default"], 1, 30, 5, "w")
        assert transport.ack(taken) == []
    transport.close()
    counts = server.counts()
    assert counts["bzpopmin"] <= 100
    assert counts["evalsha"] == 300, "a send, a claim and an acknowledgement each"


def test_an_idle_receiver_asks_about_once_a_second(server: RedisServer, app: Taskline) -> None:
    transport = app.open_transport()
    transport.receive(["default"], 1, 30, 0.01, "w")
    server.do("CONFIG", "RESETSTAT")
    transport.receive(["default"], 1, 30, 1.5, "w")
    transport.close()
    assert asked(server) <= 8
