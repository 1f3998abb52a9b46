"""Taskline and RSMQ's own clients on one server, in both directions."""

from __future__ import annotations

import json
import re
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from integration.contrib.rsmq_clients import CLIENTS, Refused
from integration.servers.supply import Missing, demanded
from taskline import Taskline
from taskline.clock import SYSTEM_CLOCK
from taskline.errors import TransportError
from taskline.message import DeadLetter, Header, Message
from taskline.worker import Worker, WorkerOptions
from taskline_contrib.rsmq import RSMQTransport

Client = Any
Open = Callable[..., Any]


@pytest.fixture(scope="module", params=CLIENTS)
def _client(request: pytest.FixtureRequest, redis_server: str) -> Iterator[Client]:
    try:
        client = CLIENTS[request.param](int(redis_server.rpartition(":")[2]))
    except Missing as error:
        if demanded():
            raise
        pytest.skip(str(error))
    yield client
    client.close()


@pytest.fixture
def client(_client: Client, redis: Any) -> Client:
    """One of the clients, on an empty server; the scripts that it has loaded are still there."""
    return _client


@pytest.fixture
def broker(redis_server: str, redis: Any) -> Iterator[Callable[..., RSMQTransport]]:
    """Opens a transport with these options."""
    made: list[RSMQTransport] = []

    def broker(**options: Any) -> RSMQTransport:
        made.append(RSMQTransport(f"{redis_server}/0", SYSTEM_CLOCK, **options))
        return made[-1]

    yield broker
    for each in made:
        each.close()


@pytest.fixture
def app(redis_server: str, redis: Any, tmp_path: Path) -> Iterator[Callable[..., Taskline]]:
    """Makes an app on this server, with these options of its transport."""
    made: list[Taskline] = []

    def app(**options: Any) -> Taskline:
        broker = {
            "type": "taskline_contrib.rsmq:RSMQTransport",
            "address": f"{redis_server}/0",
            **options,
        }
        made.append(Taskline("shop", broker=broker, queue="mail"))
        return made[-1]

    yield app
    for each in made:
        each.close()


@pytest.fixture
def work() -> Iterator[Callable[[Taskline], None]]:
    """Lets a worker of the app work until the test ends."""
    workers: list[Worker] = []

    def work(app: Taskline) -> None:
        workers.append(Worker(app, WorkerOptions(queues=["mail"], grace=5)))
        workers[-1].start()

    yield work
    for each in workers:
        each.stop()


def message(id: str = "order-42", queue: str = "mail", frame: bytes = b"frame") -> Message:
    return Message(Header(v=1, id=id, task="t", queue=queue, sent=0.0), frame)


def counts(broker: RSMQTransport) -> tuple[int | None, ...]:
    (found,) = broker.stats(["mail"])
    return (found.ready, found.delayed, found.leased, found.dead)


# they send, Taskline receives


def test_a_plain_message_is_the_argument_of_the_default_task(
    client: Client, app: Open, work: Open, broker: Open, until: Open
) -> None:
    shop, seen = app(task="shop.handle"), []

    @shop.task(name="shop.handle")
    def handle(text: str) -> None:
        seen.append(text)

    client("createQueue", qname="mail")
    work(shop)
    client("sendMessage", qname="mail", message="für Ann: 'x'\n{}")
    client("sendMessage", qname="mail", message='{"order": 42}')
    until(lambda: len(seen) == 2)
    assert sorted(seen) == sorted(["für Ann: 'x'\n{}", '{"order": 42}'])
    until(lambda: counts(broker()) == (0, 0, 0, 0))
    assert client("receiveMessage", qname="mail") == {}


def test_a_json_message_is_given_as_what_it_says(
    client: Client, app: Open, work: Open, until: Open
) -> None:
    shop, seen = app(task="shop.handle", body="json"), []

    @shop.task(name="shop.handle")
    def handle(order: dict[str, int]) -> None:
        seen.append(order)

    client("createQueue", qname="mail")
    client("sendMessage", qname="mail", message='{"order": 42}')
    work(shop)
    until(lambda: seen == [{"order": 42}])


