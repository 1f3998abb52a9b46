from __future__ import annotations

from typing import Any

import pytest

from taskline.errors import ConfigurationError
from taskline.kafka.client import new_producer
from taskline.kafka.location import locate
from taskline.transports import open_transport


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BROKERS", "PRODUCER_BROKERS", "CONSUMER_BROKERS", "KEY", "SECRET"):
        monkeypatch.delenv(f"KAFKA_{name}", raising=False)
    monkeypatch.delenv("KAFKA_CONSUMER_GROUP", raising=False)


def test_a_url() -> None:
    found = locate("kafka://a,b:9093?group=shop&partitions=3&linger.ms=5&prefix=")
    assert found.producer["bootstrap.servers"] == found.brokers == "a,b:9093"
    assert (found.group, found.partitions, found.prefix) == ("shop", 3, "")
    assert found.producer["linger.ms"] == found.consumer["linger.ms"] == "5"
    assert found.topic("mail") == "mail"


def test_a_password_logs_in_over_tls_and_is_not_shown() -> None:
    found = locate("kafka://ann:s%40crt@a?sasl.mechanism=SCRAM-SHA-256")
    assert found.consumer["sasl.username"] == "ann"
    assert found.consumer["sasl.password"] == "s@crt"
    assert found.consumer["security.protocol"] == "SASL_SSL"
    assert found.consumer["sasl.mechanism"] == "SCRAM-SHA-256"
    assert "s@crt" not in str(found)
    with pytest.raises(ConfigurationError) as refused:
        locate("kafka://ann:secret@a?grup=x")
    assert "secret" not in str(refused.value)


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "BROKERS": "x", "PRODUCER_BROKERS": "p", "KEY": "ann", "SECRET": "s", "CONSUMER_GROUP": "g",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"KAFKA_{name}", value)
    found = locate("kafka://")
    assert found.producer["bootstrap.servers"] == "p"
    assert found.consumer["bootstrap.servers"] == "x"
    assert found.consumer["sasl.username"] == "ann"
    assert found.consumer["sasl.mechanism"] == "PLAIN"
    assert found.group == "g"
    assert locate("kafka://mine?group=h").producer["bootstrap.servers"] == "mine"
    assert locate("kafka://mine?group=h").group == "h"


def test_brokers_of_one_side_alone_serve_the_other_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_PRODUCER_BROKERS", "p")
    assert locate("kafka://").consumer["bootstrap.servers"] == "p"
    monkeypatch.setenv("KAFKA_CONSUMER_BROKERS", "c")
    assert locate("kafka://").consumer["bootstrap.servers"] == "c"
    assert locate("kafka://").producer["bootstrap.servers"] == "p"


def test_who_commits_where_messages_come_from_writes_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[dict[str, Any]] = []
    monkeypatch.setattr("taskline.kafka.client.Producer", made.append)
    monkeypatch.setenv("KAFKA_PRODUCER_BROKERS", "p:1")
    monkeypatch.setenv("KAFKA_CONSUMER_BROKERS", "c:1")
    location = locate("kafka://?linger.ms=5")
    new_producer(location)
    new_producer(location, **{"transactional.id": "t"})
    assert [each["bootstrap.servers"] for each in made] == ["p:1", "c:1"]
    assert [each["linger.ms"] for each in made] == ["5", "5"]
    there = location.of_producers()
    assert str(there) == "kafka://p:1"
    assert there.consumer["bootstrap.servers"] == "p:1"


def test_a_user_without_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_KEY", "ann")
    with pytest.raises(ConfigurationError, match=r"'ann' has no password.*KAFKA_SECRET"):
        locate("kafka://a")
    monkeypatch.setenv("KAFKA_SECRET", "s")
    assert locate("kafka://a").producer["sasl.password"] == "s"
    own = locate({"type": "kafka", "brokers": "a", "security.protocol": "SASL_PLAINTEXT"})
    assert own.consumer["security.protocol"] == "SASL_PLAINTEXT"


def test_a_producer_that_would_lose_messages() -> None:
    with pytest.raises(ConfigurationError, match="acks=0 would lose messages"):
        locate({"type": "kafka", "brokers": "a", "producer": {"acks": 0}})


@pytest.mark.parametrize("value", [False, "false", "0"])
def test_a_producer_without_transactions(value: object) -> None:
    with pytest.raises(ConfigurationError, match=r"enable.idempotence=.* would double messages"):
        locate({"type": "kafka", "brokers": "a", "enable.idempotence": value})
    assert locate("kafka://a?enable.idempotence=true").producer["enable.idempotence"] == "true"


