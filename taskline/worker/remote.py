"""What a worker process learns from afar: the state that all workers of its app heed.

Owned by the I/O thread.
"""

from __future__ import annotations

import logging

from taskline.app import Taskline
from taskline.backends.base import Backend
from taskline.backends.keys import KeyStore
from taskline.control import State, States
from taskline.errors import SerializationError

log = logging.getLogger("taskline.worker")

LOOK_EVERY = 0.9
"""Seconds between two looks at the state, at least; an idle process turns once a second."""


class Remote:
    """Reads the key store of the process's backend, one key in each `LOOK_EVERY` seconds."""

    def __init__(self, app: Taskline) -> None:
        self._states = States(app)
        self._keys: KeyStore
        self._raw: bytes | None = None
        self._next_look = 0.0
        self.state = State()

    def open(self, backend: Backend) -> None:
        """Learn the state before the first message; raises `TransportError` when that fails."""
        self._keys = backend.keys()
        self._read()

    def look(self, now: float) -> State:
        """The state, learnt anew when it is time; raises as `open`.

        `now` is the monotonic clock's.
        """
        if now >= self._next_look:
            self._next_look = now + LOOK_EVERY
            self._read()
        return self.state

    def _read(self) -> None:
        raw = self._keys.get(self._states.key)
        if raw == self._raw:
            return
        self._raw = raw
        try:
            state = State() if raw is None else self._states.read(raw)
        except SerializationError as error:
            log.error("what was told to the workers is not heeded: %s", error)
            return
        if raw is not None and state.version < self.state.version:
            log.error("what was told to the workers is older than what was told before: not heeded")
            return
        self.state = state
        log.debug("told: %s", state)
