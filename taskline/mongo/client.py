"""One deployment of MongoDB as it is used: a client, its clock, and what to do when it fails."""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import pymongo
from pymongo import monitoring
from pymongo.client_session import ClientSession
from pymongo.collection import Collection
from pymongo.errors import ConfigurationError as DriverConfigurationError
from pymongo.errors import InvalidURI, PyMongoError
from pymongo.uri_parser import validate_options

from taskline import errors
from taskline.clock import Clock
from taskline.errors import TransportError
from taskline.mongo.failures import is_passing, translate
from taskline.mongo.initiate import initiate
from taskline.mongo.layout import Layout, prepare
from taskline.mongo.location import Location

Document: TypeAlias = dict[str, Any]
T = TypeVar("T")

log = logging.getLogger("taskline.mongo")

PAUSE_FIRST, PAUSE_MAX = 0.05, 1.0
CONNECTIONS = 20
"""The most that a process has open to a deployment, unless the URL says otherwise."""


class ServerTime(monitoring.ServerHeartbeatListener):
    """What time it is on the server, learnt from the driver's heartbeats. Costs no commands."""

    def __init__(self) -> None:
        self._ahead: float | None = None

    def learn(self, local_time: Any) -> None:
        """Take the `localTime` of an answer to `hello`."""
        if local_time is not None:
            self._ahead = local_time.timestamp() - time.monotonic()

    def now(self) -> float:
        """Unix seconds of the server's clock, to some milliseconds."""
        return time.time() if self._ahead is None else time.monotonic() + self._ahead

    def started(self, event: monitoring.ServerHeartbeatStartedEvent) -> None: ...

    def succeeded(self, event: monitoring.ServerHeartbeatSucceededEvent) -> None:
        if event.reply.is_writable:
            self.learn(event.reply.document.get("localTime"))

    def failed(self, event: monitoring.ServerHeartbeatFailedEvent) -> None: ...


class _Shared:
    """A driver's client for all in this process who use one location."""

    def __init__(self, location: Location) -> None:
        self.time = ServerTime()
        self.users = 0
        self.client: pymongo.MongoClient[Document] = open_client(location, [self.time])
        self.lock = threading.Lock()
        """Held for a moment, never during input or output."""
        self.stamps: dict[object, int] = {}


_shared: dict[tuple[str, float], _Shared] = {}
_guard = threading.Lock()


def _after_fork() -> None:
    # The parent's clients are left to the parent: closing them here would end its sessions.
    global _guard
    _inherited.append(dict(_shared))
    _shared.clear()
    _guard = threading.Lock()


_inherited: list[object] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def open_client(
    location: Location, listeners: list[Any] | None = None, **more: Any
) -> pymongo.MongoClient[Document]:
    """A driver's client; it connects when it is used. Raises `ConfigurationError`."""
    milliseconds = max(1, round(location.timeout * 1000))
    limits: dict[str, Any] = {
        name: value
        for name, value in {
            "serverSelectionTimeoutMS": milliseconds,
            "connectTimeoutMS": milliseconds,
            "socketTimeoutMS": 2 * milliseconds,
            "waitQueueTimeoutMS": milliseconds,
            "maxPoolSize": CONNECTIONS,
            "appName": "taskline",
        }.items()
        if not location.option(name)
    }
    try:
        # The client itself only warns of options that it does not know.
        validate_options(dict(location.options), warn=False)
        return pymongo.MongoClient(
            location.url, event_listeners=listeners or [], tz_aware=True, **limits, **more
        )
    except (InvalidURI, DriverConfigurationError, ValueError, TypeError) as error:
        raise errors.ConfigurationError(f"MongoDB at {location}: {error}") from None


