"""Connections for any number of threads, and what a fork asks of them.

SQLite keeps its file locks per process: a child that inherits an open
connection, or the library's own record of one, may write without a lock. So
idle connections are closed before a fork, a fork waits for the transactions of
other threads to end, and a child never touches what it inherited.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import weakref
from collections.abc import Callable

from taskline.clock import SYSTEM_CLOCK

FORK_PATIENCE = 1.0
"""Seconds that a fork waits for the transactions of other threads."""


class Pool:
    """Idle connections of one file; each is used by one thread at a time."""

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self._connect = connect
        self._idle: list[sqlite3.Connection] = []
        self._open: set[sqlite3.Connection] = set()
        self._users: set[int] = set()
        self.closed = False
        with _lock:
            _pools.add(self)
        # Also at the end of the program: from 3.13 on Python warns of those left open.
        weakref.finalize(self, _close_all, self._idle)

    def take(self) -> sqlite3.Connection:
        """A connection for this thread, until `give` or `drop`."""
        # Announce first, then look: a fork that begins in between sees this thread.
        me = threading.get_ident()
        self._users.add(me)
        while _forking:
            self._users.discard(me)
            _forked.wait(FORK_PATIENCE)
            self._users.add(me)
        try:
            return self._idle.pop()
        except IndexError:
            pass
        try:
            return self.own()
        except BaseException:
            self._users.discard(me)
            raise

    def own(self) -> sqlite3.Connection:
        """A connection that its taker keeps to itself until `drop`."""
        connection = self._connect()
        self._open.add(connection)
        return connection

    def give(self, connection: sqlite3.Connection) -> None:
        """Return a connection that has no open transaction."""
        self._idle.append(connection)
        self._users.discard(threading.get_ident())
        if self.closed:
            self.drain()

    def drop(self, connection: sqlite3.Connection) -> None:
        """Close a connection that must not be used again."""
        self._open.discard(connection)
        connection.close()
        self._users.discard(threading.get_ident())

    def drain(self) -> None:
        """Close all idle connections."""
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return
            self._open.discard(connection)
            connection.close()

    def close(self) -> None:
        """Close all connections, those in use as soon as they are returned."""
        self.closed = True
        self.drain()

    def in_use(self) -> bool:
        """Whether another thread has a connection."""
        return bool(self._users - {threading.get_ident()})

    def abandon(self) -> None:
        """In a forked child: never use, and never close, what was inherited."""
        _abandoned.extend(self._open)
        self._idle.clear()
        self._open = set()
        self._users = set()


def _close_all(idle: list[sqlite3.Connection]) -> None:
    while idle:
        idle.pop().close()


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()
_abandoned: list[sqlite3.Connection] = []
_lock = threading.Lock()
_forking = False
_forked = threading.Event()


def _before_fork() -> None:
    global _forking
    _lock.acquire()
    _forked.clear()
    _forking = True
    until = SYSTEM_CLOCK.monotonic() + FORK_PATIENCE
    pools = list(_pools)
    while any(pool.in_use() for pool in pools) and SYSTEM_CLOCK.monotonic() < until:
        SYSTEM_CLOCK.sleep(0.0005)
    for pool in pools:
        pool.drain()


def _after_fork_in_parent() -> None:
    global _forking
    _forking = False
    _forked.set()
    _lock.release()


def _after_fork_in_child() -> None:
    global _forking, _forked, _lock
    # Whoever forks in C may call this hook alone; so everything is made anew.
    _lock = threading.Lock()
    _forked = threading.Event()
    _forking = False
    for pool in list(_pools):
        pool.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
