"""Small documents that the processes of an app share, in the key store of its result backend.

Each is a frame of the app, signed where the app signs its messages, and names the key that
it is for: what stands under one key is refused under another.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from taskline.backends import BACKENDS
from taskline.backends.base import Backend
from taskline.backends.keys import KeyStore
from taskline.codec import Codec
from taskline.errors import BackendError, ConfigurationError, MessageRefused, SerializationError
from taskline.message import VERSION, Header

if TYPE_CHECKING:
    from taskline.app import Taskline

LARGEST = 2**24
"""Bytes of a document, at most."""
CHANGE_WITHIN = 10.0
"""Seconds for which a change is tried while others change the same document."""

T = TypeVar("T")


def why_no_keys(app: Taskline) -> str:
    """Why this app has no place for documents, as the end of a sentence; empty when it has."""
    spec = app.settings.backend
    if spec is None:
        return "has no result backend"
    found, _ = BACKENDS.find(spec)
    if found.keys is Backend.keys:
        return f"has a {found.scheme} backend, which keeps no keys"
    return ""


class Documents:
    """Those of one app. Any thread may use them."""

    def __init__(self, app: Taskline) -> None:
        self._app = app
        # The app's keys, and nothing else of what it says of its messages.
        self._codec = Codec(
            msgspec.structs.replace(
                app.settings,
                serializer="json",
                accept=["json"],
                compression="",
                max_message_size=LARGEST,
            )
        )

    def key(self, subject: str, *parts: str) -> str:
        """The key of a document."""
        return ":".join((f"taskline.{subject}", self._app.name, *parts))

    def keys(self) -> KeyStore:
        """Where they are kept; raises `ConfigurationError` when the app has no such place."""
        why = why_no_keys(self._app)
        if why:
            raise ConfigurationError(
                f"the app {self._app.name} {why}, by which workers are asked and told: give it "
                'and its workers one that keeps keys, such as backend="sqlite:///shop.db"'
            )
        return self._app.require_backend().keys()

    def frame(self, key: str, value: Any) -> bytes:
        """What to keep under the key for a value of plain data and structs."""
        header = Header(VERSION, key, "taskline.control", "", self._app.now())
        return self._codec.encode(header, msgspec.to_builtins(value)).frame

    def read(self, key: str, frame: bytes, kind: type[T]) -> T:
        """The value of what was found under the key.

        Raises `SerializationError`, or `MessageRefused` for what must not be trusted.
        """
        header, body = self._codec.open(frame)
        if (header.id, header.task) != (key, "taskline.control"):
            raise MessageRefused(f"what stands under the key {key!r} is another message")
        try:
            return msgspec.convert(self._codec.loads(header, body), kind)
        except msgspec.ValidationError as error:
            raise SerializationError(f"the key {key!r}: {error}") from None

    def attempt(
        self,
        keys: KeyStore,
        key: str,
        kind: type[T],
        alter: Callable[[T], T],
        *,
        mend: bool = False,
    ) -> T | None:
        """Replace the document by what `alter` makes of it, or of an empty one.

        Returns what it is then; None when another has changed it in between. With `mend`
        one that cannot be read counts as empty, else that raises, as `read`.
        """
        raw = keys.get(key)
        try:
            value = kind() if raw is None else self.read(key, raw, kind)
        except SerializationError:
            if not mend:
                raise
            value = kind()
        value = alter(value)
        return value if keys.swap(key, raw, self.frame(key, value), None) else None

    def change(self, key: str, kind: type[T], alter: Callable[[T], T]) -> T:
        """As `attempt`, until it is done; `alter` may be called more than once.

        Raises `BackendError` when others do not let it through.
        """
        keys, clock = self.keys(), self._app.clock
        by = clock.monotonic() + CHANGE_WITHIN
        while (value := self.attempt(keys, key, kind, alter)) is None:
            if clock.monotonic() >= by:
                raise BackendError(f"the key {key!r} is being changed by others: try again")
            clock.sleep(random.uniform(0.0, 0.02))
        return value
