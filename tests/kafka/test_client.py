"""Clients of Kafka, as far as they need no broker."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("confluent_kafka")

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from taskline.errors import ConfigurationError, TransportError
from taskline.kafka.client import new_producer
from taskline.kafka.cluster import Cluster
from taskline.kafka.location import locate


def test_a_long_timeout_is_one_that_transactions_bear() -> None:
    """`timeout=60`: the movers of delayed messages and who retries have shorter transactions."""
    location = locate("kafka://localhost:1?timeout=60")
    new_producer(location, **{"transactional.id": "x", "transaction.timeout.ms": 10_000})


def test_who_asks_the_cluster_finds_it_and_logs_in_as_others_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[dict[str, Any]] = []
    monkeypatch.setattr("taskline.kafka.client.AdminClient", made.append)
    token = lambda config: ("token", 1e12)  # noqa: E731
    everywhere = {"broker.address.family": "v4", "socket.keepalive.enable": True, "oauth_cb": token}
    spec = {"type": "kafka", "brokers": "localhost:1", "config": everywhere}
    Cluster(locate({**spec, "consumer": {"fetch.min.bytes": 9}}))._admin()
    assert {**made[0], **everywhere} == made[0]
    assert "fetch.min.bytes" not in made[0]


def test_topics_that_were_there_are_looked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(locate("kafka://localhost:1?create_topics=never"))
    there = {"mail": 1}
    monkeypatch.setattr(cluster, "topics", lambda: there)
    cluster.need("mail")
    del there["mail"]
    cluster.need("mail")
    cluster.forget()
    with pytest.raises(ConfigurationError, match="no topic 'mail'"):
        cluster.need("mail")


class Coordinator:
    """A consumer whose group's coordinator fails so often, with `code`, and answers then."""

    def __init__(self, code: int, fails: int) -> None:
        self.code, self.fails, self.asked = code, fails, 0

    def committed(self, places: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        self.asked += 1
        if self.asked <= self.fails:
            raise KafkaException(KafkaError(self.code))
        return [TopicPartition(place.topic, place.partition, 7) for place in places[:1]]


def test_the_first_group_of_a_new_cluster_takes_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(locate("kafka://localhost:1?timeout=60"))
    coordinator = Coordinator(KafkaError.COORDINATOR_LOAD_IN_PROGRESS, 2)
    monkeypatch.setattr(cluster, "_reader_of", lambda group: coordinator)
    marks = cluster.group_marks("shop", {"mail": 2})
    assert {place: each.offset for place, each in marks.items()} == {("mail", 0): 7}
    assert coordinator.asked == 3


@pytest.mark.parametrize(
    ("code", "timeout"),
    [(KafkaError.GROUP_AUTHORIZATION_FAILED, 60), (KafkaError.NOT_COORDINATOR, 0.01)],
)
def test_other_errors_of_a_group_and_those_that_last(
    monkeypatch: pytest.MonkeyPatch, code: int, timeout: float
) -> None:
    cluster = Cluster(locate(f"kafka://localhost:1?timeout={timeout}"))
    monkeypatch.setattr(cluster, "_reader_of", lambda group: Coordinator(code, 1000))
    with pytest.raises(TransportError, match="cannot tell the offsets of group 'shop'"):
        cluster.group_marks("shop", {"mail": 1})


def test_without_topics_nobody_is_asked() -> None:
    assert Cluster(locate("kafka://localhost:1")).group_marks("shop", {}) == {}


class Offsets:
    """An admin client whose broker refuses the first questions."""

    def __init__(self, refuses: int) -> None:
        self.refuses = refuses

    def list_offsets(
        self, asked: dict[TopicPartition, Any], request_timeout: float
    ) -> dict[TopicPartition, Future[Any]]:
        answer: Future[Any] = Future()
        if self.refuses:
            self.refuses -= 1
            error = KafkaError(KafkaError.NOT_LEADER_FOR_PARTITION)
            answer.set_exception(KafkaException(error))
        else:
            answer.set_result(SimpleNamespace(offset=5))
        return dict.fromkeys(asked, answer)


@pytest.mark.parametrize(("refuses", "timeout"), [(2, 60), (1000, 0.01)])
def test_a_partition_that_moves_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, refuses: int, timeout: float
) -> None:
    cluster, admin = Cluster(locate(f"kafka://localhost:1?timeout={timeout}")), Offsets(refuses)
    monkeypatch.setattr(cluster, "topics", lambda: {"mail": 1})
    monkeypatch.setattr(cluster, "_admin", lambda: admin)
    if timeout < 1:
        with pytest.raises(TransportError, match="cannot tell its offsets"):
            cluster.ends(["mail"])
    else:
        assert cluster.ends(["mail"]) == {("mail", 0): (5, 5)}
        assert cluster.end("mail") == 5
