from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import count

import pytest

from integration.conftest import server_or_skip
from integration.servers.rabbitmq import RabbitMQServer
from integration.servers.redis import RedisServer
from integration.servers.sqs import SQSServer

_numbers = count(1)


@pytest.fixture(scope="session")
def rabbitmq_amqp() -> Iterator[str]:
    """The URL, for kombu, of a RabbitMQ for tests that need nothing special."""
    given = os.environ.get("TASKLINE_TEST_RABBITMQ")
    if given:
        yield given
    else:
        for server in server_or_skip(RabbitMQServer):
            yield server.url


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A Redis to speak to through kombu."""
    yield from server_or_skip(RedisServer)


@pytest.fixture(scope="session")
def sqs_server() -> Iterator[SQSServer]:
    """A stand-in for SQS."""
    yield from server_or_skip(SQSServer)


@pytest.fixture
def own_prefix() -> str:
    """Begins the names of the test's own queues."""
    return f"test-{os.getpid()}-{next(_numbers)}."


@pytest.fixture
def rabbitmq_url(rabbitmq_amqp: str, own_prefix: str) -> str:
    """Queues of the test's own on the session's RabbitMQ."""
    return f"kombu+{rabbitmq_amqp}?prefix={own_prefix}&timeout=30"
