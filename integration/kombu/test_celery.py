"""Celery's real package on one side, Taskline on the other, both ways, with processes of each."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from integration.servers.redis import RedisServer
from taskline import Taskline, current_task
from taskline.clock import SYSTEM_CLOCK
from taskline.errors import ConfigurationError, TaskRevoked
from taskline.failures import encode_error
from taskline.message import FAILURE, PENDING, VERSION, Header, Outcome
from taskline.outcomes import outcome
from taskline.redis.outcomes import Outcomes
from taskline.worker import Worker, WorkerOptions

celery = pytest.importorskip("celery")

BOUND = 60.0


class Site:
    """One broker and one store of results, with a queue of the test's own."""

    def __init__(self, broker: str, results: str, queue: str, log: Path) -> None:
        self.broker, self.results, self.queue, self.log = broker, results, queue, log
        self.started: list[subprocess.Popen[bytes]] = []

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "broker": f"kombu+{self.broker}",
            "backend": f"celery+{self.results}",
            "protocol": "celery",
            "queue": self.queue,
        }

    def celery(self) -> Any:
        """A client of Celery's."""
        app = celery.Celery("client", broker=self.broker, backend=self.results)
        app.conf.update(task_default_queue=self.queue, result_extended=True)
        return app

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                env={
                    **os.environ,
                    "BROKER": self.broker,
                    "RESULTS": self.results,
                    "QUEUE": self.queue,
                    "TASKLINE_BROKER": self.settings["broker"],
                    "TASKLINE_BACKEND": self.settings["backend"],
                },
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def end(self) -> None:
        for process in self.started:
            process.terminate()
        for process in self.started:
            process.wait(30)


@pytest.fixture(params=["rabbitmq", "redis"])
def site(
    request: pytest.FixtureRequest, redis_server: RedisServer, own_prefix: str, tmp_path: Path
) -> Iterator[Site]:
    queue = own_prefix + "celery"
    broker = (
        request.getfixturevalue("rabbitmq_amqp")
        if request.param == "rabbitmq"
        else f"{redis_server.url}/1"
    )
    site = Site(broker, f"{redis_server.url}/2", queue, tmp_path / "log")
    yield site
    site.end()


@pytest.fixture
def taskline_worker(site: Site) -> None:
    site.start("taskline", "worker", "-A", "integration.kombu.taskline_shop", "-c", "1")


@pytest.fixture
def celery_worker(site: Site) -> None:
    site.start(
        *("celery", "-A", "integration.kombu.celery_shop", "worker", "-c", "1"),
        *("-P", "solo", "-Q", site.queue, "--without-gossip", "--without-mingle"),
    )


@pytest.fixture
def client(site: Site) -> Iterator[Taskline]:
    with Taskline("client", **site.settings) as app:
        yield app


@pytest.mark.usefixtures("taskline_worker")
def test_a_taskline_worker_serves_celerys_clients(site: Site) -> None:
    app = site.celery()
    send: Callable[..., Any] = app.send_task
    assert [send("add", (n, 1)).get(timeout=BOUND) for n in range(5)] == [1, 2, 3, 4, 5]
    assert send("add", (), {"a": 2, "b": 3}).get(timeout=BOUND) == 5
    day = datetime(2026, 5, 1, tzinfo=timezone.utc)
    assert send("next_day", (day,)).get(timeout=BOUND) == "datetime 2"

    failed = send("fail", ("no such order",))
    with pytest.raises(ValueError, match="no such order"):
        failed.get(timeout=BOUND)
    assert failed.state == "FAILURE"
    assert "celery_shop" not in failed.traceback
    assert "no such order" in failed.traceback

    assert send("flaky").get(timeout=BOUND) == 2

    now = datetime.now(timezone.utc)
    later = send("add", (1, 1), eta=now + timedelta(seconds=1.5))
    if site.broker.startswith("redis"):  # RabbitMQ itself drops what Celery lets expire
        expired = send("add", (1, 1), expires=now - timedelta(seconds=1))
        with pytest.raises(celery.exceptions.TaskRevokedError):
            expired.get(timeout=BOUND)
    assert later.get(timeout=BOUND) == 2
    assert datetime.now(timezone.utc) >= now + timedelta(seconds=1.4)

    with pytest.raises(Exception, match="asks for callbacks"):
        send("add", (1, 1), link=app.signature("add", (2,))).get(timeout=BOUND)
    with pytest.raises(Exception, match="no task 'nobody' is registered"):
        send("nobody").get(timeout=BOUND)


