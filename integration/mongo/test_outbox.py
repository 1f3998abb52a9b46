"""Messages as a part of the user's own transaction: both are committed, or neither is."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pymongo
import pytest
from pymongo.client_session import ClientSession
from pymongo.errors import OperationFailure

from integration.conftest import server_or_skip
from integration.mongo.conftest import Stores, with_options
from integration.servers.mongo import MongoServer
from taskline import Taskline
from taskline.clock import SYSTEM_CLOCK
from taskline.errors import ConfigurationError, NotSupported, TransportError
from taskline.mongo.location import Location, locate
from taskline.testing.cases.base import Running
from taskline.transports.mongodb.records import LARGEST
from taskline.worker import Worker, WorkerOptions

fork = multiprocessing.get_context("fork")
BOUND = 30.0

Client = pymongo.MongoClient[dict[str, Any]]


def shop(url: str) -> Taskline:
    app = Taskline("shop", broker=url, backend=url)
    app.task(name="mail")(lambda number: number)
    return app


@pytest.fixture
def app(mongo_url: str) -> Iterator[Taskline]:
    with shop(mongo_url) as app:
        app.transport.ping()
        yield app


@pytest.fixture
def location(mongo_url: str) -> Location:
    (location,) = locate(mongo_url)
    return location


@pytest.fixture
def client(location: Location) -> Iterator[Client]:
    """The user's own."""
    with Client(location.url) as client:
        orders(client, location).insert_one({"_id": "first"})
        yield client


@pytest.fixture
def session(client: Client) -> Iterator[ClientSession]:
    with client.start_session() as session:
        yield session


def orders(client: Client, location: Location) -> Any:
    """A collection of the user's, which is dropped with ours."""
    return client[location.database][f"{location.namespace}.orders"]


def ordered(client: Client, location: Location) -> set[Any]:
    return {each["_id"] for each in orders(client, location).find()} - {"first"}


def sent(app: Taskline) -> set[str]:
    return {each.id for each in app.transport.peek("default", 10**5)}


def test_messages_are_sent_when_the_transaction_commits(
    app: Taskline, client: Client, session: ClientSession, location: Location
) -> None:
    mail = app.tasks["mail"]
    with session.start_transaction():
        with app.batch(session=session) as results:
            orders(client, location).insert_one({"_id": 1}, session=session)
            mail.delay(1)
            app.send_task("elsewhere", (2,))
            mail.map(range(3))
        assert len(results) == 5
        assert (sent(app), ordered(client, location)) == (set(), set())
    assert ordered(client, location) == {1}
    assert sent(app) == {result.id for result in results}


def test_what_is_aborted_was_never_sent(
    app: Taskline, client: Client, session: ClientSession, location: Location
) -> None:
    with suppress(ZeroDivisionError), session.start_transaction():
        with app.batch(session=session):
            orders(client, location).insert_one({"_id": 1}, session=session)
            app.tasks["mail"].delay(1)
        raise ZeroDivisionError
    assert (sent(app), ordered(client, location)) == (set(), set())


def test_an_id_that_is_stored_already_changes_nothing(
    app: Taskline, client: Client, session: ClientSession, location: Location
) -> None:
    once = app.tasks["mail"].options(task_id="order-1")
    once.delay(1)
    with session.start_transaction(), app.batch(session=session):
        orders(client, location).insert_one({"_id": 1}, session=session)
        once.delay(2)
    (stored,) = app.transport.peek("default")
    assert b"[1]" in stored.frame
    assert ordered(client, location) == {1}


def test_a_transaction_that_the_driver_tries_again_sends_once(
    app: Taskline, client: Client, session: ClientSession, location: Location
) -> None:
    tries = []

    def place(session: ClientSession) -> None:
        tries.append(1)
        with app.batch(session=session):
            orders(client, location).insert_one({"_id": 1}, session=session)
            app.tasks["mail"].delay(1)
        if len(tries) < 3:
            raise OperationFailure("conflict", 112, {"errorLabels": ["TransientTransactionError"]})

    session.with_transaction(place)
    assert len(tries) == 3
    assert (len(sent(app)), ordered(client, location)) == (1, {1})


