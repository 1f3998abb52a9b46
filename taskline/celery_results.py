"""Results as Celery's backends store them, and Taskline's outcomes as such."""

from __future__ import annotations

from typing import Any

import msgspec

from taskline import amqp
from taskline.errors import SerializationError
from taskline.message import (
    EXPIRED,
    FAILURE,
    FINAL_STATES,
    PENDING,
    RETRY,
    REVOKED,
    STARTED,
    SUCCESS,
    VERSION,
    OutcomeHeader,
    split_outcome,
)

RESULT = b'{"status":'
"""Every result begins so, and no frame of Taskline's."""

_TO_CELERY = {EXPIRED: REVOKED}
_FROM_CELERY = {state: state for state in (PENDING, STARTED, RETRY, SUCCESS, FAILURE, REVOKED)} | {
    "IGNORED": SUCCESS
}


class _Meta(msgspec.Struct):
    """A result as Celery's backends store it."""

    status: str
    result: msgspec.Raw = msgspec.Raw(b"null")
    traceback: str | None = None
    task_id: str = ""
    name: str | None = None
    worker: str | None = None
    queue: str | None = None
    retries: int | None = None
    parent_id: str | None = None
    date_done: str | None = None
    taskline: OutcomeHeader | None = None


class _Error(msgspec.Struct):
    """An exception as Celery writes it."""

    exc_type: str = "Exception"
    exc_message: Any = None
    exc_module: str | None = None


class _State(msgspec.Struct):
    status: str


_meta_decoder = msgspec.json.Decoder(_Meta)
_error_decoder = msgspec.json.Decoder(_Error)
_state_decoder = msgspec.json.Decoder(_State)


def state_of(result: bytes) -> str:
    """The state of a stored result, by Taskline's name; `STARTED` for others that Celery has."""
    try:
        if not result.startswith(RESULT):
            return split_outcome(result)[0].state
        return _FROM_CELERY.get(_state_decoder.decode(result).status, STARTED)
    except (SerializationError, msgspec.MsgspecError, UnicodeDecodeError):
        return FAILURE  # who opens it is told what is wrong


def pack(header: OutcomeHeader, value: bytes) -> bytes:
    """Celery's result, with what only Taskline knows beside it; `value` is JSON."""
    meta: dict[str, Any] = {
        "status": _TO_CELERY.get(header.state, header.state),
        "result": msgspec.Raw(value) if header.error is None else _celery_error(header.error),
        "traceback": (header.error or {}).get("traceback") or None,
        "children": [],
        "date_done": amqp.stamp(header.finished),
        "task_id": header.id,
        "name": header.task,
        "worker": header.worker,
        "queue": header.queue,
        "retries": header.attempt - 1,
        "parent_id": header.parent,
        "taskline": header,
    }
    if header.state in (REVOKED, EXPIRED) and header.error is None:
        said = "expired" if header.state == EXPIRED else "revoked"
        meta["result"] = {
            "exc_type": "TaskRevokedError",
            "exc_message": [said],
            "exc_module": "celery.exceptions",
        }
    return msgspec.json.encode(meta)


def unpack(frame: bytes) -> tuple[OutcomeHeader, bytes]:
    """The header and value of Celery's result; raises `SerializationError`."""
    try:
        meta = _meta_decoder.decode(frame)
        if meta.taskline is not None:
            return meta.taskline, bytes(meta.result)
        return _outcome_header(meta), bytes(meta.result)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SerializationError(f"not a result of Celery's: {error}") from None


def _outcome_header(meta: _Meta) -> OutcomeHeader:
    """Taskline's header of a result that a worker of Celery's stored."""
    state = _FROM_CELERY.get(meta.status, STARTED)
    error = None
    if state in (FAILURE, RETRY):
        error = _our_error(meta)
    return OutcomeHeader(
        VERSION,
        meta.task_id,
        state,
        task=meta.name or "",
        queue=meta.queue or "",
        attempt=(meta.retries or 0) + 1,
        worker=meta.worker or "",
        finished=amqp.moment(meta.date_done) if state in FINAL_STATES else None,
        error=error,
        parent=meta.parent_id,
    )


def _our_error(meta: _Meta) -> dict[str, Any]:
    """Celery's exception as `OutcomeHeader.error` has it."""
    try:
        found = _error_decoder.decode(meta.result)
    except msgspec.MsgspecError:
        found = _Error(exc_message=bytes(meta.result).decode(errors="replace"))
    module, said = found.exc_module or "builtins", found.exc_message
    args = said if isinstance(said, list) else [] if said is None else [said]
    return {
        "type": f"{module}.{found.exc_type}",
        "message": ", ".join(str(each) for each in args),
        "args": args,
        "traceback": meta.traceback or "",
    }


def _celery_error(error: dict[str, Any]) -> dict[str, Any]:
    """`OutcomeHeader.error` as Celery has it."""
    module, _, name = str(error.get("type", "Exception")).rpartition(".")
    return {
        "exc_type": name,
        "exc_message": error.get("args", [error.get("message", "")]),
        "exc_module": module or "builtins",
    }
