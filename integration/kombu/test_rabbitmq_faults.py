"""RabbitMQ: connections that are cut, a broker that is killed, workers that are killed."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from integration.conftest import server_or_skip
from integration.kombu.shop import kill, note
from integration.servers.proxy import DELAY, HANG, PASS, REFUSE, Proxy
from integration.servers.rabbitmq import RabbitMQServer
from taskline import Taskline
from taskline.clock import SYSTEM_CLOCK
from taskline.errors import TaskFailed, TransportError
from taskline.message import Delivery
from taskline.testing.cases.transport import ids, messages
from taskline.transports import open_transport
from taskline.transports.base import Transport
from taskline.worker import Worker, WorkerOptions

BOUND = 60.0
TASKS = 60


@pytest.fixture
def proxy(rabbitmq_amqp: str) -> Iterator[Proxy]:
    with Proxy(urlsplit(rabbitmq_amqp).port or 5672) as proxy:
        yield proxy


@pytest.fixture
def through(proxy: Proxy, rabbitmq_amqp: str, own_prefix: str) -> str:
    """The same queues through the proxy."""
    url = urlsplit(rabbitmq_amqp)
    where = f"{url.username}:{url.password}@127.0.0.1:{proxy.port}{url.path}"
    return f"kombu+amqp://{where}?prefix={own_prefix}&timeout=1"


@pytest.fixture
def app(through: str, tmp_path: Path) -> Iterator[Taskline]:
    """Workers go through the proxy, the one who asks does not."""
    app = Taskline("loss", broker=through, backend=f"sqlite:///{tmp_path}/results.db", lease=6.0)

    @app.task(name="double")
    def double(number: int) -> int:
        return 2 * number

    yield app
    app.close()


@pytest.fixture
def caller(rabbitmq_url: str, app: Taskline) -> Iterator[Taskline]:
    caller = Taskline("caller", broker=rabbitmq_url, backend=app.settings.backend)
    yield caller
    caller.close()


@pytest.fixture
def worker(app: Taskline) -> Iterator[Worker]:
    worker = Worker(app, WorkerOptions(queues=["default"], threads=2))
    worker.start()
    yield worker
    worker.stop()


def ask(caller: Taskline, number: int) -> list[int]:
    results = [caller.send_task("double", (each,)) for each in range(number)]
    return [result.get(timeout=BOUND) for result in results]


TROUBLES: dict[str, Callable[[Proxy], object]] = {
    "cut": lambda proxy: proxy.cut(),
    "reset": lambda proxy: proxy.reset(),
    "cut within an answer": lambda proxy: proxy.cut_after(1),
    "slow": lambda proxy: proxy.set(DELAY, 0.01),
}


@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES)
def test_a_worker_goes_on(
    trouble: Callable[[Proxy], object], worker: Worker, caller: Taskline, proxy: Proxy
) -> None:
    assert ask(caller, 3) == [0, 2, 4]
    for _ in range(3):
        results = [caller.send_task("double", (each,)) for each in range(20)]
        trouble(proxy)
        assert [each.get(timeout=BOUND) for each in results] == [2 * each for each in range(20)]


def test_a_stalled_connection_is_given_up(worker: Worker, caller: Taskline, proxy: Proxy) -> None:
    assert ask(caller, 1) == [0]
    proxy.set(HANG)
    result = caller.send_task("double", (4,))
    accepted = proxy.accepted
    while proxy.accepted == accepted:
        caller.clock.sleep(0.01)
    proxy.set(PASS)
    assert result.get(timeout=BOUND) == 8


def test_one_line_on_loss_and_one_on_return(
    worker: Worker, caller: Taskline, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    assert ask(caller, 1) == [0]
    with caplog.at_level(logging.INFO, "taskline"):
        proxy.set(REFUSE)
        proxy.cut()
        refused = proxy.accepted + 4
        result = caller.send_task("double", (4,))
        while proxy.accepted < refused:
            caller.clock.sleep(0.01)
        proxy.set(PASS)
        assert result.get(timeout=BOUND) == 8
    lines = [each.getMessage() for each in caplog.records if "guest:guest" not in each.getMessage()]
    assert len([line for line in lines if "answers again" in line]) == 1
    assert len([line for line in lines if "trying until it works" in line]) == 1
    assert len(lines) <= 4, lines


@pytest.mark.parametrize("answered", [1, 200, 800])
def test_a_send_over_a_connection_that_breaks_is_stored(
    through: str, proxy: Proxy, answered: int
) -> None:
    transport = open_transport(through)
    transport.send(messages(1))
    proxy.cut_after(answered)
    transport.send(sent := messages(20))
    taken = {each.id for each in patiently(transport, set(ids(sent)))}
    assert set(ids(sent)) <= taken
    transport.close()


def patiently(transport: Transport, wanted: set[str]) -> list[Delivery]:
    """What is received until all that is wanted is there, through lost connections."""
    taken: list[Delivery] = []
    until = SYSTEM_CLOCK.monotonic() + BOUND
    while not wanted <= set(ids(taken)):
        assert SYSTEM_CLOCK.monotonic() < until, f"missing: {wanted - set(ids(taken))}"
        try:
            taken += transport.receive(["mail"], 100, 30, 1, "w")
        except TransportError:
            taken.clear()  # the broker has them again
    return taken


def test_a_send_that_cannot_be_confirmed_raises(through: str, proxy: Proxy) -> None:
    transport = open_transport(through)
    transport.send(messages(1))
    proxy.set(HANG)
    with pytest.raises(TransportError, match=r"confirm|answer|unavailable"):
        transport.send(messages(1))
    proxy.set(PASS)
    transport.send(messages(1))
    transport.close()


def test_a_receipt_dies_with_its_connection(through: str, proxy: Proxy) -> None:
    """Its holder was cut off: the message is another's, and the late holder can do nothing."""
    transport, other = open_transport(through), open_transport(through)
    other.ping()
    transport.send(messages(3))
    held = transport.receive(["mail"], 3, 30, 5, "paused")
    proxy.cut()
    again = patiently(other, set(ids(held)))
    assert {(each.deliveries, each.lost) for each in again} == {(2, 1)}
    assert ids(transport.extend(held, 30)) == ids(held)
    assert ids(transport.ack(held)) == ids(held)
    assert other.ack(again) == []
    for each in (transport, other):
        each.close()


