"""Logging for the command line. The library itself only ever calls `logging.getLogger`."""

from __future__ import annotations

import logging
import sys
import time
from typing import TextIO

from taskline.errors import ConfigurationError

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


class Formatter(logging.Formatter):
    """`2026-01-31 12:00:00.123 INFO     taskline.worker: message`, in local time.

    What a running task logs has its name and id before the message.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-8s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        if hasattr(record, "task_id"):
            record.message = f"[{record.task_name} {record.task_id}] {record.message}"  # type: ignore[attr-defined]
        return super().formatMessage(record)

    def formatTime(  # noqa: N802
        self, record: logging.LogRecord, datefmt: str | None = None
    ) -> str:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        return f"{stamp}.{int(record.msecs):03d}"


def setup(level: str = "INFO", stream: TextIO | None = None) -> None:
    """Send log records of `level` and above to `stream` (standard error), one line each.

    Leaves alone the handlers that the user's own modules have set up on the
    root logger: then only the level of the `taskline` loggers changes. May be
    called again. Raises `ConfigurationError` for an unknown level.
    """
    name = level.upper()
    if name not in LEVELS:
        raise ConfigurationError(f"no log level {level!r}: use one of {', '.join(LEVELS)}")
    root = logging.getLogger()
    ours = [handler for handler in root.handlers if isinstance(handler.formatter, Formatter)]
    logging.getLogger("taskline").setLevel(name)
    if root.handlers and not ours:
        return
    for each in ours:
        root.removeHandler(each)
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(Formatter())
    root.addHandler(handler)
    root.setLevel(name)