def test_a_call_written_by_another_client_is_run(
    client: Client, app: Open, work: Open, until: Open
) -> None:
    shop, seen = app(), []

    @shop.task(name="shop.send_receipt", bind=True)
    def send_receipt(self: Any, order_id: int, *, copy: bool) -> None:
        seen.append((self.request.id, order_id, copy))

    header = {"v": 1, "id": "order-42", "task": "shop.send_receipt", "queue": "mail", "sent": 0}
    frame = json.dumps(header) + "\n" + json.dumps([[42], {"copy": True}])
    client("createQueue", qname="mail")
    client("sendMessage", qname="mail", message=frame)
    work(shop)
    until(lambda: seen == [("order-42", 42, True)])


def test_a_plain_message_without_a_default_task_is_a_dead_letter_with_its_bytes(
    client: Client, app: Open, work: Open, broker: Open, until: Open
) -> None:
    client("createQueue", qname="mail")
    rid = client("sendMessage", qname="mail", message="hello ü")
    work(app())
    (letter,) = until(lambda: broker().dead_letters("mail"))
    assert (letter.id, letter.queue, letter.frame) == (rid, "mail", "hello ü".encode())
    assert "not a Taskline message" in letter.reason
    seen = client("receiveMessage", qname="mail-dead", vt=0)
    assert seen["message"] == "hello ü"


def test_who_does_not_publish_is_heard_within_poll_seconds(client: Client, broker: Open) -> None:
    """And who does, at once."""
    client("createQueue", qname="mail")
    patient = broker(poll=600.0 if client.publishes else 0.05)
    assert patient.receive(["mail"], 1, 600, 0.01, "w") == []
    start = time.monotonic()
    client("sendMessage", qname="mail", message="x", delay=0)
    (delivery,) = patient.receive(["mail"], 1, 600, 600, "w")
    assert delivery.frame == b"x"
    assert time.monotonic() - start < 60


def test_a_waiting_receive_hears_a_client_that_publishes(
    client: Client, broker: Open, until: Open
) -> None:
    if not client.publishes:
        pytest.skip("this client never publishes")
    from threading import Thread

    client("createQueue", qname="mail")
    patient, taken = broker(poll=600.0), []
    waiting = Thread(target=lambda: taken.extend(patient.receive(["mail"], 1, 600, 600, "w")))
    waiting.start()
    until(lambda: patient._listener is not None and patient._listener._subscribed.is_set())
    client("sendMessage", qname="mail", message="x")
    waiting.join(20)
    patient.interrupt()
    assert [each.frame for each in taken] == [b"x"]


def test_their_delayed_message_waits(client: Client, broker: Open) -> None:
    client("createQueue", qname="mail")
    start = time.time()
    client("sendMessage", qname="mail", message="later", delay=1)
    assert counts(broker()) == (0, 1, 0, 0)
    (delivery,) = broker(poll=600.0).receive(["mail"], 1, 600, 20, "w")
    assert time.time() - start > 0.95
    assert (delivery.frame, delivery.deliveries, delivery.lost) == (b"later", 1, 0)


def test_what_they_received_and_did_not_delete_comes_back(client: Client, broker: Open) -> None:
    client("createQueue", qname="mail")
    rid = client("sendMessage", qname="mail", message="x")
    assert client("receiveMessage", qname="mail", vt=1)["rc"] == 1
    (shown,) = broker().peek("mail")
    assert (shown.id, shown.state, shown.deliveries) == (rid, "leased", 1)
    assert broker().purge("mail") == 0
    (delivery,) = broker().receive(["mail"], 1, 600, 20, "w")
    assert (delivery.id, delivery.deliveries, delivery.lost) == (rid, 2, 1)
    assert broker().ack([delivery]) == []
    assert client("deleteMessage", qname="mail", id=rid) in (0, False)


# Taskline sends, they receive


def test_they_read_and_delete_what_taskline_sent(client: Client, app: Open, broker: Open) -> None:
    shop = app()

    @shop.task(name="shop.send_receipt")
    def send_receipt(order_id: int, to: str) -> None: ...

    before = time.time()
    result = send_receipt.delay(42, "ann@exämple.org")
    found = client("receiveMessage", qname="mail", vt=30)
    head, _, body = found["message"].partition("\n")
    header = json.loads(head)
    assert (header["id"], header["task"], header["v"]) == (result.id, "shop.send_receipt", 1)
    assert json.loads(body) == [[42, "ann@exämple.org"], {}]
    assert found["rc"] == 1
    assert re.fullmatch("[a-zA-Z0-9:]{32}", found["id"])
    assert before - 1 < int(found["id"][:10], 36) / 1e6 < time.time() + 1
    assert broker().receive(["mail"], 1, 600, 0, "w") == []
    assert client("deleteMessage", qname="mail", id=found["id"]) in (1, True)
    assert counts(broker()) == (0, 0, 0, 0)


