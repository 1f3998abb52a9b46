"""Messages that others put into our queues: none stops a worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kombu import Connection, Producer

from taskline import Taskline
from taskline.worker import Worker, WorkerOptions

BOUND = 60.0

HEADERS: dict[str, dict[str, Any]] = {
    "none": {},
    "ours, of wrong types": {
        "taskline-id": 7,
        "taskline-deliveries": "many",
        "taskline-lost": None,
        "taskline-eta": "tomorrow",
    },
    "ours, too large": {"taskline-deliveries": 2**60, "taskline-eta": 1e300},
    "Celery's, of wrong types": {"id": ["x"], "task": 5, "eta": 3, "retries": {}},
    "nested": {"task": {"a": [{"b": None}]}, "id": "nested"},
}


@pytest.mark.parametrize("protocol", ["taskline", "celery"])
def test_what_is_no_message_becomes_a_dead_letter(
    protocol: str, rabbitmq_amqp: str, own_prefix: str, tmp_path: Path
) -> None:
    app = Taskline(
        "shop",
        broker=f"kombu+{rabbitmq_amqp}?prefix={own_prefix}",
        backend=f"sqlite:///{tmp_path}/results.db",
        protocol=protocol,
    )

    @app.task(name="add")
    def add(a: int, b: int) -> int:
        return a + b

    queue = own_prefix + "default"
    app.transport.receive(["default"], 1, 30, 0, "w")  # makes the queue
    with Connection(rabbitmq_amqp) as connection:
        producer = Producer(connection.channel())
        for headers in HEADERS.values():
            for content_type in ("application/x-taskline", "application/json"):
                producer.publish(
                    b"\xff{",
                    routing_key=queue,
                    headers=headers,
                    content_type=content_type,
                    content_encoding="binary",
                )
    worker = Worker(app, WorkerOptions(queues=["default"], threads=1))
    worker.start()
    assert add.delay(1, 2).get(timeout=BOUND) == 3
    until = app.clock.monotonic() + BOUND
    while len(app.transport.dead_letters("default", limit=100)) < 4:  # by their ids
        assert app.clock.monotonic() < until
        app.clock.sleep(0.05)
    worker.stop()
    assert app.transport.stats(["default"])[0].ready == 0
    app.close()
