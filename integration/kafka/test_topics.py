"""Topics that must exist, that come later, that keep an order, or what waits for a month."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from integration.conftest import server_or_skip
from integration.servers.kafka import KafkaServer, RunningKafka
from taskline.clock import SYSTEM_CLOCK, Clock
from taskline.errors import ConfigurationError
from taskline.kafka.cluster import Cluster
from taskline.kafka.location import locate
from taskline.message import Delivery, Message
from taskline.testing.cases.transport import ids, letter, message, messages
from taskline.transports.kafka import KafkaTransport

pytestmark = pytest.mark.skipif(
    not os.environ.get("TASKLINE_TEST_KAFKA_ALL"), reason="minutes: set TASKLINE_TEST_KAFKA_ALL=1"
)

MONTH = 30 * 86400.0
PATIENCE = 30.0
DELAYED, DEAD = {"retention.ms": "-1"}, {"cleanup.policy": "compact"}

Open = Callable[..., KafkaTransport]


class Later(Clock):
    """The system's clock, some time later."""

    ahead = 0.0

    def time(self) -> float:
        return super().time() + self.ahead


@pytest.fixture
def opened(kafka_server: KafkaServer | RunningKafka, kafka_name: str) -> Iterator[Open]:
    """Opens transports on the test's own topics; `options` are more of the URL's."""
    transports: list[KafkaTransport] = []

    def make(options: str = "", url: str = kafka_server.url, clock: Clock = SYSTEM_CLOCK):  # type: ignore[no-untyped-def]
        own = f"prefix={kafka_name}.&group={kafka_name}&partitions=2&session.timeout.ms=1000"
        transports.append(KafkaTransport.from_spec(f"{url}?{own}&{options}", clock))
        return transports[-1]

    yield make
    for each in transports:
        each.close()


@pytest.fixture
def create(
    kafka_server: KafkaServer | RunningKafka, kafka_name: str
) -> Callable[[str, int, dict[str, str]], None]:
    """Makes a topic of the test, as an administrator would."""
    client = AdminClient({"bootstrap.servers": kafka_server.address})

    def make(name: str, partitions: int, settings: dict[str, str]) -> None:
        topic = NewTopic(f"{kafka_name}.{name}", partitions, 1, config=settings)
        for created in client.create_topics([topic]).values():
            created.result(PATIENCE)
        while topic.topic not in client.list_topics(timeout=PATIENCE).topics:
            time.sleep(0.02)

    return make


def taken(
    transport: KafkaTransport, count: int, queue: str = "mail", *, ack: bool = True
) -> list[Delivery]:
    """So many deliveries, acknowledged at once."""
    found: list[Delivery] = []
    end = time.monotonic() + PATIENCE
    while len(found) < count:
        assert time.monotonic() < end, f"{len(found)} of {count}"
        more = transport.receive([queue], count - len(found), 30.0, 0.1, "w")
        if ack:
            assert transport.ack(more) == []
        found += more
    return found


def test_topics_that_must_exist(opened: Open, create: Callable[..., None], kafka_name: str) -> None:
    transport = opened("create_topics=never")
    missing = f"no topic '{re.escape(kafka_name)}.{{}}' and create_topics=never.*kafka-topics.sh"
    with pytest.raises(ConfigurationError, match=missing.format("mail")):
        transport.send([message()])
    create("mail", 2, {})
    transport.send([message("now")])
    with pytest.raises(ConfigurationError, match=missing.format("_delayed") + ".*--partitions 13"):
        transport.send([message("soon", eta=time.time() + 1)])
    with pytest.raises(ConfigurationError, match=missing.format("_delayed")):
        transport.receive(["mail"], 1, 30.0, 0.0, "w")
    create("_delayed", 13, DELAYED)
    with pytest.raises(ConfigurationError, match=missing.format("_dead_letters")):
        transport.receive(["mail"], 1, 30.0, 0.0, "w")
    create("_dead_letters", 1, DEAD)
    transport.send([message("soon", eta=time.time() + 1)])
    assert sorted(ids(taken(transport, 2))) == ["now", "soon"]
    transport.send([message("bad")])
    (bad,) = taken(transport, 1, ack=False)
    assert transport.bury([(bad, letter(bad))]) == []
    assert ids(transport.dead_letters()) == ["bad"]


@pytest.mark.parametrize(
    ("name", "partitions", "settings", "said"),
    [
        ("_delayed", 13, {"retention.ms": "86400000"}, "retention.ms=86400000, not -1"),
        ("_delayed", 13, {**DELAYED, "cleanup.policy": "compact"}, "cleanup.policy=compact"),
        ("_delayed", 4, DELAYED, "has 4 partitions, and needs 13"),
        ("_dead_letters", 1, {}, "cleanup.policy=delete, not compact"),
    ],
)
def test_topics_that_would_lose_what_they_keep(
    opened: Open,
    create: Callable[..., None],
    name: str,
    partitions: int,
    settings: dict[str, str],
    said: str,
) -> None:
    create(name, partitions, settings)
    other = {"_delayed": ("_dead_letters", 1, DEAD), "_dead_letters": ("_delayed", 13, DELAYED)}
    create(*other[name])
    create("mail", 1, {})
    with pytest.raises(ConfigurationError, match=said):
        opened("create_topics=never").receive(["mail"], 1, 30.0, 0.0, "w")