def test_levels_of_priority_are_topics() -> None:
    found = locate("kafka://a?priorities=3")
    topics = ["taskline.mail.priority-0", "taskline.mail", "taskline.mail.priority-2"]
    assert found.topics("mail") == topics
    assert {found.queue(topic) for topic in topics} == {"mail"}
    assert [found.level_of(topic) for topic in topics] == [0, 1, 2]
    assert [found.level(priority) for priority in range(10)] == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
    with pytest.raises(ConfigurationError, match="another name"):
        found.topic("mail.priority-2")
    usual = locate("kafka://a")
    assert usual.topics("mail.priority-2") == ["taskline.mail.priority-2"]
    assert usual.queue("taskline.mail.priority-2") == "mail.priority-2"


def test_addresses_are_librdkafkas() -> None:
    for brokers in ("a", "a:9092", "[::1]", "[::1]:9092", "::1", "sasl_ssl://a:9092", "a:1, b:2"):
        assert locate({"type": "kafka", "brokers": brokers}).brokers == brokers


def test_a_mapping() -> None:
    found = locate(
        {
            "type": "kafka",
            "brokers": ["a:1", "b:2"],
            "config": {"client.id": "c"},
            "producer": {"acks": "1"},
            "socket.timeout.ms": 5000,
        }
    )
    assert found.brokers == "a:1,b:2"
    assert found.producer["acks"] == "1"
    assert "acks" not in found.consumer
    assert found.consumer["client.id"] == "c"
    assert found.consumer["socket.timeout.ms"] == 5000


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("kafka://", "names no broker"),
        ("kafka://a/topic", "has a path"),
        ("kafka://a?nonsense=1", "no option 'nonsense'"),
        ("kafka://a?group.id=x", "group=…"),
        ("kafka://a?enable.auto.commit=true", "not yours to set"),
        ("kafka://a?ordering=fifo", "use none or key or partition"),
        ("kafka://a?partitions=0", "partitions='0': give a whole number of 1 or more"),
        ("kafka://a?timeout=soon", "timeout='soon': give a number above 0"),
        ("kafka://a:99999", "broker 'a:99999' of Kafka has no port: write host or host:9092"),
        ("kafka://a:1,b:", "broker 'b:' of Kafka has no port"),
        ("kafka://[::1]:kafka", r"broker '\[::1\]:kafka' of Kafka has no port"),
        ("kafka://a?prefix=a/b", "prefix='a/b'"),
        ("kafka://a?priorities=11", "10 at most"),
    ],
)
def test_what_is_wrong_is_said(url: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said.replace("?", r"\?")):
        locate(url)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "the kafka mapping names no broker.*brokers="),
        ({"brokers": 5}, "brokers=5: give host:port"),
        ({"brokers": None}, "brokers=None: give host:port"),
        ({"brokers": [{"host": "a"}]}, "give host:port, or a list of these"),
        ({"brokers": "a", "prefix": 5}, "prefix must be a text"),
        ({"brokers": "a", "group": ["x"]}, "group must be a text"),
        ({"brokers": "a", "username": "u", "password": 6}, "password must be a text"),
        ({"brokers": "a", "partitions": 1.5}, "partitions=1.5: give a whole number"),
        ({"brokers": "a", "timeout": True}, "timeout=True: give a number"),
        ({"brokers": "a", "producer": "x"}, "producer is a mapping"),
    ],
)
def test_what_is_wrong_in_a_mapping(given: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        locate({"type": "kafka", **given})


@pytest.mark.parametrize("queue", ["a b", "é", "_dead_letters", "x" * 250, "a/b", ""])
def test_a_queue_that_cannot_be_a_topic(queue: str) -> None:
    location = locate("kafka://a")
    if queue:
        with pytest.raises(ConfigurationError, match="cannot be a Kafka topic"):
            location.topic(queue)


def test_a_pattern_is_checked() -> None:
    location = locate("kafka://a")
    assert location.pattern("mail") is None
    assert location.pattern("^orders-.*") == "^taskline\\.[^_].*"
    with pytest.raises(ConfigurationError, match="no regular expression"):
        location.pattern("^(")


def test_it_is_opened_by_its_url_and_connects_to_nothing_yet() -> None:
    transport = open_transport("kafka://127.0.0.1:1")
    assert transport.scheme == "kafka"
    transport.close()


@pytest.mark.parametrize("name", ["message.timeout.ms", "delivery.timeout.ms"])
def test_a_patient_user_can_have_transactions(name: str) -> None:
    location = locate(f"kafka://127.0.0.1:1?timeout=30&{name}=60000")
    new_producer(location, **{"transactional.id": "t"})