def test_what_they_deleted_leaves_nothing_behind(client: Client, broker: Open, redis: Any) -> None:
    taskline = broker()
    taskline.send([message(f"order-{number}") for number in range(300)])
    for _ in range(300):
        client("popMessage", qname="mail")
    for _ in range(20):
        taskline.maintain()
    assert sorted(redis.keys()) == [b"rsmq:QUEUES", b"rsmq:mail:Q"]
    taskline.send([message("order-7")])
    assert client("popMessage", qname="mail")["message"] == "frame"


def test_an_id_that_they_deleted_can_be_sent_again_at_once(client: Client, broker: Open) -> None:
    broker().send([message()])
    client("popMessage", qname="mail")
    broker().send([message(frame=b"again")])
    assert client("receiveMessage", qname="mail")["message"] == "again"


def test_what_is_not_text_is_marked_base64_for_them(client: Client, broker: Open) -> None:
    broker().send([message(frame=b"\xff\x00\x81")])
    body = client("receiveMessage", qname="mail")["message"]
    marker, _, rest = body.partition(":")
    assert (marker, b64decode(rest)) == ("taskline-base64", b"\xff\x00\x81")


def test_a_task_with_a_countdown_is_hidden_from_them(
    client: Client, app: Open, until: Open
) -> None:
    shop = app()

    @shop.task(name="shop.later")
    def later() -> None: ...

    later.apply_async((), countdown=1.0)
    start = time.monotonic()
    found = client("getQueueAttributes", qname="mail")
    assert (found["msgs"], found["hiddenmsgs"]) == (1, 1)
    assert client("receiveMessage", qname="mail") == {}
    until(lambda: client("receiveMessage", qname="mail"))
    assert time.monotonic() - start > 0.9


def test_sending_is_published_as_their_realtime_is(
    client: Client, broker: Open, redis: Any, until: Open
) -> None:
    client("createQueue", qname="mail")
    with redis.pubsub() as heard:
        heard.subscribe("rsmq:rt:mail")
        until(lambda: heard.get_message(timeout=1))
        broker().send([message("a"), message("b")])
        assert until(lambda: heard.get_message(timeout=1))["data"] == b"2"


# both hold the same queue


def test_what_taskline_holds_they_do_not_get(client: Client, broker: Open) -> None:
    taskline = broker()
    taskline.send([message()])
    (held,) = taskline.receive(["mail"], 1, 600, 0, "w")
    assert client("receiveMessage", qname="mail") == {}
    assert taskline.release([held]) == []
    found = client("receiveMessage", qname="mail", vt=600)
    assert found["rc"] == 2
    assert taskline.receive(["mail"], 1, 600, 0, "w") == []


def test_a_receipt_that_they_took_over_is_refused(client: Client, broker: Open) -> None:
    """They make the message visible under our lease and take it: then it is theirs."""
    taskline = broker()
    taskline.send([message()])
    (old,) = taskline.receive(["mail"], 1, 600, 0, "w")
    name, rid, _ = old.receipt
    client("changeMessageVisibility", qname=name, id=rid, vt=0)
    assert client("receiveMessage", qname="mail", vt=1)["rc"] == 2
    letter = DeadLetter(id=old.id, queue="mail", reason="x", at=0.0, frame=old.frame)
    assert taskline.ack([old]) == [old]
    assert taskline.extend([old], 600) == [old]
    assert taskline.release([old]) == [old]
    assert taskline.replace([(old, message(frame=b"2"))]) == [old]
    assert taskline.bury([(old, letter)]) == [old]
    assert taskline.recover("w", []) == 0
    (new,) = taskline.receive(["mail"], 1, 600, 20, "w")
    assert (new.id, new.frame, new.deliveries, new.lost) == ("order-42", b"frame", 3, 2)
    assert taskline.ack([new]) == []