def test_messages_survive_a_broker_that_is_killed() -> None:
    """Ready, delayed, held and dead ones."""
    from taskline.testing.cases.transport import letter, message

    for server in server_or_skip(RabbitMQServer):
        transport = open_transport(f"kombu+{server.url}?timeout=30")
        clock = transport.clock
        transport.send([message(queue="first", eta=clock.time() + 1000)])
        # Quorum queues as young as the levels are now do not survive a kill: RabbitMQ has
        # them in no file yet.
        server.stop()
        server.start()
        month = message(eta=clock.time() + 30 * 86400)
        soon = message(eta=clock.time() + 4)
        transport.send([*(sent := messages(20)), soon, month])
        held = transport.receive(["mail"], 6, 30, 5, "w")
        transport.bury([(held[0], letter(held[0]))])
        transport.ack(held[1:3])
        server.kill()
        server.start()
        assert ids(transport.ack(held[3:])) == ids(held[3:])
        wanted = {*ids(sent), soon.header.id} - set(ids(held[:3]))
        taken = patiently(transport, wanted)
        # A receipt that RabbitMQ had not yet written is forgotten: a repeat, not a loss.
        assert set(ids(taken)) <= wanted | set(ids(held[:3]))
        assert ids(transport.dead_letters()) == [held[0].id]
        assert transport.ack(taken) == []
        assert transport.purge("mail") == 1
        transport.close()


