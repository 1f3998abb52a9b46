"""Clients of Kafka, as far as they need no broker."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest

pytest.importorskip("confluent_kafka")

from confluent_kafka import (
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    TopicPartition,
)

from taskline.errors import TransportError
from taskline.kafka.client import Cluster, new_producer
from taskline.kafka.location import locate


def test_a_long_timeout_is_one_that_transactions_bear() -> None:
    """`timeout=60`: the movers of delayed messages and who retries have shorter transactions."""
    location = locate("kafka://localhost:1?timeout=60")
    new_producer(location, **{"transactional.id": "x", "transaction.timeout.ms": 10_000})


class Coordinator:
    """An admin client whose group's coordinator fails so often, with `code`, and answers then."""

    def __init__(self, code: int, fails: int) -> None:
        self.code, self.fails, self.asked = code, fails, 0

    def list_consumer_group_offsets(self, groups: list[Any], request_timeout: float) -> Any:
        future: Future[Any] = Future()
        self.asked += 1
        if self.asked <= self.fails:
            future.set_exception(KafkaException(KafkaError(self.code)))
        else:
            place = TopicPartition("mail", 0, 7)
            future.set_result(ConsumerGroupTopicPartitions(groups[0].group_id, [place]))
        return {groups[0].group_id: future}


def test_the_first_group_of_a_new_cluster_takes_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(locate("kafka://localhost:1?timeout=60"))
    coordinator = Coordinator(KafkaError.COORDINATOR_LOAD_IN_PROGRESS, 2)
    monkeypatch.setattr(cluster, "_admin", lambda: coordinator)
    assert cluster.group_marks("shop")["mail", 0].offset == 7
    assert coordinator.asked == 3


@pytest.mark.parametrize(
    ("code", "timeout"),
    [(KafkaError.GROUP_AUTHORIZATION_FAILED, 60), (KafkaError.NOT_COORDINATOR, 0.01)],
)
def test_other_errors_of_a_group_and_those_that_last(
    monkeypatch: pytest.MonkeyPatch, code: int, timeout: float
) -> None:
    cluster = Cluster(locate(f"kafka://localhost:1?timeout={timeout}"))
    monkeypatch.setattr(cluster, "_admin", lambda: Coordinator(code, 1000))
    with pytest.raises(TransportError, match="cannot tell the offsets of group 'shop'"):
        cluster.group_marks("shop")
