"""Connections to one PostgreSQL database: a few for statements, one that listens.

Any thread may call `Database.run`: each call has a connection to itself. The
`Listener` belongs to the worker's I/O thread, but for `interrupt` and `close`.
"""

from __future__ import annotations

import select
import socket
import ssl
import threading
from collections.abc import Sequence
from contextlib import suppress
from hashlib import md5
from importlib.resources import files
from typing import Any
from urllib.parse import unquote, urlsplit

import pg8000.native
from pg8000.exceptions import DatabaseError, InterfaceError

from taskline.errors import ConfigurationError, TransportError

ANSWER_WITHIN = 10.0
"""Seconds for which a statement may take, or the server may be silent."""
TRANSIENT = ("08", "40", "53", "55", "57", "58")
"""Classes of SQLSTATE that pass: connections, deadlocks, resources, shutdowns, the disk."""
DEADLOCK = "40P01"

Statements = dict[str, pg8000.native.PreparedStatement]


class Connection:
    """One connection, with the statements that it has prepared."""

    def __init__(self, location: Location) -> None:
        parts = location.parts
        self.socket = socket.create_connection((location.host, location.port), ANSWER_WITHIN)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.descriptor = self.socket.fileno()  # TLS takes the socket over, but not its number
        self._driver = pg8000.native.Connection(
            unquote(parts.username or "postgres"),
            host=location.host,
            database=location.database,
            password=unquote(parts.password or ""),
            ssl_context=ssl.create_default_context() if location.tls else False,
            application_name="taskline",
            sock=self.socket,
        )
        self._prepared: Statements = {}
        self.simple(f"SET search_path TO {pg8000.native.identifier(location.schema)}")

    def run(self, sql: str, **params: Any) -> list[list[Any]]:
        """The rows of a statement, which is its own transaction."""
        statement = self._prepared.get(sql)
        if statement is None:
            statement = self._prepared[sql] = self._driver.prepare(sql)
        return statement.run(**params) or []

    def simple(self, sql: str) -> list[list[Any]]:
        """The rows of one or more statements without parameters, all in one transaction."""
        return self._driver.run(sql) or []

    def close(self) -> None:
        with suppress(InterfaceError, OSError):
            self._driver.close()
        self.socket.close()


class Location:
    """Where the database is: `user:password@host:port/database` and the schema in it."""

    def __init__(self, address: str, schema: str = "public", tls: bool = False) -> None:
        self.parts = urlsplit(f"//{address}")
        try:
            self.port = self.parts.port or 5432
        except ValueError as error:
            raise ConfigurationError(f"postgresql: {error}") from None
        self.host = self.parts.hostname or "localhost"
        self.database = unquote(self.parts.path.lstrip("/")) or "postgres"
        self.schema = schema
        self.tls = tls

    def __str__(self) -> str:
        """Without the password."""
        return f"postgresql://{self.host}:{self.port}/{self.database}"


class Database:
    """Runs statements, and makes the tables when they are first needed."""

    def __init__(self, location: Location) -> None:
        self.location = location
        self._lock = threading.Lock()
        self._idle: list[Connection] = []
        self._ready = False
        self._closed = False

    def run(self, sql: str, **params: Any) -> list[list[Any]]:
        """The rows of one statement; raises `TransportError`.

        It is run again after a deadlock, and on a new connection when one that was
        idle turns out to be dead. So each statement must bear to be run twice.
        """
        while True:
            connection, fresh = self._take()
            try:
                rows = connection.run(sql, **params)
            except (DatabaseError, InterfaceError, OSError) as error:
                connection.close()
                if _sqlstate(error) == DEADLOCK or (_is_lost(error) and not fresh):
                    continue
                raise self.translated(error) from error
            with self._lock:
                if not self._closed:
                    self._idle.append(connection)
                    return rows
            connection.close()
            return rows

    def connect(self) -> Connection:
        """A further connection, which the caller closes."""
        try:
            connection = Connection(self.location)
            if not self._ready:
                self._create(connection)
                self._ready = True
        except (DatabaseError, InterfaceError, OSError) as error:
            raise self.translated(error) from error
        return connection

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _take(self) -> tuple[Connection, bool]:
        """A connection, and whether it is new."""
        with self._lock:
            if self._closed:
                raise TransportError(
                    "the postgresql transport is closed: open another", retryable=False
                )
            if self._idle:
                return self._idle.pop(), False
        return self.connect(), True

    def _create(self, connection: Connection) -> None:
        if connection.simple("SELECT to_regclass('taskline_dead'), to_regproc('taskline_claim')")[
            0
        ] != [None, None]:
            return
        name = pg8000.native.identifier(self.location.schema)
        # The lock is for those who start at the same time; it ends with the transaction.
        connection.simple(
            f"SELECT pg_advisory_xact_lock(7461736); CREATE SCHEMA IF NOT EXISTS {name};"
            + files(__package__).joinpath("schema.sql").read_text()
        )

    def translated(self, error: Exception) -> TransportError:
        """A driver's error as the seam has it."""
        detail = error.args[0] if isinstance(error, DatabaseError) else None
        text = detail["M"] if isinstance(detail, dict) else error.__cause__ or error
        code = _sqlstate(error)
        return TransportError(
            f"{self.location}: {' '.join(str(text).split())}",
            retryable=_is_lost(error) or code[:2] in TRANSIENT,
        )


class Listener:
    """Waits for notifications: `listen`, look for messages, `wait`, and look again."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: Connection | None = None
        self._channels: set[str] = set()
        self._bell, self._rung = socket.socketpair()
        self._bell.setblocking(False)
        self._rung.setblocking(False)

    def listen(self, queues: Sequence[str]) -> None:
        """Be told of these queues, from now on.

        What was notified before is forgotten, since the caller looks now: only so
        may the driver have read ahead.
        """
        schema = self._database.location.schema
        channels = {"taskline_" + md5(f"{schema}.{queue}".encode()).hexdigest() for queue in queues}
        if self._connection is None:
            self._connection, self._channels = self._database.connect(), set()
        sql = "".join(f"LISTEN {each};" for each in sorted(channels - self._channels))
        try:
            self._connection.simple(sql or "SELECT 1")
        except (DatabaseError, InterfaceError, OSError) as error:
            self._connection.close()
            self._connection = None
            raise self._database.translated(error) from error
        self._channels |= channels

    def wait(self, seconds: float) -> None:
        """Until a notification, an interrupt, the end of the connection, or the time's."""
        assert self._connection is not None
        poller = select.poll()
        poller.register(self._connection.descriptor, select.POLLIN)
        poller.register(self._rung, select.POLLIN)
        poller.poll(max(0.0, seconds) * 1000)

    def interrupt(self) -> None:
        """End a `wait`, this one or the next."""
        with suppress(OSError):  # full: it will be heard; closed: nobody waits
            self._bell.send(b"!")

    def interrupted(self) -> bool:
        """Whether `interrupt` was called since the last time this was asked."""
        try:
            return bool(self._rung.recv(4096))
        except OSError:
            return False

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        self._bell.close()
        self._rung.close()


def _sqlstate(error: Exception) -> str:
    detail = error.args[0] if isinstance(error, DatabaseError) and error.args else None
    return str(detail.get("C", "")) if isinstance(detail, dict) else ""


def _is_lost(error: Exception) -> bool:
    """Whether the connection is gone, rather than the statement refused."""
    return not isinstance(error, DatabaseError) or _sqlstate(error)[:3] in ("57P", "08")
