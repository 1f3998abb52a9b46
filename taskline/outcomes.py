"""What becomes of a run: its outcome, and whether the task is tried again.

The worker and eager mode both end a run with these functions, so that they
agree. Nothing here talks to a broker or a backend.
"""

from __future__ import annotations

from typing import Any

import msgspec

from taskline import message as m
from taskline.codec import Codec
from taskline.context import Progress
from taskline.errors import Reject, Retry, SerializationError, TaskRejected
from taskline.failures import encode_error, error_line
from taskline.message import Header, Outcome, OutcomeHeader
from taskline.policy import RetryPolicy

_MOST_ERRORS = 10
_RETRIES_WHEN_ASKED = 3
"""How often a task without a policy of its own may `raise Retry`."""


def outcome(
    codec: Codec,
    header: Header,
    state: str,
    value: Any = None,
    *,
    deliveries: int,
    worker: str = "",
    started: float | None = None,
    finished: float | None = None,
    error: dict[str, Any] | None = None,
    ttl: float | None = None,
    retry_at: float | None = None,
    errors: list[str] | None = None,
    children: list[str] | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """The outcome of the task of `header` in `state`. Times are Unix seconds, `ttl` seconds.

    Raises `SerializationError` when `value` cannot be encoded.
    """
    head = OutcomeHeader(  # by position: every run of a task makes one
        m.VERSION,
        header.id,
        state,
        header.task,
        header.queue,
        header.serializer,
        "",
        header.attempt,
        deliveries,
        worker,
        started,
        finished,
        retry_at,
        header.errors if errors is None else errors,
        error,
        header.parent,
        header.root,
    )
    if children:
        head.children = children
    if progress is not None:
        head.progress = progress._asdict()
    return codec.encode_outcome(head, value, sent=header.sent, ttl=ttl)


def success(codec: Codec, header: Header, value: Any, **known: Any) -> Outcome:
    """SUCCESS with `value`; FAILURE when the value cannot be encoded. `known` as for `outcome`."""
    try:
        return outcome(codec, header, m.SUCCESS, value, **known)
    except SerializationError as refused:
        return failure(codec, header, unfit(header, value, refused), **known)


def failure(codec: Codec, header: Header, error: BaseException, **known: Any) -> Outcome:
    """FAILURE with this exception. A `Reject` is told to the caller as `TaskRejected`."""
    if isinstance(error, Reject):
        rejected = TaskRejected(error.reason, exception_type="taskline.errors.Reject")
        error = rejected.with_traceback(error.__traceback__)
    return _telling(codec, header, m.FAILURE, error, known)


def retrying(
    codec: Codec, header: Header, error: BaseException, *, retry_at: float, **known: Any
) -> Outcome:
    """RETRY: this attempt failed, and the next is due at `retry_at` (Unix seconds)."""
    return _telling(codec, header, m.RETRY, error, {**known, "retry_at": retry_at})


def revocation(why: str) -> dict[str, Any]:
    """The error of an outcome that tells why a task was revoked."""
    return {"type": "taskline.errors.TaskRevoked", "message": why}


def more_errors(header: Header, error: BaseException) -> list[str]:
    """The header's list of failed attempts with this one added; ten at most."""
    return [*header.errors, error_line(error)][-_MOST_ERRORS:]


def next_attempt(
    policy: RetryPolicy | None,
    header: Header,
    error: BaseException | None,
    now: float,
    *,
    result: Any = None,
    started: float | None = None,
) -> float | None:
    """Seconds until the task is to be tried again; None when this attempt was the last.

    The attempt ended at `now` with `error`, or without one with `result`; it began at
    `started`. The policy that the message carries goes before `policy`, the task's
    own. A task without a policy that raises `Retry` is tried three times more.
    Raises `ConfigurationError` when the policy is wrong or a function of it fails.
    """
    if header.retry is not None:
        policy = RetryPolicy.from_dict(header.retry)
    if policy is None:
        if not isinstance(error, Retry):
            return None
        policy = RetryPolicy(max=_RETRIES_WHEN_ASKED)
    if error is None and not policy.judges_results:
        return None
    first_run = header.first_run
    if first_run is None:
        first_run = now if started is None else started
    return policy.decide(
        attempt=header.attempt,
        error=error,
        result=result,
        first_run=first_run,
        waited=header.waited,
        now=now,
    )


def unsatisfying(result: Any) -> Retry:
    """The error of an attempt whose result the policy wants to be tried again."""
    return Retry(f"the retry policy does not accept the result {repr(result)[:100]}")


def successor(
    header: Header, error: BaseException, delay: float, now: float, started: float
) -> Header:
    """The header of the next attempt, due `delay` seconds from `now`.

    This attempt began at `started` (Unix seconds) and ended with `error`.
    """
    return msgspec.structs.replace(
        header,
        attempt=header.attempt + 1,
        eta=now + delay,
        first_run=header.first_run if header.first_run is not None else started,
        waited=header.waited + delay,
        errors=more_errors(header, error),
    )


def _telling(
    codec: Codec, header: Header, state: str, error: BaseException, known: dict[str, Any]
) -> Outcome:
    described, errors = encode_error(error), more_errors(header, error)
    try:
        return outcome(codec, header, state, error=described, errors=errors, **known)
    except SerializationError:  # larger than this app allows: the type and the line must do
        short = {"type": described["type"], "message": error_line(error)}
        return outcome(codec, header, state, error=short, errors=errors[-1:], **known)


def unfit(header: Header, value: Any, refused: SerializationError) -> SerializationError:
    """The error of a task whose result cannot be encoded: which task, which type, what to do."""
    kind = type(value)
    return SerializationError(
        f"the result of {header.task}, a {kind.__module__}.{kind.__qualname__}, "
        f"does not fit: {refused}; return plain data, or give the task another serializer="
    )