def test_a_task_longer_than_the_heartbeats_runs_once(rabbitmq_url: str, tmp_path: Path) -> None:
    """RabbitMQ ends a connection that is silent for two heartbeats, here two seconds."""
    results = f"sqlite:///{tmp_path}/results.db"
    app = Taskline("long", broker=f"{rabbitmq_url}&heartbeat=1", backend=results, lease=3.0)
    runs: list[int] = []

    @app.task(name="long")
    def long() -> str:
        runs.append(1)
        app.clock.sleep(5.0)
        return "done"

    worker = Worker(app, WorkerOptions(queues=["default"], threads=1))
    worker.start()
    assert long.delay().get(timeout=BOUND) == "done"
    worker.stop()
    assert runs == [1]
    assert app.transport.receive(["default"], 1, 30, 0, "w") == []
    app.close()


def test_a_silent_machine_loses_its_messages_after_two_heartbeats(
    through: str, proxy: Proxy, rabbitmq_url: str
) -> None:
    silent, other = open_transport(f"{through}&heartbeat=1"), open_transport(rabbitmq_url)
    silent.send(messages(2))
    held = silent.receive(["mail"], 2, 3.0, 5, "silent")
    proxy.set(HANG)
    again = patiently(other, set(ids(held)))
    assert {(each.deliveries, each.lost) for each in again} == {(2, 1)}
    proxy.set(PASS)
    assert ids(silent.extend(held, 3.0)) == ids(held)
    assert other.ack(again) == []
    silent.close()
    other.close()


def start_worker(broker: str, tmp_path: Path) -> subprocess.Popen[bytes]:
    """A supervisor with two processes."""
    return subprocess.Popen(
        [sys.executable, "-m", "taskline", "worker", "-A", "integration.kombu.shop", "-c", "2"],
        env={
            **os.environ,
            "TASKLINE_BROKER": broker,
            "TASKLINE_BACKEND": f"sqlite:///{tmp_path}/results.db",
            "NOTES": str(tmp_path / "notes"),
            "TAKES": "0.05",
        },
        start_new_session=True,
        stdout=(tmp_path / "log").open("ab"),
        stderr=subprocess.STDOUT,
    )


def lines(tmp_path: Path) -> list[str]:
    notes = tmp_path / "notes"
    return notes.read_text().splitlines() if notes.exists() else []


@pytest.fixture
def asking(rabbitmq_url: str, tmp_path: Path) -> Iterator[Taskline]:
    caller = Taskline("caller", broker=rabbitmq_url, backend=f"sqlite:///{tmp_path}/results.db")
    yield caller
    caller.close()


def end(worker: subprocess.Popen[bytes]) -> None:
    worker.terminate()
    assert worker.wait(30) == 0


def test_no_task_is_lost_when_all_workers_are_killed(
    asking: Taskline, rabbitmq_url: str, tmp_path: Path
) -> None:
    results = [asking.send_task(note.name, (number,)) for number in range(TASKS)]
    first = start_worker(rabbitmq_url, tmp_path)
    try:
        while len(lines(tmp_path)) < TASKS // 3:
            assert first.poll() is None
            asking.clock.sleep(0.01)
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    second = start_worker(rabbitmq_url, tmp_path)
    try:
        assert [result.get(timeout=BOUND) for result in results] == list(range(TASKS))
        assert {int(line) for line in lines(tmp_path)} == set(range(TASKS))
    finally:
        end(second)
    (stats,) = asking.transport.stats(["default"])
    assert (stats.ready, stats.dead) == (0, 0)


def test_poison_ends_in_the_dead_letters(
    asking: Taskline, rabbitmq_url: str, tmp_path: Path
) -> None:
    """The message kills its process again and again; those beside it are done."""
    poison = asking.send_task(kill.name)
    results = [asking.send_task(note.name, (number,)) for number in range(5)]
    worker = start_worker(rabbitmq_url, tmp_path)
    try:
        assert [result.get(timeout=BOUND) for result in results] == list(range(5))
        with pytest.raises(TaskFailed, match="max_deliveries"):
            poison.get(timeout=BOUND)
    finally:
        end(worker)
    assert lines(tmp_path).count("kill") == 5
    (dead,) = asking.transport.dead_letters("default")
    assert dead.id == poison.id