class Server:
    """Any thread may use it. `error` is the class of the errors that it raises.

    The first call connects, and sees to it that what `layout` names is there.
    """

    def __init__(
        self,
        location: Location,
        clock: Clock,
        layout: Layout,
        error: type[TransportError] = TransportError,
    ) -> None:
        self.location = location
        self.clock = clock
        self.own_time = type(clock) is not Clock
        """Whether the time is the tests', not the server's."""
        self._layout = layout
        self._error = error
        self._closed = False
        self._known = False
        self._key = location.url, location.timeout
        with _guard:
            shared = _shared.get(self._key)
        if shared is None:
            shared = _Shared(location)
        with _guard:
            self._shared = _shared.setdefault(self._key, shared)
            self._shared.users += 1
        if self._shared is not shared:
            shared.client.close()

    @property
    def client(self) -> pymongo.MongoClient[Document]:
        """The driver's client of this process."""
        return self._shared.client

    def collection(self, name: str) -> Collection[Document]:
        """The collection of this store that is called `name` within it."""
        return self.client[self.location.database][f"{self.location.namespace}.{name}"]

    def now(self) -> float:
        """Unix seconds: the server's clock as far as it is known here; in tests, the tests'."""
        return self.clock.time() if self.own_time else self._shared.time.now()

    def stamp(self) -> int:
        """Microseconds of `now`, never twice the same in this process for this store."""
        shared, now = self._shared, int(self.now() * 1_000_000)
        which = self.location.store, id(self.clock) if self.own_time else 0
        with shared.lock:
            found = max(now, shared.stamps.get(which, 0) + 1)
            shared.stamps[which] = found
        return found

    def run(self, work: Callable[[], T], patience: float = 0.0) -> T:
        """Do something that may be done twice; the driver's errors become ours.

        What may pass is tried again once, at once, and with pauses that grow for
        `patience` seconds; then, and for what will not pass, `TransportError` is raised.
        """
        until = None
        pause = PAUSE_FIRST
        while True:
            try:
                if not self._known:
                    self.connect()
                return work()
            except PyMongoError as error:
                now = self.clock.monotonic()
                first = until is None
                if until is None:
                    until = now + patience
                if not is_passing(error) or self._closed:
                    raise self.translate(error) from None
                silent = isinstance(error, pymongo.errors.ServerSelectionTimeoutError)
                if first and not silent:
                    continue
                if now + pause > until:
                    raise self.translate(error) from None
            self.clock.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, PAUSE_MAX)

    def transact(self, work: Callable[[ClientSession], T], patience: float = 0.0) -> T:
        """Do something in a transaction of its own, again from the start where that is needed."""

        def whole() -> T:
            with pymongo.timeout(self.location.timeout), self.client.start_session() as session:
                done: T = session.with_transaction(work)
                return done

        return self.run(whole, patience)

    def connect(self) -> None:
        """Find the server, initiate it if that is wanted, prepare what is stored there.

        Raises the driver's errors, or ours.
        """
        if self._closed:
            raise self._error(f"the connection to {self.location} was closed", retryable=False)
        if self.location.initiate:
            initiate(self.location, self.clock, open_client)
        hello = self.client.admin.command("hello")
        self._shared.time.learn(hello.get("localTime"))
        prepare(self, self._layout)
        self._known = True

    def about(self) -> dict[str, Any]:
        """What people want to know of it; raises the driver's errors."""
        hello = self.client.admin.command("hello")
        kind = "sharded" if hello.get("msg") == "isdbgrid" else "replica set"
        return {
            "version": self.client.server_info()["version"],
            "mode": kind if kind == "sharded" or "setName" in hello else "standalone",
            "replica_set": hello.get("setName", ""),
            "primary": hello.get("primary", ""),
            "members": list(hello.get("hosts", ())),
            "database": self.location.database,
            "namespace": self.location.namespace,
        }

    def translate(self, error: Exception) -> TransportError:
        """The error as callers see it."""
        return translate(error, self.location, self._error)

    def close(self) -> None:
        """End its use; the driver's client goes with its last user."""
        with _guard:
            if self._closed:
                return
            self._closed = True
            self._shared.users -= 1
            last = self._shared.users == 0
            if last and _shared.get(self._key) is self._shared:
                del _shared[self._key]
        if last:
            self._shared.client.close()