def test_a_receipt_whose_message_they_deleted_is_refused(client: Client, broker: Open) -> None:
    taskline = broker()
    taskline.send([message()])
    (held,) = taskline.receive(["mail"], 1, 600, 0, "w")
    client("deleteMessage", qname="mail", id=held.receipt[1])
    assert taskline.extend([held], 600) == [held]
    assert taskline.replace([(held, message(frame=b"2"))]) == [held]
    assert counts(taskline) == (0, 0, 0, 0)
    assert client("receiveMessage", qname="mail") == {}


def test_they_may_put_and_take_dead_letters(client: Client, broker: Open) -> None:
    taskline = broker()
    taskline.send([message("a"), message("b")])
    held = taskline.receive(["mail"], 2, 600, 0, "w")
    for each in held:
        letter = DeadLetter(id=each.id, queue="mail", reason="no", at=1.0, frame=each.frame)
        assert taskline.bury([(each, letter)]) == []
    taken = client("popMessage", qname="mail-dead")
    assert taken["message"] == "frame"
    assert [each.id for each in taskline.dead_letters()] == ["b"]
    assert taskline.dead_letter("a") is None
    assert taskline.requeue([message("a"), message("b")]) == ["b"]
    rid = client("sendMessage", qname="mail-dead", message="from them")
    (theirs,) = taskline.dead_letters("mail")
    assert (theirs.id, theirs.frame, theirs.queue) == (rid, b"from them", "mail")
    assert taskline.dead_letter(rid) == theirs
    assert taskline.purge_dead([rid]) == 1
    assert taskline.dead_letters() == []


# attributes


def test_the_attributes_of_their_queue_are_honoured(client: Client, broker: Open) -> None:
    client("createQueue", qname="mail", vt=40, delay=1, maxsize=1024)
    taskline = broker(vt=7.0, delay=0.0, maxsize=-1)
    start = time.monotonic()
    taskline.send([message(frame=b"x" * 1024)])
    with pytest.raises(TransportError, match=r"1025 bytes.*maxsize=1024.*'mail'") as refused:
        taskline.send([message("small"), message("large", frame=b"x" * 1025)])
    assert not refused.value.retryable
    assert counts(taskline) == (0, 1, 0, 0)
    assert taskline.receive(["mail"], 1, 600, 20, "w")
    assert time.monotonic() - start > 0.9
    found = client("getQueueAttributes", qname="mail")
    told = [int(found[name]) for name in ("vt", "delay", "maxsize", "totalsent", "totalrecv")]
    assert told == [40, 1, 1024, 1, 1]


def test_a_queue_that_taskline_makes_has_the_attributes_of_its_url(
    client: Client, broker: Open
) -> None:
    broker(vt=7.0, maxsize=2048).send([message()])
    assert [str(name) for name in client("listQueues")] == ["mail"]
    found = client("getQueueAttributes", qname="mail")
    assert [int(found[name]) for name in ("vt", "delay", "maxsize", "msgs")] == [7, 0, 2048, 1]
    assert abs(int(found["created"]) - time.time()) < 60
    with pytest.raises(Refused):
        client("createQueue", qname="mail")


def test_a_changed_attribute_counts_from_then_on(client: Client, broker: Open) -> None:
    taskline = broker()
    taskline.send([message("a", frame=b"x" * 2000)])
    client("setQueueAttributes", qname="mail", maxsize=1024)
    with pytest.raises(TransportError, match="maxsize=1024"):
        taskline.send([message("b", frame=b"x" * 2000)])
    (held,) = taskline.receive(["mail"], 1, 600, 0, "w")
    # What was accepted once is not refused when it is tried again.
    assert taskline.replace([(held, message("a", frame=b"x" * 2000))]) == []


def test_a_queue_whose_name_they_do_not_allow_has_one_that_they_do(
    client: Client, broker: Open
) -> None:
    taskline = broker()
    taskline.send([message(queue="mail/ü"), message("b", queue="x-dead"), message("c", "QUEUES")])
    names = sorted(str(name) for name in client("listQueues"))
    assert len(names) == 3
    for name in names:
        assert client("getQueueAttributes", qname=name)["msgs"] == 1
    assert [each.queue for each in taskline.stats()] == ["QUEUES", "mail/ü", "x-dead"]
