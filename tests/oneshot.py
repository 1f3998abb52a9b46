"""A worker in a function: runs what is due now and returns, for tests of the callers' side."""

from __future__ import annotations

from typing import Any

from taskline import Taskline
from taskline.context import Request, activate, deactivate
from taskline.message import DeadLetter, Delivery
from taskline.outcomes import failure, next_attempt, retrying, success, successor


def work(app: Taskline, *queues: str) -> int:
    """Run every due message of these queues once; returns how many there were."""
    names = queues or (app.settings.queue,)
    deliveries = app.transport.receive(names, 1000, 30.0, 0.0, "oneshot")
    for delivery in deliveries:
        _run(app, delivery)
    return len(deliveries)


def _run(app: Taskline, delivery: Delivery) -> None:
    header, body = app.codec.open(delivery.frame)
    task = app.tasks[header.task]
    args, kwargs = task.signature.convert(*app.codec.arguments(header, body))
    now = app.now()
    known: dict[str, Any] = {
        "deliveries": delivery.deliveries,
        "worker": "oneshot",
        "started": now,
        "finished": now,
        "ttl": app.settings.result_ttl if header.result_ttl is None else header.result_ttl,
    }
    backend = app.backend
    token = activate(Request(header, deliveries=delivery.deliveries, receipt=delivery.receipt))
    try:
        outcome = success(app.codec, header, task.run(args, kwargs), **known)
    except Exception as error:
        delay = next_attempt(task.policy, header, error, now)
        if delay is not None:
            if backend is not None:
                backend.store([retrying(app.codec, header, error, retry_at=now + delay, **known)])
            after = successor(header, error, delay, now, now)
            app.transport.replace([(delivery, app.codec.reframe(after, body))])
            return
        outcome = failure(app.codec, header, error, **known)
    finally:
        deactivate(token)
    if backend is not None:
        backend.store([outcome])
    if outcome.state == "SUCCESS":
        app.transport.ack([delivery])
        return
    letter = DeadLetter(
        id=header.id,
        queue=header.queue,
        reason="failed",
        at=now,
        task=header.task,
        deliveries=delivery.deliveries,
        frame=delivery.frame,
    )
    app.transport.bury([(delivery, letter)])