@pytest.mark.usefixtures("celery_worker")
def test_a_taskline_client_feeds_celerys_workers(site: Site, client: Taskline) -> None:
    send = client.send_task
    results = [send("add", (n, 1)) for n in range(5)]
    assert [each.get(timeout=BOUND) for each in results] == [1, 2, 3, 4, 5]
    assert send("add", (), {"a": 2, "b": 3}).get(timeout=BOUND) == 5
    day = datetime(2026, 5, 1, tzinfo=timezone.utc)
    assert send("next_day", (day,)).get(timeout=BOUND) == "datetime 2"
    failed = send("fail", ("no such order",))
    with pytest.raises(ValueError, match="no such order"):
        failed.get(timeout=BOUND)
    assert failed.state == "FAILURE"
    assert "celery_shop.py" in (failed.traceback or "")
    assert send("flaky").get(timeout=BOUND) == 2
    before = SYSTEM_CLOCK.time()
    assert send("add", (1, 1), countdown=1.0).get(timeout=BOUND) == 2
    assert SYSTEM_CLOCK.time() >= before + 0.9
    with pytest.raises(TaskRevoked):
        send("add", (1, 1), expires=datetime.now(timezone.utc)).get(timeout=BOUND)
    with pytest.raises(TypeError, match="unsupported operand"):
        send("add", (1, "x")).get(timeout=BOUND)


@pytest.mark.usefixtures("taskline_worker")
def test_taskline_at_both_ends_in_celerys_protocol(site: Site, client: Taskline) -> None:
    assert client.send_task("add", (1, 2)).get(timeout=BOUND) == 3
    with client.batch() as results:
        for number in range(20):
            client.send_task("add", (number, 1))
    assert results.get(timeout=BOUND) == list(range(1, 21))
    assert client.send_task("flaky").get(timeout=BOUND) == 2
    # Again and again through the same queues, which RabbitMQ may not take for a circle.
    assert client.send_task("stubborn").get(timeout=BOUND) == 6
    failed = client.send_task("fail", ("gone",))
    with pytest.raises(ValueError, match="gone"):
        failed.get(timeout=BOUND)
    until = SYSTEM_CLOCK.monotonic() + BOUND
    while not (letters := list(client.dead.find(queue=site.queue))):
        assert SYSTEM_CLOCK.monotonic() < until
    (dead,) = letters
    assert client.dead.describe(dead)["args"] == ["gone"]
    assert client.dead.requeue([dead]) == [failed.id]
    with pytest.raises(ValueError, match="gone"):
        client.AsyncResult(failed.id).get(timeout=BOUND)


def test_a_task_moves_from_celery_to_taskline_and_back(site: Site, client: Taskline) -> None:
    """What waits in the queue is run by whoever serves it; all ask for results as before."""
    old = site.celery()
    asked = [old.send_task("add", (n, 0)) for n in range(10)]
    worker = site.start("taskline", "worker", "-A", "integration.kombu.taskline_shop", "-c", "1")
    assert [each.get(timeout=BOUND) for each in asked] == list(range(10))
    worker.terminate()
    assert worker.wait(30) == 0
    more = [client.send_task("add", (n, 0)) for n in range(10)]
    site.start(
        *("celery", "-A", "integration.kombu.celery_shop", "worker", "-c", "1"),
        *("-P", "solo", "-Q", site.queue, "--without-gossip", "--without-mingle"),
    )
    assert [each.get(timeout=BOUND) for each in more] == list(range(10))


