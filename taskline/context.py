"""What a running task knows of itself: `current_task`, and `task.request` for bound tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextvars import ContextVar, Token
from typing import Any, NamedTuple, cast

import msgspec

from taskline.errors import TasklineError
from taskline.message import Header

MOST_CHILDREN = 1000
"""How many of the tasks that it has sent a task's outcome names."""

LONGEST_REPORT = 500
"""Characters of a progress message that are kept."""


class Progress(NamedTuple):
    """How far a task says it is: so much of `total`, where that is known."""

    done: float
    total: float | None = None
    message: str = ""

    @property
    def fraction(self) -> float | None:
        """From 0 to 1; None when the total is not known."""
        if not self.total:
            return None
        return min(1.0, max(0.0, self.done / self.total))


class Request(msgspec.Struct, eq=False):
    """One run of a task: what its message says, and what this handing-over adds.

    `receipt` is the transport's own, opaque to all others. `deadline` is the time
    (Unix seconds) at which `timeout` ends the run, or None. `cancelled` becomes
    true when the run was revoked with `terminate` or lost its lease: a long
    task may look at it and return early.
    """

    header: Header
    deliveries: int = 1
    receipt: Any = None
    deadline: float | None = None
    batch: Sequence[Request] = ()
    """In a batch task: the requests of its calls, in the order of the items."""
    cancelled: bool = False
    children: list[str] | None = None
    """The ids of what it has sent itself, the first `MOST_CHILDREN` of them."""
    reported: Progress | None = None
    """What `progress` was told last."""

    def sent(self, id: str) -> None:
        """Note that the task has sent another, or started a workflow."""
        if self.children is None:
            self.children = []
        if len(self.children) < MOST_CHILDREN:
            self.children.append(id)

    def progress(self, done: float, total: float | None = None, message: str = "") -> None:
        """Tell how far the task is, for `AsyncResult.progress()`: `done` of `total`, and a word.

        Call it as often as you like, from any thread of the task: it costs next to nothing,
        and the worker stores what was told last about once a second.
        """
        if not _is_number(done) or not (total is None or _is_number(total)):
            raise TasklineError(f"progress({done!r}, {total!r}): give numbers; total may be None")
        self.reported = Progress(done, total, str(message)[:LONGEST_REPORT])

    @property
    def id(self) -> str:
        """The task's id."""
        return self.header.id

    @property
    def name(self) -> str:
        """The task's name."""
        return self.header.task

    @property
    def queue(self) -> str:
        """The queue it came by."""
        return self.header.queue

    @property
    def priority(self) -> int:
        """0 (last) to 9 (first)."""
        return self.header.priority

    @property
    def attempt(self) -> int:
        """Which attempt of the retry policy this is; the first is 1."""
        return self.header.attempt

    @property
    def eta(self) -> float | None:
        """Before when it was not to run, Unix seconds."""
        return self.header.eta

    @property
    def expires(self) -> float | None:
        """After when it was not to be started, Unix seconds."""
        return self.header.expires

    @property
    def headers(self) -> dict[str, Any]:
        """What the caller gave as `headers=`."""
        return self.header.headers

    @property
    def schedule(self) -> str | None:
        """The name of the schedule that sent it, or None."""
        return self.header.schedule

    @property
    def scheduled_for(self) -> float | None:
        """The moment for which its schedule sent it, Unix seconds, or None."""
        return self.header.slot

    @property
    def parent(self) -> str | None:
        """The id of the task that sent this one, or None."""
        return self.header.parent

    @property
    def root(self) -> str | None:
        """The id of the first task of this family, or None when it is this one."""
        return self.header.root

    def __repr__(self) -> str:
        return f"<Request {self.name} {self.id} attempt {self.attempt}>"


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


class BatchRequest(Request):
    """A run of a batch task. It speaks of its first call; `batch` has the requests of all."""

    def progress(self, done: float, total: float | None = None, message: str = "") -> None:
        for each in self.batch:
            each.progress(done, total, message)

    def sent(self, id: str) -> None:
        self.batch[0].sent(id)


_request: ContextVar[Request | None] = ContextVar("taskline_request", default=None)

running = _request.get
"""The request of the task that runs in this context, or None."""


def activate(request: Request) -> Token[Request | None]:
    """Make `request` the current one of this context, until `deactivate(token)`."""
    return _request.set(request)


def deactivate(token: Token[Request | None]) -> None:
    """Undo `activate`."""
    _request.reset(token)


def require() -> Request:
    """The current request; raises `TasklineError` outside of a task."""
    request = _request.get()
    if request is None:
        raise TasklineError("current_task is only known inside a running task")
    return request


class _CurrentTask:
    """Reads every attribute from the request of the task that runs here."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        request = _request.get()
        if request is None:
            raise TasklineError(f"current_task.{name} is only known inside a running task")
        return getattr(request, name)

    def __bool__(self) -> bool:
        return _request.get() is not None

    def __repr__(self) -> str:
        return repr(_request.get() or "<no task runs here>")


current_task = cast(Request, _CurrentTask())
"""The running task's `Request`. False in a condition when no task runs here."""


def mark_log_records() -> None:
    """Let every log record of a running task bear `task_id`, `task_name` and `task_attempt`.

    All handlers and formatters see them, whoever made them. Outside of a task records
    have none of these. May be called again.
    """
    import logging

    make = logging.getLogRecordFactory()
    if getattr(make, "marks_tasks", False):
        return

    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        request = _request.get()
        if request is not None:
            record.task_id = request.id
            record.task_name = request.name
            record.task_attempt = request.attempt
        return record

    factory.marks_tasks = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(factory)
