"""What an app's schedulers and its people share: two documents in the backend's key store.

The book has the schedules that were stored, and what was paused; it is changed under a
lock. The progress has for each schedule which slot was sent last; the worker that leads
writes it. Both are frames of the app, signed where the app signs its messages.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from taskline.backends import BACKENDS
from taskline.backends.base import Backend
from taskline.backends.keys import KeyStore
from taskline.errors import BackendError, ConfigurationError, MessageRefused
from taskline.message import VERSION, Header
from taskline.schedule.entry import Schedule

if TYPE_CHECKING:
    from taskline.app import Taskline

CHANGE_WITHIN = 10.0
"""Seconds for which a change of the book holds its lock at most."""

T = TypeVar("T")


class Hold(msgspec.Struct, frozen=True, omit_defaults=True):
    """That a schedule is paused, or since when it is no longer."""

    paused: bool = False
    until: float = 0.0
    """No slot until then is sent, Unix seconds."""


class Book(msgspec.Struct):
    """The stored schedules, and what is known of those that were paused, by name."""

    schedules: dict[str, Schedule] = {}
    holds: dict[str, Hold] = {}


class Progress(msgspec.Struct):
    """How far one schedule is. Moments are Unix seconds."""

    since: float
    """From when its slots count."""
    last: float
    """Slots until then are done with."""
    sent: int = 0
    slot: float | None = None
    """The slot that was sent last."""
    id: str = ""
    """Of the message that was sent last."""


class ScheduleStore:
    """The documents of one app. Any thread may use it."""

    def __init__(self, app: Taskline) -> None:
        self._app = app
        self._book = f"taskline.schedules:{app.name}"
        self._progress = f"taskline.schedules.progress:{app.name}"
        self.lead = f"taskline.schedules.lead:{app.name}"
        """The lock of the worker that leads."""

    def check(self) -> None:
        """Raise `ConfigurationError` when the app has no place to keep them in."""
        app, spec = self._app, self._app.settings.backend
        if spec is None:
            reason = "has no result backend"
        else:
            found, _ = BACKENDS.find(spec)
            if found.keys is not Backend.keys:
                return
            reason = f"has a {found.scheme} backend, which keeps no keys"
        raise ConfigurationError(
            f"the app {app.name} {reason}, and schedules need one, to note which slots were sent: "
            'give it one that keeps keys, such as Taskline(..., backend="sqlite:///shop.db")'
        )

    def keys(self) -> KeyStore:
        """Where they are kept; raises as `check`."""
        self.check()
        return self._app.require_backend().keys()

    def book(self) -> Book:
        """The book as it is now."""
        raw = self.keys().get(self._book)
        return Book() if raw is None else self._read(raw, Book)

    def progress(self) -> dict[str, Progress]:
        """How far each schedule is, by name."""
        raw = self.keys().get(self._progress)
        return {} if raw is None else self._read(raw, dict[str, Progress])

    def write_progress(self, progress: dict[str, Progress]) -> None:
        """Keep this. Only for the worker that leads."""
        self.keys().set(self._progress, self._frame(progress), None)

    @contextmanager
    def change(self) -> Iterator[Book]:
        """The book, to be changed in the block; nobody else changes it meanwhile.

        Raises `BackendError` when the book could not be had, or not be kept, in time.
        """
        keys, clock = self.keys(), self._app.clock
        token = secrets.token_hex(8)
        by = clock.monotonic() + CHANGE_WITHIN
        while keys.acquire(self._book, token, CHANGE_WITHIN).token != token:
            if clock.monotonic() >= by:
                raise BackendError("the schedules are being changed by another: try again")
            clock.sleep(0.05)
        try:
            book = self.book()
            yield book
            if not keys.renew(self._book, token, CHANGE_WITHIN):
                raise BackendError("changing the schedules took too long: nothing was changed")
            keys.set(self._book, self._frame(book), None)
        finally:
            keys.release(self._book, token)

    def _frame(self, value: Any) -> bytes:
        app = self._app
        header = Header(
            VERSION, app.name, "taskline.schedules", "", app.now(), app.settings.serializer
        )
        return app.codec.encode(header, msgspec.to_builtins(value)).frame

    def _read(self, frame: bytes, type: type[T]) -> T:
        codec = self._app.codec
        header, body = codec.open(frame)
        if (header.id, header.task) != (self._app.name, "taskline.schedules"):
            raise MessageRefused(f"the schedules of {self._app.name} are another message")
        return msgspec.convert(codec.loads(header, body), type)