def test_one_queue_of_an_app_moves(site: Site) -> None:
    """The app's own queue is Taskline's, beside one on the same broker that Celery knows."""
    own = f"{site.queue}-own"
    with Taskline(
        "shop",
        broker=f"kombu+{site.broker}",
        backend=f"celery+{site.results}",
        queue=own,
        queues={"old": {"name": site.queue, "protocol": "celery"}},
    ) as app:

        @app.task(name="double", queue="old")
        def double(number: int) -> list[str]:
            return [current_task.queue, str(2 * number)]

        @app.task(name="later")
        def later(number: int) -> str:
            return f"{current_task.queue} {number} {double.delay(number).get(timeout=BOUND)[1]}"

        worker = Worker(app, WorkerOptions(queues=["old", own], threads=2))
        worker.start()
        try:
            asked = site.celery().send_task("double", (4,))
            assert asked.get(timeout=BOUND) == ["old", "8"]
            assert later.delay(5).get(timeout=BOUND) == f"{own} 5 10"
        finally:
            worker.stop(5)
        # What is sent is read by Celery's workers: here they serve nothing else.
        result = app.send_task("add", (1, 2), queue="old")
        site.start(
            *("celery", "-A", "integration.kombu.celery_shop", "worker", "-c", "1"),
            *("-P", "solo", "-Q", site.queue, "--without-gossip", "--without-mingle"),
        )
        assert result.get(timeout=BOUND) == 3


def test_celerys_protocol_needs_a_broker_that_celery_uses() -> None:
    app = Taskline("shop", broker="memory://", protocol="celery")
    with pytest.raises(ConfigurationError, match="needs a broker that Celery uses too"):
        app.transport.ping()
    with pytest.raises(ConfigurationError, match="leave out signing_key"):
        Taskline("shop", broker="kombu+amqp://localhost", protocol="celery", signing_key="k")


@pytest.mark.parametrize("kept", ["rpc", "elsewhere"])
def test_clients_that_wait_for_rpc_are_answered(site: Site, tmp_path: Path, kept: str) -> None:
    backend = "celery+rpc://" if kept == "rpc" else f"sqlite:///{tmp_path / 'results.db'}"
    client = celery.Celery("client", broker=site.broker, backend="rpc://")
    client.conf.update(task_default_queue=site.queue)
    with Taskline("shop", **{**site.settings, "backend": backend}) as app:

        @app.task(name="add", retry={"max": 1, "wait": 0})
        def add(a: int, b: int) -> int:
            if current_task.attempt == 1:
                raise ConnectionError("tried again")
            return a + b

        @app.task(name="fail")
        def fail(text: str) -> None:
            raise ValueError(text)

        worker = Worker(app, WorkerOptions())
        worker.start()
        try:
            asked = [client.send_task("add", (number, 1)) for number in range(20)]
            assert [each.get(timeout=BOUND) for each in asked] == list(range(1, 21))
            failed = client.send_task("fail", ("no such order",))
            with pytest.raises(ValueError, match="no such order"):
                failed.get(timeout=BOUND)
            # Nobody is disturbed by a client that has gone.
            gone = celery.Celery("gone", broker=site.broker, backend="rpc://")
            gone.send_task("add", (1, 1), queue=site.queue)
            gone.close()
            assert client.send_task("add", (5, 1)).get(timeout=BOUND) == 6
        finally:
            worker.stop(5)
            client.close()


def test_an_outcome_that_is_overtaken_is_not_published(
    redis_server: RedisServer, own_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who requeues a dead letter says PENDING, and its next run may fail before that is told."""
    settings: dict[str, Any] = {
        "broker": f"kombu+{redis_server.url}/1",
        "backend": f"celery+{redis_server.url}/2",
        "protocol": "celery",
    }
    task = f"{own_prefix}task"
    header = Header(VERSION, task, "fail", "default", 1.0, "json")
    with Taskline("one", **settings) as one, Taskline("two", **settings) as two:
        slow, fast = one.require_backend(), two.require_backend()
        say = partial(outcome, one.codec, header, deliveries=2, ttl=60.0)
        failure = say(FAILURE, error=encode_error(ValueError("again")))
        store = Outcomes.store

        def overtaken(own: Outcomes, outcomes: Sequence[Outcome]) -> list[Outcome]:
            refused = store(own, outcomes)
            monkeypatch.setattr(Outcomes, "store", store)
            assert fast.store([failure]) == []
            return refused

        monkeypatch.setattr(Outcomes, "store", overtaken)
        assert slow.store([say(PENDING)]) == []
        assert slow.fetch([task])[task].state == FAILURE
        assert fast.store([say(PENDING)]) != []
        assert slow.fetch([task])[task].state == FAILURE
