from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import count

import pytest

from integration.conftest import server_or_skip
from integration.servers.kafka import KafkaServer, RunningKafka

_numbers = count(1)


@pytest.fixture(scope="session")
def kafka_server() -> Iterator[KafkaServer | RunningKafka]:
    """A broker for tests that need nothing special."""
    given = os.environ.get("TASKLINE_TEST_KAFKA")
    if given:
        yield RunningKafka(given)
    else:
        yield from server_or_skip(KafkaServer)


@pytest.fixture
def kafka_name() -> str:
    """A name that no other test uses."""
    return f"test-{os.getpid()}-{next(_numbers)}"
