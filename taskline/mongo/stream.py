"""What changes in a collection, told by one change stream to all in this process who wait.

A thread reads the stream while somebody wants it. Where a deployment has no change
streams, nothing is told, and who waits looks again and again.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import Any, Protocol

from pymongo.errors import OperationFailure, PyMongoError

from taskline.clock import SYSTEM_CLOCK
from taskline.errors import TasklineError
from taskline.mongo.client import Document, Server
from taskline.mongo.location import Location

IDLE = 10.0
"""Seconds for which the stream stays open though nobody has asked for it."""
AWAIT = 1.0
"""The longest, in seconds, that the server keeps a question open for which it has no news."""
PAUSE_FIRST, PAUSE_MOST = 0.05, 2.0
"""Seconds between tries to open it."""

NO_STREAMS = {
    40573,  # only on replica sets
    40324,  # unrecognized stage
    59,  # no such command
    115,  # CommandNotSupported
    303,  # FeatureNotSupported
    13,  # Unauthorized
}

log = logging.getLogger("taskline.mongo")


class Listener(Protocol):
    """Is told by the stream's thread; it is quick, and raises nothing."""

    def changed(self, id: Any) -> None:
        """This document has changed."""

    def turned(self) -> None:
        """`live` has changed. What changed while it was not live was not told: look again."""


class Stream:
    """The change stream of one collection, for all listeners of this process.

    Made by `listen`, which tells of the arguments.
    """

    def __init__(self, key: object, open_server: Callable[[], Server], name: str, events: Document):
        self._key = key
        self._open_server = open_server
        self._name = name
        self._pipeline = [{"$match": events}, {"$project": {"documentKey": 1}}]
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._listeners: list[Listener] = []
        self._reader: threading.Thread | None = None
        self._until = 0.0
        self.live = False
        """Whether changes are told."""
        self.missing = False
        """Whether this deployment has no change streams."""

    def remove(self, listener: Listener) -> None:
        """Without listeners the stream ends; its thread does so within a second."""
        with _guard:
            if listener in self._listeners:
                self._listeners.remove(listener)
            if not self._listeners:
                self._stop.set()
                if _streams.get(self._key) is self:
                    del _streams[self._key]

    def want(self) -> bool:
        """Keep it open for `IDLE` seconds from now; returns whether changes are told already."""
        with self._lock:
            self._until = SYSTEM_CLOCK.monotonic() + IDLE
            if self._reader is not None or self.missing:
                return self.live
            name = f"taskline-{self._name}"
            reader = self._reader = threading.Thread(target=self._run, name=name, daemon=True)
        reader.start()
        return False

    def _wanted(self) -> bool:
        with self._lock:
            wanted = bool(self._listeners) and SYSTEM_CLOCK.monotonic() < self._until
            if not wanted and self._reader is threading.current_thread():
                self._reader, self.live = None, False
            return wanted

    def _tell(self, live: bool) -> None:
        with self._lock:
            if self._reader is not threading.current_thread():
                return
            self.live = live
            listeners = list(self._listeners)
        for each in listeners:
            each.turned()

    def _run(self) -> None:
        server = self._open_server()
        pause = PAUSE_FIRST
        try:
            while self._wanted():
                try:
                    server.run(lambda: self._read(server))
                except TasklineError as error:
                    if self.missing:
                        log.info("%s; it is asked again and again instead", error)
                        return
                    if not self._wanted():
                        return
                    if pause == PAUSE_FIRST:
                        log.info("the change stream of %s broke: %s", self._name, error)
                    self._stop.wait(pause)
                    pause = min(2 * pause, PAUSE_MOST)
                else:
                    pause = PAUSE_FIRST
        finally:
            server.close()

    def _read(self, server: Server) -> None:
        """Read it until it is not wanted any more, or breaks."""
        await_ms = round(1000 * min(AWAIT, server.location.timeout / 2))
        collection = server.collection(self._name)
        try:
            with collection.watch(self._pipeline, max_await_time_ms=await_ms) as stream:
                self._tell(True)
                while stream.alive and self._wanted():
                    change = stream.try_next()
                    if change is not None:
                        self._changed(change["documentKey"]["_id"])
        except PyMongoError as error:
            if isinstance(error, OperationFailure) and error.code in NO_STREAMS:
                self.missing = True
            raise
        finally:
            self._tell(False)

    def _changed(self, id: Any) -> None:
        for each in tuple(self._listeners):
            each.changed(id)


_streams: dict[object, Stream] = {}
_guard = threading.Lock()


def listen(
    listener: Listener, location: Location, name: str, events: Document, open: Callable[[], Server]
) -> Stream:
    """Add a listener to this process's stream of some events of a collection at a location.

    `events` is what the server matches before it tells. `open` gives the stream a connection
    of its own, which it closes.
    """
    key = (location, name, str(events))
    with _guard:
        stream = _streams.get(key)
        if stream is None:
            stream = _streams[key] = Stream(key, open, name, events)
        stream._listeners.append(listener)
        return stream


def _after_fork() -> None:
    # Threads do not survive a fork.
    global _guard
    _guard = threading.Lock()
    _streams.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
