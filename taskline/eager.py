"""The setting `eager`: `delay()` runs the task here, as a worker would have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from taskline.context import Request, activate, deactivate
from taskline.emitting import Emitted, messages
from taskline.errors import ConfigurationError, Ignore, UnknownTask
from taskline.hooks import complete
from taskline.message import Message, Outcome
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
        request = Request(header, deliveries=deliveries)
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
            value = _run(task, request, *task.signature.convert(args, kwargs))
        except Ignore:
            value = None
        except KeyboardInterrupt:
            raise
        except BaseException as raised:  # SystemExit too ends the task, not the caller
            error = raised
        emitted, value = (value, value.result) if type(value) is Emitted else (None, value)
        now = app.now()
        try:
            delay = next_attempt(policy, header, error, now, result=value, started=started)
        except ConfigurationError as wrong:
            delay, error = None, wrong
        _tell(task, request, value, error, delay)
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
        if request.reported is not None:
            known["progress"] = request.reported
        if emitted is not None:
            for each in messages(app, emitted, header):
                app.run_here(each)
        if error is None:
            return success(codec, header, value, **known)
        return failure(codec, header, error, **known)


def _run(task: Task[..., Any], request: Request, args: Any, kwargs: Any) -> Any:
    token = activate(request)
    try:
        if task.hooks is not None:
            task.hooks.call("before_run", request)
        value = task.run(args, kwargs)
        return complete(value) if task.is_async else value
    finally:
        deactivate(token)


def _tell(
    task: Task[..., Any] | None,
    request: Request,
    value: Any,
    error: BaseException | None,
    delay: float | None,
) -> None:
    """Tell the middleware what became of a run. There are no dead letters here."""
    if task is None or task.hooks is None:
        return
    token = activate(request)
    try:
        task.hooks.call("after_run", request, error)
        if delay is not None:
            task.hooks.call("retry", request, error or unsatisfying(value), delay)
        elif error is not None:
            task.hooks.call("failure", request, error)
        else:
            task.hooks.call("success", request, value)
    finally:
        deactivate(token)
