"""The setting `eager`: `delay()` runs the task here, as a worker would have."""

from __future__ import annotations

import threading
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from taskline.context import Request, activate, deactivate
from taskline.errors import ConfigurationError, Ignore, UnknownTask
from taskline.message import Header, Message, Outcome
from taskline.outcomes import failure, next_attempt, success, successor, unsatisfying

if TYPE_CHECKING:
    from taskline.app import Taskline
    from taskline.task import Task


def run(app: Taskline, message: Message, task: Task[..., Any] | None = None) -> Outcome:
    """The final outcome of a message's task, or of `task`, run in this thread.

    The message is read from its bytes, so that arguments arrive converted, as
    from a broker. Retries follow at once, whatever their delay; timeouts are not
    enforced. `KeyboardInterrupt` goes through.
    """
    codec = app.codec
    header, body = codec.open(message.frame)
    task = task or app.tasks.get(header.task)
    policy = None if task is None else task.policy
    deliveries = 0
    while True:
        deliveries += 1
        started = app.now()
        value: Any = None
        error: BaseException | None = None
        try:
            if task is None:
                raise UnknownTask(f"no task {header.task!r} is registered here")
            args, kwargs = codec.arguments(header, body)
            if header.flow is not None:
                from taskline.workflows.inputs import completed

                args, kwargs = completed(app, task, header.flow, args, kwargs, {})
            model = app.queues.model(header.queue)
            if model is not None:
                args = model.convert(header.task, args, kwargs)
            value = _run(task, header, deliveries, *task.signature.convert(args, kwargs))
        except Ignore:
            value = None
        except KeyboardInterrupt:
            raise
        except BaseException as raised:  # SystemExit too ends the task, not the caller
            error = raised
        now = app.now()
        try:
            delay = next_attempt(policy, header, error, now, result=value, started=started)
        except ConfigurationError as wrong:
            delay, error = None, wrong
        if delay is not None:
            header = successor(header, error or unsatisfying(value), delay, now, started)
            continue
        known: dict[str, Any] = {
            "deliveries": deliveries,
            "worker": "eager",
            "started": started,
            "finished": now,
            "ttl": app.settings.result_ttl if header.result_ttl is None else header.result_ttl,
        }
        if error is None:
            return success(codec, header, value, **known)
        return failure(codec, header, error, **known)


def _run(task: Task[..., Any], header: Header, deliveries: int, args: Any, kwargs: Any) -> Any:
    token = activate(Request(header, deliveries=deliveries))
    try:
        value = task.run(args, kwargs)
        return _complete(value) if task.is_async else value
    finally:
        deactivate(token)


def _complete(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine to its end, in a thread of its own where this one runs a loop."""
    import asyncio
    from contextvars import copy_context

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    ended: list[Any] = []
    context = copy_context()

    def complete() -> None:
        try:
            ended[:] = [context.run(asyncio.run, coroutine), None]
        except BaseException as error:
            ended[:] = [None, error]

    thread = threading.Thread(target=complete, name="taskline-eager")
    thread.start()
    thread.join()
    value, error = ended
    if error is not None:
        raise error
    return value
