"""One SQLite file: connections, short transactions, patience with other writers, clear errors."""

from __future__ import annotations

import json
import logging
import os
import random
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, TypeVar

from taskline.clock import SYSTEM_CLOCK
from taskline.errors import ConfigurationError, TasklineError, TransportError
from taskline.sqlite.location import Location
from taskline.sqlite.pool import Pool
from taskline.sqlite.schema import LAYOUT, check_library, layout_of, upgrade

T = TypeVar("T")

PAGE = 2048
"""Bytes. What one message changes is written in whole pages, so small ones make a send cheaper."""
AUTOCHECKPOINT = 16000
"""Pages in the write-ahead log before a writer must copy them; `maintain` mostly does it first."""
LOG_LIMIT = 64 * 1024 * 1024
"""Bytes to which the write-ahead log is cut back."""

_ROWS = (256, 64, 16, 4, 1)
"""Rows in one INSERT. Few sizes, so that their statements stay prepared."""

_log = logging.getLogger("taskline.sqlite")

_FULL = "disk is full"
_BUSY = ("database is locked", "database table is locked", "locking protocol")


def as_json(values: Iterable[Any]) -> str:
    """A list as the one parameter of `json_each(?)`."""
    return json.dumps(list(values))


def insert(
    connection: sqlite3.Connection | sqlite3.Cursor,
    statement: str,
    width: int,
    params: Sequence[Any],
) -> None:
    """Insert many rows with few statements.

    `{rows}` in the statement stands for the placeholders of rows of `width`
    columns, `params` are those of all rows in turn.
    """
    # Every step of a statement lets go of the GIL, and a busy thread may keep it for a
    # switch interval: `executemany`, a step for each row, is 200 times slower beside one.
    start = 0
    for size in _ROWS:
        while len(params) - start >= size * width:
            end = start + size * width
            connection.execute(_with_rows(statement, width, size), params[start:end])
            start = end


@cache
def _with_rows(statement: str, width: int, size: int) -> str:
    row = f"({','.join('?' * width)})"
    return statement.replace("{rows}", ",".join([row] * size))


