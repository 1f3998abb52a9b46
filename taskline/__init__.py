"""Functions that run later, elsewhere, reliably."""

from taskline.app import Taskline
from taskline.context import current_task
from taskline.depends import Depends
from taskline.durable import step
from taskline.emitting import emit
from taskline.errors import (
    BackendError,
    ConfigurationError,
    Ignore,
    InvalidArguments,
    KeyReused,
    LeaseLost,
    LockTimeout,
    MessageRefused,
    NoResult,
    NotSupported,
    Reject,
    ResultTimeout,
    Retry,
    SerializationError,
    SoftTimeout,
    TaskExpired,
    TaskFailed,
    TasklineError,
    TaskPoisoned,
    TaskRejected,
    TaskRevoked,
    TaskTimeout,
    TransportError,
    UnknownTask,
)
from taskline.hooks import Middleware
from taskline.policy import RetryPolicy
from taskline.result import AsyncResult, ResultSet
from taskline.secret import Secret
from taskline.task import AsyncTask, Task

__version__ = "0.1.0"

__all__ = [
    "AsyncResult",
    "AsyncTask",
    "BackendError",
    "ConfigurationError",
    "Depends",
    "Ignore",
    "InvalidArguments",
    "KeyReused",
    "LeaseLost",
    "LockTimeout",
    "MessageRefused",
    "Middleware",
    "NoResult",
    "NotSupported",
    "Reject",
    "ResultSet",
    "ResultTimeout",
    "Retry",
    "RetryPolicy",
    "Secret",
    "SerializationError",
    "SoftTimeout",
    "Task",
    "TaskExpired",
    "TaskFailed",
    "TaskPoisoned",
    "TaskRejected",
    "TaskRevoked",
    "TaskTimeout",
    "Taskline",
    "TasklineError",
    "TransportError",
    "UnknownTask",
    "__version__",
    "current_task",
    "emit",
    "step",
]
