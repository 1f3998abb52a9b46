"""Each row of the tables in docs/ that say what became of Django Q's and Volley's calls, tried."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from contrib.django_q_plugin import MyBroker
from contrib.volley_plugin import MyConsumer, MyProducer

from taskline import Taskline, emit
from taskline.message import Delivery
from taskline.testing.cases.transport import LONG, letter, message, messages
from taskline.transports.base import Transport
from taskline.transports.memory import MemoryTransport
from taskline.worker import Worker, WorkerOptions
from taskline_contrib.django_q import DjangoQTransport
from taskline_contrib.volley import VolleyTransport, settings_of

DOCS = Path(__file__).parents[2] / "docs"
NAMES = (
    *("enqueue", "dequeue", "acknowledge", "fail", "delete", "delete_queue", "purge_queue"),
    *("queue_size", "lock_size", "ping", "info"),
    *("produce", "consume", "on_success", "on_fail", "shutdown"),
)
CALLS: list[tuple[str, Any]] = []
"""What the connectors were called with, since the test began."""


def recorded(kind: type) -> Any:
    """A subclass that notes the calls that Taskline may make."""

    def noting(name: str) -> Callable[..., Any]:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            answer = getattr(kind, name)(self, *args, **kwargs)
            CALLS.append((name, args or tuple(kwargs.values())))
            return answer

        return call

    calls = {name: noting(name) for name in NAMES if callable(getattr(kind, name, None))}
    return type(kind.__name__, (kind,), calls)


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    CALLS.clear()
    monkeypatch.setenv("VOLLEY_FILE", str(tmp_path / "volley.db"))
    monkeypatch.setenv("DJANGO_Q_FILE", str(tmp_path / "django_q.db"))


@pytest.fixture
def django_q() -> Iterator[Transport]:
    transport = DjangoQTransport(recorded(MyBroker), poll=0.01)
    yield transport
    transport.close()


@pytest.fixture
def volley() -> Iterator[Transport]:
    transport = VolleyTransport(recorded(MyConsumer), recorded(MyProducer), poll=0.01)
    yield transport
    transport.close()


def called(*names: str) -> None:
    """Just these were called since the last time, in whatever order."""
    found = {name for name, _ in CALLS}
    assert set(names) == found, CALLS
    CALLS.clear()


def held(transport: Transport) -> Delivery:
    transport.send([message("held")])
    (delivery,) = transport.receive(["mail"], 1, LONG, 5, "w")
    CALLS.clear()
    return delivery


# Django Q


def enqueue(transport: Transport) -> None:
    transport.send([message()])
    called("enqueue")
    delivery = held(transport)
    assert transport.release([delivery]) == []
    called("enqueue", "acknowledge", "delete")


def dequeue(transport: Transport) -> None:
    transport.send(messages(2))
    CALLS.clear()
    found = transport.receive(["mail"], 2, LONG, 5, "w")
    called("dequeue")
    assert len(found) == 2, "it may give several"


def acknowledge(transport: Transport) -> None:
    assert transport.ack([held(transport)]) == []
    called("acknowledge", "delete")  # the plug-in's own acknowledge deletes


def fail(transport: Transport) -> None:
    delivery = held(transport)
    assert transport.bury([(delivery, letter(delivery))]) == []
    called("enqueue", "fail", "delete")
    (dead,) = transport.receive(["mail-dead"], 1, LONG, 5, "w")
    assert delivery.id.encode() in dead.frame


def fail_or_another_attempt(transport: Transport) -> None:
    fail(transport)
    CALLS.clear()
    delivery = held(transport)
    assert transport.replace([(delivery, message(delivery.id))]) == []
    called("enqueue", "acknowledge", "delete")


def sizes(transport: Transport) -> None:
    transport.send(messages(5))
    transport.receive(["mail"], 1, LONG, 5, "w")
    CALLS.clear()
    (stats,) = transport.stats(["mail"])
    called("queue_size", "lock_size")
    assert (stats.ready or 0) + (stats.leased or 0) == 5
    assert stats.leased == 3  # those that one dequeue took


def purge(transport: Transport) -> None:
    transport.send(messages(3))
    CALLS.clear()
    assert transport.purge("mail") == 3
    assert "purge_queue" in {name for name, _ in CALLS}


def ping(transport: Transport) -> None:
    transport.ping()
    called("ping")


def info(transport: Transport) -> None:
    assert "SQLite" in str(transport.info())
    called("info")


def ping_and_info(transport: Transport) -> None:
    ping(transport)
    info(transport)


def never(transport: Transport) -> None:
    for kind in ("delete", "delete_queue"):
        held(transport)
        with pytest.raises(Exception, match="cannot delete a message by its id"):
            transport.delete(["held"])
        assert kind not in {name for name, _ in CALLS}


def delete_waiting_and_dead(transport: Transport) -> None:
    """As a transport of its own has it."""
    own = MemoryTransport("calls-delete")
    own.send([message("a"), message("b")])
    assert own.delete(["a"]) == ["a"]
    (delivery,) = own.receive(["mail"], 1, LONG, 0, "w")
    own.bury([(delivery, letter(delivery))])
    assert own.purge_dead(["b"]) == 1
    own.close()


def list_keys(transport: Transport) -> None:
    transport.send([message("a", queue="one"), message("b", queue="two")])
    found = transport.receive(["one", "two"], 2, LONG, 5, "w")
    assert sorted(each.queue for each in found) == ["one", "two"]


def leases(transport: Transport) -> None:
    own = MemoryTransport("calls-leases")
    own.send([message("a")])
    (delivery,) = own.receive(["mail"], 1, 0.05, 0, "w")
    assert own.extend([delivery], LONG) == []
    assert own.receive(["mail"], 1, LONG, 0.1, "w") == []
    own.close()


DJANGO_Q_CALLS = {
    "`enqueue(task)`": enqueue,
    "`dequeue()`": dequeue,
    "`acknowledge(id)`": acknowledge,
    "`fail(id)`": fail,
    "`queue_size()`, `lock_size()`": sizes,
    "`purge_queue()`": purge,
    "`ping()`, `info()`": ping_and_info,
    "`delete(id)`, `delete_queue()`": never,
}
DJANGO_Q_ANEW = {
    "`enqueue(task)`": enqueue,
    "`dequeue()`": dequeue,
    "`acknowledge(id)`": acknowledge,
    "`fail(id)`": fail_or_another_attempt,
    "`delete(id)`": delete_waiting_and_dead,
    "`purge_queue()`, `delete_queue()`": purge,
    "`queue_size()`": sizes,
    "`lock_size()`": sizes,
    "`Broker(list_key)`": list_keys,
    "`ping()`": ping,
    "`info()`": info,
    "the `retry` setting": leases,
}


@pytest.mark.parametrize("row", DJANGO_Q_CALLS)
def test_django_qs_calls(row: str, django_q: Transport) -> None:
    DJANGO_Q_CALLS[row](django_q)


@pytest.mark.parametrize("row", DJANGO_Q_ANEW)
def test_django_qs_calls_and_what_they_are_here(row: str, django_q: Transport) -> None:
    DJANGO_Q_ANEW[row](django_q)


# Volley


def produce(transport: Transport) -> None:
    transport.send([message()])
    assert [(name, args[0]) for name, args in CALLS] == [("produce", "mail")]
    transport.release([held(transport)])
    called("produce", "on_success")


def consume(transport: Transport) -> None:
    transport.send(messages(2))
    CALLS.clear()
    assert len(transport.receive(["mail"], 5, LONG, 5, "w")) == 2
    assert [name for name, _ in CALLS] == ["consume"] * 3, "until it returns None"
    CALLS.clear()


def on_success(transport: Transport) -> None:
    transport.ack([held(transport)])
    called("on_success")
    delivery = held(transport)
    transport.bury([(delivery, letter(delivery))])
    called("produce", "on_success")


class WithDelete:
    """A consumer from before `on_success` had its name."""

    def __init__(self, **options: Any) -> None:
        self.inner = MyConsumer(**options)
        self.consume, self.shutdown = self.inner.consume, self.inner.shutdown
        self.on_fail = self.inner.on_fail

    def delete(self, message_context: Any) -> None:
        CALLS.append(("delete", message_context))
        self.inner.on_success(message_context)


def on_success_or_delete(transport: Transport) -> None:
    on_success(transport)
    older = VolleyTransport(WithDelete, MyProducer, poll=0.01)
    older.ack([held(older)])
    called("delete")
    older.close()


def on_fail(transport: Transport) -> None:
    held(transport)
    transport.close()
    assert "on_fail" in {name for name, _ in CALLS}


def on_fail_anew(transport: Transport) -> None:
    """What it was called for has three verbs."""
    for verb in (
        lambda each: transport.release([each]),
        lambda each: transport.replace([(each, message(each.id))]),
        lambda each: transport.bury([(each, letter(each))]),
    ):
        assert verb(held(transport)) == []
        called("produce", "on_success")
        transport.purge("mail")


def shutdown(transport: Transport) -> None:
    held(transport)
    transport.close()
    assert [name for name, _ in CALLS].count("shutdown") == 2, "of the consumer and the producer"


def the_message(transport: Transport) -> None:
    delivery = held(transport)
    assert bytes(delivery.frame) == message("held").frame


def the_receipt(transport: Transport) -> None:
    delivery = held(transport)
    transport.ack([delivery])
    ((_, args),) = CALLS
    assert args == (1,), "the connector's own context"
    assert transport.ack([delivery]) == [delivery], "and the receipt serves once"


def options(transport: Transport) -> None:
    made = []

    class Consumer(MyConsumer):
        def __post_init__(self) -> None:
            made.append((self.queue_name, self.host, {**self.config, "file": ""}))
            super().__post_init__()

    file = os.environ["VOLLEY_FILE"]
    other = VolleyTransport(Consumer, MyProducer, host="h", config={"file": file, "x": 1})
    other.receive(["mail"], 1, LONG, 0, "w")
    assert made == [("mail", "h", {"file": "", "x": 1})]
    other.close()


def in_queues(transport: Transport) -> None:
    """`value`, `profile`, `data_model`, the dead-letter queue: what `settings_of` makes of them."""
    found = settings_of(
        {
            "a": {"value": "prod.a", "profile": "confluent", "data_model": "models.A"},
            "dlq": {"profile": "confluent-dlq"},
        },
        dead_letter_queue="dlq",
    )
    assert found["queues"]["a"] == {
        "profile": "confluent",
        "name": "prod.a",
        "task": "a",
        "model": "models.A",
        "dead_letters": "dlq",
    }
    app = Taskline.from_config(found, name="x", broker="memory://x")
    assert app.queues.routes["a"].dead_letters == "dlq"


def serializers(transport: Transport) -> None:
    app = Taskline("x", broker="memory://x", queues={"a": {"serializer": "msgpack"}})
    assert app.queues.serializer("a") == "msgpack"


def any_type_is_a_model(transport: Transport) -> None:
    app = Taskline("x", broker="memory://x-model", queues={"a": {"model": dict[str, int]}})
    with pytest.raises(TypeError, match="the queue a carries"):
        app.send_task("t", ({"n": "no number"},), queue="a")


def fan_out(transport: Transport) -> None:
    app = Taskline("x", broker="memory://x-fan", backend="memory://x-fan")
    got: list[int] = []

    @app.task(queue="out")
    def store(number: int) -> None:
        got.append(number)

    @app.task(queue="in")
    def work(number: int) -> None:
        return emit(store.si(number + 1))

    worker = Worker(app, WorkerOptions())
    worker.start()
    work.delay(1)
    until = app.clock.monotonic() + 30
    while not got:
        assert app.clock.monotonic() < until
        app.clock.sleep(0.01)
    worker.stop(5)
    app.close()


def paths(transport: Transport) -> None:
    path = "taskline_contrib.volley.VolleyTransport"
    broker = {
        "type": path,
        "consumer": "contrib.volley_plugin.MyConsumer",
        "producer": "contrib.volley_plugin.MyProducer",
    }
    with Taskline("x", broker=broker) as app:
        assert type(app.transport).__name__ == "VolleyTransport"


VOLLEY_CALLS = {
    "`produce(queue_name, message, message_context)`": produce,
    "`consume()`": consume,
    "`on_success(message_context)`, or `delete` where there is none": on_success_or_delete,
    "`on_fail(message_context)`": on_fail,
    "`shutdown()`": shutdown,
}
VOLLEY_ANEW = {
    "producer `produce(queue, message)`": produce,
    "consumer `consume()`": consume,
    "`on_success(message_context)`, earlier `delete`": on_success_or_delete,
    "producer `shutdown()`, consumer `shutdown()`": shutdown,
    "`on_fail(message_context)`": on_fail_anew,
    "`QueueMessage.message_context`": the_receipt,
    "`QueueMessage.message`": the_message,
    "`queue_name`, `host`, `config` of a connector": options,
    "a queue's `value`": in_queues,
    "`profile`": in_queues,
    '`return [("queue", message)]`': fan_out,
    "`data_model`": in_queues,
    "`serializer`": serializers,
    "`model_handler`": any_type_is_a_model,
    "`producer`, `consumer`: dotted paths": paths,
    "a dead-letter-queue": in_queues,
}


@pytest.mark.parametrize("row", VOLLEY_CALLS)
def test_volleys_calls(row: str, volley: Transport) -> None:
    VOLLEY_CALLS[row](volley)


@pytest.mark.parametrize("row", VOLLEY_ANEW)
def test_volleys_calls_and_what_they_are_here(row: str, volley: Transport) -> None:
    VOLLEY_ANEW[row](volley)


@pytest.mark.parametrize(
    ("page", "head", "tried"),
    [
        ("contrib/django-q.md", "| Django Q | when |", DJANGO_Q_CALLS),
        ("extending.md", "| Django Q | here |", DJANGO_Q_ANEW),
        ("contrib/volley.md", "| Volley | when |", VOLLEY_CALLS),
        ("extending.md", "| Volley | here |", VOLLEY_ANEW),
    ],
)
def test_all_rows_are_tried(page: str, head: str, tried: dict[str, Any]) -> None:
    table = (DOCS / page).read_text().partition(head)[2].partition("\n\n")[0]
    rows = [row.split(" | ")[0].removeprefix("| ") for row in table.splitlines()[2:]]
    assert rows == [re.sub(r"\s+", " ", row) for row in tried]
