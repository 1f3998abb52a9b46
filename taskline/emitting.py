"""`return emit(...)`: a task that ends by sending others, before its message is acknowledged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

from taskline.calls import header_of
from taskline.errors import InvalidArguments
from taskline.message import Header, Message

if TYPE_CHECKING:
    from taskline.app import Taskline
    from taskline.workflows.steps import Step

R = TypeVar("R")


class Emitted:
    """What `emit` gives at run time: the result of the task, and the calls to send."""

    __slots__ = ("calls", "result")

    def __init__(self, calls: Sequence[Any], result: Any) -> None:
        self.calls = calls
        self.result = result

    def __repr__(self) -> str:
        return f"<Emitted {self.result!r} and {len(self.calls)} calls>"


@overload
def emit(*calls: Step[Any, Any]) -> None: ...
@overload
def emit(*calls: Step[Any, Any], result: R) -> R: ...
def emit(*calls: Any, result: Any = None) -> Any:
    """To be returned by a task: send these calls, and have this result.

    `return emit(store.si(row), audit.options(queue="audit").si(row.id), result=7)`. The
    calls are sent when the task has succeeded and its outcome is stored, and before its
    message is acknowledged: whoever dies in between, they are sent by the run that follows,
    under the same ids, which follow from the task's own. A failed attempt sends nothing.

    Raises `InvalidArguments` for what is not one call with all its arguments.
    """
    from taskline.workflows.steps import TaskStep

    for call in calls:
        if not isinstance(call, TaskStep) or not call.complete:
            raise InvalidArguments(
                f"emit() sends single calls with all their arguments, such as task.si(1), "
                f"not {call!r}"
            )
    return Emitted(calls, result)


def messages(app: Taskline, emitted: Emitted, parent: Header) -> list[Message]:
    """The messages of what a task has emitted. Raises `SerializationError`."""
    return [
        _message(app, cast(Any, call).element(first=True), emitted_id(parent.id, index), parent)
        for index, call in enumerate(emitted.calls)
    ]


def emitted_id(parent: str, index: int) -> str:
    """The id of the call that the task `parent` emits in this place: the same in every run."""
    from hashlib import blake2b  # which loads OpenSSL

    return blake2b(f"{parent}/{index}".encode(), digest_size=16).hexdigest()


def _message(app: Taskline, call: Any, key: str, parent: Header) -> Message:
    options = call.options
    header = header_of(options, options.task_id or key, call.task, app.now(), call.compression)
    header.parent = parent.id
    header.root = parent.root or parent.id
    return app.codec.reframe(header, call.body)
