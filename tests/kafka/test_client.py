"""Clients of Kafka, as far as they need no broker."""

from __future__ import annotations

import pytest

pytest.importorskip("confluent_kafka")

from taskline.kafka.client import new_producer
from taskline.kafka.location import locate


def test_a_long_timeout_is_one_that_transactions_bear() -> None:
    """`timeout=60`: the movers of delayed messages and who retries have shorter transactions."""
    location = locate("kafka://localhost:1?timeout=60")
    new_producer(location, **{"transactional.id": "x", "transaction.timeout.ms": 10_000})
