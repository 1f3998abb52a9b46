"""Many messages in a row, some thousands of them under way at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from integration.servers.kafka import KafkaServer, RunningKafka
from taskline import Taskline
from taskline.errors import TransportError
from taskline.result import ResultSet

Open = Callable[[str], Taskline]


@pytest.fixture
def opened(kafka_server: KafkaServer | RunningKafka, kafka_name: str) -> Iterator[Open]:
    """Opens apps on the test's own topics."""
    apps: list[Taskline] = []

    def make(options: str) -> Taskline:
        own = f"prefix={kafka_name}.&group={kafka_name}&timeout=30"
        apps.append(Taskline("shop", broker=f"{kafka_server.url}?{own}&{options}"))
        return apps[-1]

    yield make
    for app in apps:
        app.close()


def received(app: Taskline, count: int) -> list[str]:
    """The ids of so many messages, as they come."""
    found: list[str] = []
    while len(found) < count:
        deliveries = app.transport.receive(["default"], 1000, 30.0, 30.0, "reader")
        assert deliveries, f"{len(found)} of {count} came"
        found += [each.id for each in deliveries]
        app.transport.ack(deliveries)
    return found


@pytest.mark.parametrize("how", ["map", "batch"])
def test_all_are_stored_in_the_order_of_the_calls(opened: Open, how: str) -> None:
    app = opened("partitions=1")

    @app.task
    def double(number: int) -> int: ...

    results: ResultSet[int]
    if how == "map":
        results = double.map(range(20_000))
    else:
        with app.batch() as results:
            for number in range(20_000):
                double.delay(number)
    assert len(results) == 20_000
    (stats,) = app.transport.stats(["default"])
    assert stats.ready == 20_000
    assert received(app, 20_000) == results.ids


def test_keys_keep_their_order(opened: Open) -> None:
    app = opened("partitions=4")

    @app.task
    def double(number: int) -> int: ...

    of_key: dict[str, list[str]] = {"a": [], "b": [], "c": []}
    with app.batch():
        for number in range(6000):
            key = "abc"[number % 3]
            sent = double.options(headers={"kafka_key": key}).delay(number)
            of_key[key].append(sent.id)
    found = received(app, 6000)
    for ids in of_key.values():
        wanted = set(ids)
        assert [each for each in found if each in wanted] == ids


def test_one_that_the_broker_refuses(
    opened: Open, kafka_server: KafkaServer | RunningKafka, kafka_name: str
) -> None:
    """`results` has only thousands that are stored, every one of them."""
    admin = AdminClient({"bootstrap.servers": kafka_server.address})
    new = NewTopic(f"{kafka_name}.default", 1, 1, config={"max.message.bytes": "2000"})
    admin.create_topics([new])[new.topic].result(30)
    app = opened("batch.num.messages=5")

    @app.task
    def show(text: str) -> None: ...

    texts = ["x" * 3000 if number == 1500 else "x" for number in range(4000)]
    with pytest.raises(TransportError, match="take a message"), app.batch() as results:
        show.map(texts)
    assert 1000 <= len(results) < 4000
    (stats,) = app.transport.stats(["default"])
    stored = received(app, stats.ready or 0)
    assert set(results.ids) <= set(stored)
