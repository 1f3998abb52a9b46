"""Every exception that Taskline raises, on one page.

Each message is one line: what is wrong, with what value, and what to do.
"""

from __future__ import annotations


class TasklineError(Exception):
    """The root of all errors raised by Taskline."""


class ConfigurationError(TasklineError):
    """A setting, URL, file or option is wrong, or a driver is missing."""


class TransportError(TasklineError):
    """A broker could not do what was asked.

    `retryable` tells whether the same call may succeed later (a lost
    connection, a busy file) or never will without a change (a full disk that
    refuses writes, a read-only file).
    """

    def __init__(self, message: str, *, retryable: bool = True) -> None:
        super().__init__(message)
        self.retryable = retryable


class BackendError(TransportError):
    """A result backend could not do what was asked."""


class NotSupported(TransportError):
    """The transport declares in its capabilities that it cannot do this."""

    def __init__(self, message: str) -> None:
        super().__init__(message, retryable=False)


class SerializationError(TasklineError):
    """A value could not be encoded, or bytes could not be decoded."""


class MessageRefused(SerializationError):
    """A message was read but must not be trusted: not accepted, not signed, too large."""


class UnknownTask(TasklineError):
    """No task of that name is registered here."""


class InvalidArguments(TasklineError, TypeError):
    """A call does not fit the task's signature."""


class ResultTimeout(TasklineError, TimeoutError):
    """`get()` waited as long as it was told to and no outcome arrived."""


class NoResult(TasklineError):
    """The outcome was not kept (no backend, `result_ttl=0`) or has expired."""


class TaskFailed(TasklineError):
    """The task failed with an exception whose type is not known in this process.

    `exception_type` is its dotted name and `remote_traceback` the text of the
    traceback in the worker.
    """

    def __init__(
        self, message: str = "", *, exception_type: str = "", remote_traceback: str = ""
    ) -> None:
        super().__init__(message)
        self.exception_type = exception_type
        self.remote_traceback = remote_traceback


class TaskRejected(TaskFailed):
    """The task raised `Reject`; its message is in the dead letters."""


class TaskPoisoned(TaskFailed):
    """The message cost its worker its life `max_deliveries` times."""


class TaskTimeout(TaskFailed):
    """The task ran longer than its `timeout`."""


class SoftTimeout(TasklineError):
    """Raised inside a running task when its `soft_timeout` has passed."""


class TaskRevoked(TasklineError):
    """The task was revoked before it could succeed."""


class TaskExpired(TasklineError):
    """The task was not started before its `expires`."""


class KeyReused(TasklineError):
    """An `idempotency_key` was given again, with other arguments than the first time."""


class LeaseLost(TasklineError):
    """A lease has ended, and what it was for may be another's now.

    That of a delivery: this run's outcome is dropped. That of a lock: what was done
    since may have met what the next holder did.
    """


class LockTimeout(TasklineError, TimeoutError):
    """`with app.lock(...)` waited as long as it was told to, and another held the lock."""


class Retry(TasklineError):
    """Raise inside a task to run it again, `after` seconds from now.

    Without `after` the task's own policy decides how long to wait. The policy
    also decides whether another attempt is allowed, unless `always` is true.
    """

    def __init__(
        self, message: str = "", *, after: float | None = None, always: bool = False
    ) -> None:
        super().__init__(message or "the task asked to be tried again")
        self.after = after
        self.always = always


class Reject(TasklineError):
    """Raise inside a task to send its message to the dead letters, with a reason."""

    def __init__(self, reason: str = "rejected by the task") -> None:
        super().__init__(reason)
        self.reason = reason


class Ignore(TasklineError):
    """Raise inside a task to end it as a success without a result."""
