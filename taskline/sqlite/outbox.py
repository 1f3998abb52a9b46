"""Messages within a transaction of the user's own, on the user's own connection.

Nobody tells us of that commit, so a thread looks for it, and then wakes the workers.
It gives up after `PATIENCE`: a worker looks by itself every second.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from taskline.clock import SYSTEM_CLOCK
from taskline.errors import ConfigurationError, TasklineError, TransportError
from taskline.sqlite import messages
from taskline.sqlite.wake import MESSAGES

if TYPE_CHECKING:
    from taskline.sqlite.database import Database
    from taskline.sqlite.wake import Bell

PATIENCE = 1.0
"""Seconds for which a commit is looked for, once the messages have been written."""
FIRST_PAUSE, MOST_PAUSE = 0.001, 0.02
"""Seconds between two looks."""

_SAVEPOINT = "taskline_outbox"
_STORED = "SELECT EXISTS (SELECT 1 FROM messages WHERE id = ?)"


def check(connection: Any, path: str) -> sqlite3.Connection:
    """The connection, if it can take messages for this file; raises `ConfigurationError`."""
    if not isinstance(connection, sqlite3.Connection):
        raise ConfigurationError(
            f"connection= is a {type(connection).__name__}: give the sqlite3.Connection whose "
            "transaction the messages are to be part of"
        )
    try:
        found = _file(connection)
    except sqlite3.Error as error:
        raise _explain(error, path) from None
    if not found or not os.path.samefile(found, path):
        raise ConfigurationError(
            f"connection= is open on {found or 'a database in memory'}, but the broker is {path}: "
            "a transaction holds one file, so open the connection on the broker's"
        )
    if not connection.in_transaction and not _begins_by_itself(connection):
        raise ConfigurationError(
            "connection= is in autocommit mode and has no transaction open: "
            'connection.execute("BEGIN") before the batch, and commit after it'
        )
    return connection


def add(connection: sqlite3.Connection, path: str, rows: Iterable[tuple[Any, ...]]) -> None:
    """Write messages, or none of them, in the transaction that is open on the connection."""
    if not connection.in_transaction:
        raise ConfigurationError(
            "no transaction is open on connection= at the end of the batch, so nothing was sent: "
            "write rows of your own in the block, or BEGIN before it, and commit after it"
        )
    cursor = connection.cursor()
    try:
        cursor.execute(f"SAVEPOINT {_SAVEPOINT}")
        try:
            messages.add(cursor, rows)
        except sqlite3.Error:
            # Some errors, such as a full disk, end the whole transaction by themselves.
            if connection.in_transaction:
                cursor.execute(f"ROLLBACK TO {_SAVEPOINT}")
            raise
        finally:
            if connection.in_transaction:
                cursor.execute(f"RELEASE {_SAVEPOINT}")
    except sqlite3.Error as error:
        raise _explain(error, path) from None


def _file(connection: sqlite3.Connection) -> str:
    cursor = connection.cursor()
    cursor.row_factory = None
    for _, name, file in cursor.execute("PRAGMA database_list"):
        if os.fsdecode(name) == "main":
            return os.fsdecode(file)
    return ""


def _begins_by_itself(connection: sqlite3.Connection) -> bool:
    """Whether Python opens a transaction before the first change of a row."""
    # Python 3.12 has `autocommit`; -1 stands for the older ways, which `isolation_level` tells.
    mode = getattr(connection, "autocommit", -1)
    return not mode if isinstance(mode, bool) else connection.isolation_level is not None


def _explain(error: sqlite3.Error, path: str) -> TasklineError:
    text = str(error)
    if "thread" in text:
        return ConfigurationError(
            "connection= belongs to another thread: use it in the thread that opened it"
        )
    if "closed" in text:
        return ConfigurationError("connection= is closed: open it on the broker's file")
    if "locked" in text:
        return TransportError(
            f"{path} was busy: another process keeps it locked; roll back and try again, or give "
            "sqlite3.connect a longer timeout"
        )
    return TransportError(f"{path}: {text}", retryable=False)


class _Awaited(NamedTuple):
    id: str
    queues: Collection[str]
    until: float


class Commits:
    """Wakes the workers when a transaction that others commit has brought messages."""

    def __init__(self, database: Database, bell: Bell) -> None:
        self._database = database
        self._bell = bell
        self._changed = threading.Condition()
        self._awaited: list[_Awaited] = []
        self._fresh = False
        self._running = False
        self._closed = False

    def expect(self, id: str, queues: Collection[str]) -> None:
        """The message of this id is about to be committed, with others for these queues."""
        with self._changed:
            if self._closed:
                return
            self._awaited.append(_Awaited(id, queues, SYSTEM_CLOCK.monotonic() + PATIENCE))
            self._fresh = True
            self._changed.notify_all()
            if self._running:
                return
            self._running = True
        threading.Thread(target=self._run, name="taskline-outbox", daemon=True).start()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._awaited = []
            self._changed.notify_all()

    def _run(self) -> None:
        pause = FIRST_PAUSE
        while True:
            with self._changed:
                if self._fresh:
                    self._fresh, pause = False, FIRST_PAUSE
                else:
                    self._changed.wait(pause)
                    pause = min(pause * 1.5, MOST_PAUSE)
                now = SYSTEM_CLOCK.monotonic()
                self._awaited = [each for each in self._awaited if each.until > now]
                if not self._awaited:
                    self._running = False
                    return
                awaited = list(self._awaited)
            try:
                there = [each for each in awaited if self._is_stored(each.id)]
            except TasklineError:
                # Closed, or out of order: workers look by themselves, and tell what is wrong.
                there = awaited
            for each in there:
                self._bell.ring(MESSAGES, each.queues)
            with self._changed:
                self._awaited = [each for each in self._awaited if each not in there]

    def _is_stored(self, id: str) -> bool:
        return bool(self._database.read(lambda db: db.execute(_STORED, (id,)).fetchone()[0]))