def test_the_driver_sees_its_own_errors(
    app: Taskline, session: ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or it would not know that the transaction may be tried again."""
    from pymongo.collection import Collection

    labels = [["TransientTransactionError"], []]

    def conflict(*_: Any, **__: Any) -> None:
        raise OperationFailure("conflict", 112, {"errorLabels": labels[0]})

    monkeypatch.setattr(Collection, "bulk_write", conflict)
    for kind in (OperationFailure, TransportError):
        with session.start_transaction(), pytest.raises(kind, match="conflict"):  # noqa: SIM117
            with app.batch(session=session):
                app.tasks["mail"].delay(1)
        labels.pop(0)


def test_a_receive_that_waits_is_woken_by_the_commit(
    app: Taskline, client: Client, session: ClientSession, location: Location
) -> None:
    transport = app.open_transport()
    transport.receive(["default"], 1, 30, 0.2, "w")
    waiting = Running(lambda: transport.receive(["default"], 1, 30, BOUND, "w"), BOUND)
    with session.start_transaction(), app.batch(session=session):
        orders(client, location).insert_one({"_id": 1}, session=session)
        app.tasks["mail"].delay(1)
    assert len(waiting.result()) == 1
    transport.close()


def test_a_worker_runs_it(
    app: Taskline, client: Client, session: ClientSession, location: Location
) -> None:
    worker = Worker(app, WorkerOptions(processes=1, threads=2))
    worker.start()
    try:
        with session.start_transaction(), app.batch(session=session) as results:
            orders(client, location).insert_one({"_id": 1}, session=session)
            app.tasks["mail"].map(range(5))
        assert results.get(timeout=BOUND) == list(range(5))
    finally:
        worker.stop()


def test_of_several_deployments_the_session_picks_one(
    mongo_nodes: Stores,
) -> None:
    with Taskline("shop", broker=mongo_nodes.urls) as app:
        app.transport.ping()
        for url in mongo_nodes.urls:
            (location,) = locate(url)
            with Client(location.url) as client, client.start_session() as session:
                with session.start_transaction(), app.batch(session=session):
                    app.send_task("mail", (1,))
                name = f"{location.namespace}.messages"
                assert client[location.database][name].count_documents({}) == 1


# What is refused, in one line


def refusal(app: Taskline, error: type[Exception], **transaction: Any) -> str:
    with pytest.raises(error) as caught, app.batch(**transaction):
        pytest.fail("the block must not begin")
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_the_argument_is_the_brokers(app: Taskline) -> None:
    text = refusal(app, NotSupported, connection=object())
    assert "the mongodb transport takes session= for a transaction of yours, not connect" in text


def test_what_is_no_transaction_is_refused(
    app: Taskline, client: Client, session: ClientSession
) -> None:
    assert "session= is a NoneType" in refusal(app, ConfigurationError, session=None)
    text = refusal(app, ConfigurationError, session=session)
    assert "no transaction open: session.start_transaction() before the batch" in text
    with client.start_session() as ended:
        pass
    assert "session= has ended" in refusal(app, ConfigurationError, session=ended)


def test_a_commit_within_the_block_is_found_out(app: Taskline, session: ClientSession) -> None:
    def commit_inside() -> None:
        session.start_transaction()
        with app.batch(session=session):
            app.tasks["mail"].delay(1)
            session.commit_transaction()

    with pytest.raises(ConfigurationError, match="no transaction open"):
        commit_inside()
    assert sent(app) == set()


def test_another_deployment_is_refused(app: Taskline, second_server: MongoServer) -> None:
    with Client(second_server.url) as other, other.start_session() as session:
        session.start_transaction()
        text = refusal(app, ConfigurationError, session=session)
        session.abort_transaction()
    assert f"is of a client of secantus (127.0.0.1:{second_server.port}), but the broker" in text


def test_a_message_that_no_document_holds_is_refused(app: Taskline, session: ClientSession) -> None:
    app.codec._limit = 10**9
    with session.start_transaction(), pytest.raises(TransportError, match="MongoDB stores up to"):  # noqa: SIM117
        with app.batch(session=session):
            app.send_task("mail", ("x" * LARGEST,))


# Crashes


@pytest.fixture(scope="module")
def durable() -> Iterator[MongoServer]:
    yield from server_or_skip(lambda: MongoServer(durable=True))


def _order_on_and_on(url: str, first: int, notes: Path) -> None:
    app = shop(url)
    (location,) = locate(url)
    client: Client = Client(location.url)
    for number in range(first, first + 100_000):
        transaction = client.start_session()
        with transaction as session, session.start_transaction(), app.batch(session=session):
            orders(client, location).insert_one({"_id": str(number)}, session=session)
            app.tasks["mail"].options(task_id=str(number)).delay(number)
        with notes.open("a") as committed:
            committed.write(f"{number}\n")


def lines(notes: Path) -> list[str]:
    return notes.read_text().splitlines() if notes.exists() else []


def test_a_producer_that_is_killed_at_any_moment_leaves_both_or_neither(
    durable: MongoServer, tmp_path: Path
) -> None:
    url = with_options(durable.url, namespace="producer")
    (location,) = locate(url)
    notes, dice = tmp_path / "notes", random.Random(7)
    app = shop(url)
    app.transport.ping()
    app.close()
    with Client(location.url) as client:
        orders(client, location).insert_one({"_id": "first"})
    for turn in range(5):
        child = fork.Process(target=_order_on_and_on, args=(url, turn * 100_000, notes))
        child.start()
        begun = len(lines(notes))
        wait_for(lambda begun=begun: len(lines(notes)) > begun)
        SYSTEM_CLOCK.sleep(dice.random() * 0.03)
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
    with Client(location.url) as client, shop(url) as app:
        numbers = ordered(client, location)
        assert sent(app) == numbers
        assert numbers >= set(lines(notes))


def test_a_server_that_is_killed_keeps_both_or_neither(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    with MongoServer(durable=True) as server:
        url = with_options(server.url, namespace="killed")
        (location,) = locate(url)
        app = shop(url)
        app.transport.ping()
        app.close()
        with Client(location.url) as client:
            orders(client, location).insert_one({"_id": "first"})
        child = fork.Process(target=_order_on_and_on, args=(url, 0, notes))
        child.start()
        wait_for(lambda: len(lines(notes)) > 20)
        server.kill()
        child.kill()
        child.join()
        server.start()
        with Client(location.url) as client, shop(url) as app:
            numbers = ordered(client, location)
            assert sent(app) == numbers
            assert numbers >= set(lines(notes))


def wait_for(probe: Callable[[], Any]) -> None:
    end = SYSTEM_CLOCK.monotonic() + BOUND
    while not probe():
        assert SYSTEM_CLOCK.monotonic() < end
        SYSTEM_CLOCK.sleep(0.01)