def test_a_topic_that_forgets_waiting_tasks_is_told_of(
    opened: Open, create: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    create("mail", 1, {"retention.ms": "3600000"})
    opened().receive(["mail"], 1, 30.0, 0.0, "w")
    assert "retention.ms=3600000, tasks or not" in caplog.text
    caplog.clear()
    opened("retention=3600").receive(["mail"], 1, 30.0, 0.0, "w")
    assert "retention" not in caplog.text


def test_retention_is_of_queues_and_not_of_what_is_delayed(opened: Open, kafka_name: str) -> None:
    transport = opened("retention=1")
    transport.send([message(eta=time.time() + 3600)])
    client = Cluster(locate(f"kafka://{transport.location.brokers}"))
    topics = [f"{kafka_name}.{name}" for name in ("mail", "_delayed")]
    found = client._settings(topics, ["retention.ms"])
    assert [found[topic]["retention.ms"] for topic in topics] == ["1000", "-1"]


def test_a_pattern_serves_topics_that_come_later(opened: Open) -> None:
    transport, sender = opened(), opened()
    sender.send([message("first", "orders-a"), message("other", "mail")])
    assert ids(taken(transport, 1, "^orders-.*")) == ["first"]
    sender.send([message("second", "orders-b")])
    assert ids(taken(transport, 1, "^orders-.*")) == ["second"]
    assert transport.receive(["^orders-.*"], 1, 30.0, 0.2, "w") == []
    assert ids(taken(transport, 1)) == ["other"]


def keyed(id: str, key: str) -> Message:
    found = message(id)
    found.header.headers = {"kafka_key": key}
    return found


def test_the_tasks_of_a_key_run_one_after_another(opened: Open) -> None:
    transport = opened("ordering=key")
    keys = ["a", "b", "c"]
    transport.send([keyed(f"{key}{n}", key) for n in range(4) for key in keys])
    order: dict[str, list[str]] = {key: [] for key in keys}
    held: list[Delivery] = []
    end = time.monotonic() + PATIENCE
    while sum(map(len, order.values())) < 12:
        assert time.monotonic() < end
        held += transport.receive(["mail"], 12, 30.0, 0.1, "w")
        assert len({each.id[0] for each in held}) == len(held), "two of a key at once"
        if len(held) == min(3, sum(len(order[key]) < 4 for key in keys)):
            done = held.pop()
            assert transport.ack([done]) == []
            order[done.id[0]].append(done.id)
    assert order == {key: [f"{key}{n}" for n in range(4)] for key in keys}


def test_the_tasks_of_a_partition_run_one_after_another(opened: Open) -> None:
    transport = opened("ordering=partition")
    transport.send(messages(20))
    order: dict[int, list[int]] = {0: [], 1: []}
    held: list[Delivery] = []
    end = time.monotonic() + PATIENCE
    while sum(map(len, order.values())) < 20:
        assert time.monotonic() < end
        held += transport.receive(["mail"], 20, 30.0, 0.1, "w")
        places = [each.receipt.partition for each in held]
        assert len(set(places)) == len(places), "two of a partition at once"
        for each in held:
            order[each.receipt.partition].append(each.receipt.offset)
        assert transport.ack(held) == []
        held = []
    assert all(found == sorted(found) for found in order.values())


def test_levels_of_priority(opened: Open) -> None:
    """A topic for each of three levels: what is ready of a higher one goes first."""
    transport = opened("priorities=3")
    assert transport.capabilities.priority
    transport.send(
        [message(f"{priority}-{n}", priority=priority) for n in range(3) for priority in (1, 5, 9)]
    )
    (stats,) = transport.stats()
    assert (stats.queue, stats.ready) == ("mail", 9)
    transport.receive(["mail"], 1, 30.0, 5.0, "w")  # the first of any level that was read
    time.sleep(0.5)  # all are read
    order = [each.id[0] for each in taken(transport, 8)]
    assert order == sorted(order, reverse=True)
    transport.send([message(priority=9)])
    assert transport.purge("mail") == 1


def test_a_month_costs_nothing_and_survives_a_restart(kafka_name: str, opened: Open) -> None:
    """The workers' clock is set on: the broker has no part in when something is due."""
    for server in server_or_skip(KafkaServer):
        clock = Later()
        due = time.time() + MONTH
        sender = opened(url=server.url, clock=clock)
        sender.send([message("later", eta=due)])
        worker = opened(url=server.url, clock=clock)
        assert worker.receive(["mail"], 1, 30.0, 1.0, "w") == []
        server.kill()
        server.start()
        assert worker.receive(["mail"], 1, 30.0, 3.0, "w") == []
        ends = worker._cluster.ends([f"{kafka_name}._delayed"])
        assert sum(after for _, after in ends.values()) == 1, "it was moved without need"
        for ahead in (MONTH / 2, MONTH - 60):
            clock.ahead = ahead
            assert worker.receive(["mail"], 1, 30.0, 2.0, "w") == []
        clock.ahead = MONTH + 1
        assert ids(taken(worker, 1)) == ["later"]
        worker.close()
        sender.close()
