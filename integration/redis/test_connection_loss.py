"""A worker whose connection is cut, reset, stalled, delayed; a server that is restarted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest

from integration.conftest import server_or_skip
from integration.servers.proxy import DELAY, HANG, PASS, REFUSE, Proxy
from integration.servers.redis import RedisServer
from taskline import Taskline
from taskline.testing.cases.transport import ids, messages
from taskline.transports import open_transport
from taskline.worker import Worker, WorkerOptions

BOUND = 30.0


@pytest.fixture
def server() -> Iterator[RedisServer]:
    yield from server_or_skip(lambda: RedisServer(appendonly=True))


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[Proxy]:
    with Proxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def app(server: RedisServer, proxy: Proxy) -> Iterator[Taskline]:
    """Workers go through the proxy, the one who asks does not."""
    url = f"redis://127.0.0.1:{proxy.port}?timeout=0.5"
    app = Taskline("loss", broker=url, backend=url, lease=2.0)

    @app.task
    def double(number: int) -> int:
        return 2 * number

    yield app
    app.close()


@pytest.fixture
def caller(server: RedisServer, app: Taskline) -> Iterator[Taskline]:
    caller = Taskline("caller", broker=server.url, backend=server.url)
    yield caller
    caller.close()


@pytest.fixture
def worker(app: Taskline) -> Iterator[Worker]:
    worker = Worker(app, WorkerOptions(queues=["default"], threads=2))
    worker.start()
    yield worker
    worker.stop()


def ask(caller: Taskline, name: str, number: int) -> list[int]:
    results = [caller.send_task(name, (each,)) for each in range(number)]
    return [result.get(timeout=BOUND) for result in results]


TROUBLES: dict[str, Callable[[Proxy, RedisServer], object]] = {
    "cut": lambda proxy, server: proxy.cut(),
    "reset": lambda proxy, server: proxy.reset(),
    "cut within an answer": lambda proxy, server: proxy.cut_after(1),
    "killed by the server": lambda proxy, server: server.do("CLIENT", "KILL", "TYPE", "normal"),
    "flushed": lambda proxy, server: server.do("SCRIPT", "FLUSH"),
    "slow": lambda proxy, server: proxy.set(DELAY, 0.02),
}


@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES)
def test_a_worker_goes_on(
    trouble: Callable[[Proxy, RedisServer], object],
    worker: Worker,
    caller: Taskline,
    proxy: Proxy,
    server: RedisServer,
    app: Taskline,
) -> None:
    name = next(name for name in app.tasks if name.endswith("double"))
    assert ask(caller, name, 3) == [0, 2, 4]
    for _ in range(4):
        results = [caller.send_task(name, (each,)) for each in range(20)]
        trouble(proxy, server)
        assert [each.get(timeout=BOUND) for each in results] == [2 * each for each in range(20)]


def test_one_line_on_loss_and_one_on_return(
    worker: Worker,
    caller: Taskline,
    proxy: Proxy,
    app: Taskline,
    caplog: pytest.LogCaptureFixture,
) -> None:
    name = next(name for name in app.tasks if name.endswith("double"))
    assert ask(caller, name, 1) == [0]
    with caplog.at_level(logging.INFO, "taskline"):
        proxy.set(REFUSE)
        proxy.cut()
        refused = proxy.accepted + 6
        result = caller.send_task(name, (4,))
        pause = caller.clock
        while proxy.accepted < refused:
            pause.sleep(0.01)
        proxy.set(PASS)
        assert result.get(timeout=BOUND) == 8
    lines = [each.getMessage() for each in caplog.records]
    assert len([line for line in lines if "answers again" in line]) == 1
    assert len(lines) == 2, lines


def test_a_stalled_connection_is_given_up(
    worker: Worker, caller: Taskline, proxy: Proxy, app: Taskline
) -> None:
    name = next(name for name in app.tasks if name.endswith("double"))
    assert ask(caller, name, 1) == [0]
    proxy.set(HANG)
    result = caller.send_task(name, (4,))
    accepted = proxy.accepted
    while proxy.accepted == accepted:
        caller.clock.sleep(0.01)
    proxy.set(PASS)
    assert result.get(timeout=BOUND) == 8


def test_a_restarted_server_is_found_again(
    worker: Worker, caller: Taskline, server: RedisServer, app: Taskline
) -> None:
    name = next(name for name in app.tasks if name.endswith("double"))
    assert ask(caller, name, 1) == [0]
    result = caller.send_task(name, (3,))
    server.kill()
    server.start()
    assert result.get(timeout=BOUND) == 6
    assert ask(caller, name, 3) == [0, 2, 4]


@pytest.mark.parametrize("answered", range(1, 400, 57))
def test_what_an_answer_that_got_lost_handed_over_comes_back_at_once(
    proxy: Proxy, answered: int
) -> None:
    transport = open_transport(f"redis://127.0.0.1:{proxy.port}?timeout=1")
    transport.send(sent := messages(5))
    proxy.cut_after(answered)
    taken = transport.receive(["mail"], 10, 600, 0, "w")
    while len(taken) < 5:
        more = transport.receive(["mail"], 10, 600, 5, "w")
        assert more, "what was handed over is stuck under its lease"
        taken += more
    assert sorted(ids(taken)) == sorted(ids(sent))
    assert {each.lost for each in taken} == {0}
    assert transport.ack(taken) == []
    transport.close()


def test_an_ack_whose_answer_got_lost_is_no_lost_lease(proxy: Proxy) -> None:
    transport = open_transport(f"redis://127.0.0.1:{proxy.port}?timeout=1")
    transport.send(messages(5))
    taken = transport.receive(["mail"], 10, 600, 0, "w")
    proxy.cut_after(1)
    assert transport.ack(taken) == []
    assert transport.stats(["mail"])[0].leased == 0
    transport.close()


def test_a_send_whose_answer_got_lost_is_stored_once(proxy: Proxy) -> None:
    transport = open_transport(f"redis://127.0.0.1:{proxy.port}?timeout=1")
    transport.send(messages(1))
    proxy.cut_after(1)
    transport.send(messages(3))
    assert transport.stats(["mail"])[0].ready == 4
    transport.close()


def test_a_push_that_got_lost_is_found_again(server: RedisServer, proxy: Proxy) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from taskline.backends import open_backend
    from taskline.message import SUCCESS, Outcome

    here, there = (
        open_backend(f"redis://127.0.0.1:{proxy.port}?timeout=1"),
        open_backend(server.url),
    )
    with ThreadPoolExecutor(1) as pool:
        assert here.wait(["x"], 0.01) == {}
        waiting = pool.submit(here.wait, ["x"], BOUND)
        proxy.cut_after(1)
        there.store([Outcome("x", SUCCESS, 1.0, 1, None, b"")])
        try:
            found = waiting.result()
        except Exception:
            found = here.wait(["x"], BOUND)
    assert list(found) == ["x"]
    here.close()
    there.close()


@pytest.mark.parametrize("answered", [1, 4, 9, 13])
def test_a_large_send_whose_answers_get_lost_is_stored_once(proxy: Proxy, answered: int) -> None:
    """It goes in parts; each answer is four bytes."""
    transport = open_transport(f"redis://127.0.0.1:{proxy.port}?timeout=1")
    transport.send(messages(1))
    proxy.cut_after(answered)
    transport.send(messages(1100))
    assert transport.stats(["mail"])[0].ready == 1101
    transport.close()


def test_scripts_that_are_not_there_are_sent_with_a_large_send(
    server: RedisServer, proxy: Proxy
) -> None:
    transport = open_transport(server.url)
    for _ in range(2):
        server.do("SCRIPT", "FLUSH")
        transport.send(messages(1100))
    assert transport.stats(["mail"])[0].ready == 2200
    transport.close()
