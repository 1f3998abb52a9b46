"""An app's connections: opened at first use, one of each in a process, never shared by a fork."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Collection
from functools import partial

from taskline.backends import open_backend
from taskline.backends.base import Backend
from taskline.clock import Clock
from taskline.config import Settings
from taskline.queueing import HOME, Queues
from taskline.transports import open_transport
from taskline.transports.base import Transport
from taskline.waiters import Waiters


class Connections:
    """The transport and the backend of one app, and those who wait for the backend."""

    def __init__(self, settings: Settings, queues: Queues, clock: Clock) -> None:
        self._settings = settings
        self._queues = queues
        self._clock = clock
        self._inherited: list[object] = []
        self._lock = threading.Lock()
        self.current: Transport | None = None
        """The open transport, or None before its first use."""
        self._backend: Backend | None = None
        self._waiters: Waiters | None = None
        _all.add(self)

    def transport(self) -> Transport:
        """The open transport, opened now if need be."""
        if self.current is not None:
            return self.current
        opened = self.new_transport()
        kept = self._keep(opened)
        if kept is not opened:  # another thread was faster
            opened.close()
        return kept

    def _keep(self, opened: Transport) -> Transport:
        with self._lock:
            if self.current is None:
                self.current = opened
            return self.current

    def backend(self) -> Backend | None:
        """The open backend, opened now if need be; None when results are not kept.

        In eager mode one in memory stands in for it, so that workflows can go on.
        """
        settings = self._settings
        if self._backend is not None or (settings.backend is None and not settings.eager):
            return self._backend
        opened = self.new_backend()
        if opened is None:
            return None
        kept = self._keep_backend(opened)
        if kept is not opened:
            opened.close()
        return kept

    def _keep_backend(self, opened: Backend) -> Backend:
        with self._lock:
            if self._backend is None:
                self._backend, self._waiters = opened, Waiters(opened)
            return self._backend

    def waiters(self) -> Waiters | None:
        """Those who wait for the backend; None when results are not kept."""
        return self._waiters if self.backend() is not None else None

    def new_transport(self, served: Collection[str] | None = None) -> Transport:
        """A further connection to the broker, or to those of the served queues."""
        queues, clock = self._queues, self._clock
        if not queues.routed:
            return self._open(HOME)
        from taskline.transports.routed import RoutedTransport

        connectors = {key: partial(self._open, key) for key in queues.connectors}
        return RoutedTransport(connectors, queues.routes, clock, served)

    def _open(self, connector: str) -> Transport:
        opened = open_transport(self._queues.connectors[connector], clock=self._clock)
        of_celery = self._queues.of_celery(connector)
        if of_celery is None or of_celery:
            opened.speak("celery", of_celery)
        return opened

    def new_backend(self) -> Backend | None:
        """A further connection to the result backend."""
        spec = self._settings.backend
        if spec is None and self._settings.eager:
            spec = f"memory://eager-{id(self)}"
        return open_backend(spec, clock=self._clock)

    def close(self) -> None:
        """Close both; they are opened anew when they are used again."""
        with self._lock:
            transport, backend = self.current, self._backend
            self.current = self._backend = self._waiters = None
        if transport is not None:
            transport.close()
        if backend is not None:
            backend.close()

    def abandon(self) -> None:
        """In a child process: start anew, and leave to the parent what is the parent's.

        The objects are kept, because collecting them might close what is shared.
        """
        self._inherited += [self.current, self._backend]
        self._lock = threading.Lock()
        self.current = self._backend = self._waiters = None


_all: weakref.WeakSet[Connections] = weakref.WeakSet()


def _after_fork() -> None:
    for connections in _all:
        connections.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