class Database:
    """The file, for any number of threads. `error` is the class of the errors it raises."""

    def __init__(self, location: Location, error: type[TransportError]) -> None:
        check_library()
        self.location = location
        self.path = location.path
        self._error = error
        self._pool = Pool(self.connect)
        self._file: tuple[int, int] | None = None
        self._next_check = 0.0
        self._next_checkpoint = 0.0

    def connect(self) -> sqlite3.Connection:
        """A new connection to the file, which is made or migrated if it must be."""
        connection = sqlite3.connect(
            self.path, timeout=0, isolation_level=None, check_same_thread=False
        )
        try:
            self._patiently(lambda: self._prepare(connection))
        except BaseException:
            connection.close()
            raise
        self._file = _identity(self.path)
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        full = self.location.durability == "full"
        connection.execute(f"PRAGMA synchronous = {'FULL' if full else 'NORMAL'}")
        # One snapshot: another process may be making the file at this moment.
        connection.execute("BEGIN")
        try:
            layout = layout_of(connection, self.path, self.location.shared)
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        if layout < LAYOUT:
            connection.execute(f"PRAGMA page_size = {PAGE}")
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal":
                raise ConfigurationError(
                    f"{self.path} is on a file system without shared memory for SQLite's "
                    "write-ahead log: put it on a local disk"
                )
            upgrade(connection, self.path, self.location.shared)
        connection.execute(f"PRAGMA wal_autocheckpoint = {AUTOCHECKPOINT}")
        connection.execute(f"PRAGMA journal_size_limit = {LOG_LIMIT}")

    def run(self, statement: str, params: Sequence[Any]) -> int:
        """One writing statement, a transaction of its own; returns the rows it changed."""
        return self._use(lambda connection: connection.execute(statement, params).rowcount)

    def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What `work` reads. Each of its statements sees the file at one moment."""
        return self._use(work)

    def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do all that `work` does, or nothing. It may be called again when the file was busy."""

        def transaction(connection: sqlite3.Connection) -> T:
            connection.execute("BEGIN IMMEDIATE")
            result = work(connection)
            connection.execute("COMMIT")
            return result

        return self._use(transaction)

    def maintain(self) -> None:
        """Copy what was committed from the write-ahead log to the file, so that writers need not.

        It blocks nobody, and does so rarely enough to take 1/200 of the calling thread's time.
        """
        start = SYSTEM_CLOCK.monotonic()
        if start >= self._next_checkpoint:
            self.read(_checkpoint)
            took = SYSTEM_CLOCK.monotonic() - start
            self._next_checkpoint = start + max(1.0, 200 * took)

    def ping(self) -> None:
        """Return if the file can be written to."""
        self.write(lambda connection: None)

    def info(self) -> dict[str, Any]:
        """What `Transport.info` and `Backend.info` say of the file."""
        mode = self.read(lambda db: db.execute("PRAGMA journal_mode").fetchone()[0])
        return {
            "address": self.path,
            "version": f"SQLite {sqlite3.sqlite_version}",
            "journal": mode,
            "durability": self.location.durability,
            "size": sum(
                os.path.getsize(path)
                for path in (self.path, f"{self.path}-wal")
                if os.path.exists(path)
            ),
        }

    def own(self) -> sqlite3.Connection:
        """A connection for reading that its taker keeps until `disown`."""
        try:
            return self._pool.own()
        except sqlite3.Error as error:
            raise self._explain(error) from None

    def disown(self, connection: sqlite3.Connection) -> None:
        """Close this connection, and use another the next time."""
        self._pool.drop(connection)

    def close(self) -> None:
        """Close all connections, those in use as soon as they are not."""
        self._pool.close()

    def _use(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return self._patiently(lambda: self._once(work))
        except sqlite3.Error as error:
            if _FULL not in str(error):
                raise self._explain(error) from None
        # Once all of the write-ahead log is in the file, it is written from its start again.
        try:
            self._patiently(lambda: self._once(_checkpoint))
            return self._patiently(lambda: self._once(work))
        except sqlite3.Error as error:
            raise self._explain(error) from None

    def _once(self, work: Callable[[sqlite3.Connection], T]) -> T:
        pool = self._pool
        if pool.closed:
            raise self._error(f"{self.path} was closed: open it again", retryable=False)
        if SYSTEM_CLOCK.monotonic() >= self._next_check:
            self._check_file()
        connection = pool.take()
        try:
            result = work(connection)
        except BaseException as error:
            if isinstance(error, sqlite3.Error) and not _is_busy(error):
                pool.drop(connection)
            else:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                pool.give(connection)
            raise
        pool.give(connection)
        return result

    def _check_file(self) -> None:
        """Turn to the new file when somebody removed the one that is open."""
        self._next_check = SYSTEM_CLOCK.monotonic() + 1.0
        if self._file is not None and self._file != _identity(self.path):
            _log.warning("%s was removed or replaced: opening it anew", self.path)
            self._file = None
            self._pool.drain()

    def _patiently(self, attempt: Callable[[], T]) -> T:
        """Try until the file is not busy."""
        until = 0.0
        pause = 0.00005
        while True:
            try:
                return attempt()
            except sqlite3.Error as error:
                if not _is_busy(error):
                    raise
            # Real time, whatever clock the app has: who holds the file is another process.
            now = SYSTEM_CLOCK.monotonic()
            until = until or now + self.location.busy_timeout
            if now >= until:
                raise self._error(
                    f"{self.path} was busy for {self.location.busy_timeout:g} s: another process "
                    "keeps it locked; end that, or raise busy_timeout",
                    retryable=True,
                )
            SYSTEM_CLOCK.sleep(pause * (0.5 + random.random()))
            pause = min(pause * 1.5, 0.005)

    def _explain(self, error: sqlite3.Error) -> TasklineError:
        """The error for people. SQLite's texts are the only codes that Python 3.10 has."""
        text = str(error)
        path = self.path
        if "file is not a database" in text:
            return ConfigurationError(
                f"{path} is not an SQLite database: give Taskline a file of its own"
            )
        if _FULL in text:
            return self._error(
                f"{path} cannot grow: the disk is full; free some space", retryable=False
            )
        if "readonly" in text:
            return self._error(
                f"{path} cannot be written: let this user write {self._unwritable()}",
                retryable=False,
            )
        if "unable to open" in text:
            return self._error(f"{path} cannot be opened: {self._why_not()}", retryable=False)
        if "no such function: json" in text or "no such table: json_each" in text:
            return ConfigurationError(
                f"this Python's SQLite {sqlite3.sqlite_version} was built without JSON: "
                "use a Python with SQLite 3.38 or newer"
            )
        if "malformed" in text:
            return self._error(
                f"{path} is damaged ({text}): restore it, or use sqlite3's .recover",
                retryable=False,
            )
        if "I/O error" in text:
            return self._error(f"{path}: {text}: check the disk", retryable=True)
        return self._error(f"{path}: {text}", retryable=False)

    def _why_not(self) -> str:
        directory = os.path.dirname(self.path)
        if os.path.isdir(self.path):
            return "it is a directory; name a file in it"
        if not os.path.isdir(directory):
            return f"there is no directory {directory}; make it first"
        return f"let this user read and write it and {directory}"

    def _unwritable(self) -> str:
        # SQLite gives the two beside the file its mode, and they may outlive a change of it.
        directory = os.path.dirname(self.path)
        files = [self.path, f"{self.path}-wal", f"{self.path}-shm", directory]
        effective = os.access in os.supports_effective_ids
        kept = [
            file
            for file in files
            if os.path.exists(file) and not os.access(file, os.W_OK, effective_ids=effective)
        ]
        return " and ".join(kept) or "the file and its directory"


def _is_busy(error: sqlite3.Error) -> bool:
    return str(error).startswith(_BUSY)


def _checkpoint(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (found.st_dev, found.st_ino)
