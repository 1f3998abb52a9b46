"""The layout of the file, and how older layouts are brought to it.

`PRAGMA user_version` holds the layout's number, `application_id` says that the
file is Taskline's.
"""

from __future__ import annotations

import re
import sqlite3

from taskline.errors import ConfigurationError

APPLICATION_ID = 0x5461736B  # "Task"
OLDEST_SQLITE = (3, 35, 0)

READY, DELAYED, LEASED = 0, 1, 2
"""The states of a message."""

STEPS: tuple[tuple[str, ...], ...] = (
    (
        # AUTOINCREMENT: a `seq` is never used twice, so that (seq, deliveries) names one
        # handing-over for ever. `priority` is negated: the smallest is the most urgent.
        # `at` is since when a message is ready, or when it must be looked at: the eta of a
        # delayed one, the end of the lease of a leased one, which `owner` holds.
        """
        CREATE TABLE messages (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL,
            queue TEXT NOT NULL,
            priority INTEGER NOT NULL,
            state INTEGER NOT NULL,
            at REAL NOT NULL,
            owner TEXT NOT NULL DEFAULT '',
            deliveries INTEGER NOT NULL,
            lost INTEGER NOT NULL DEFAULT 0,
            sent REAL NOT NULL,
            frame BLOB NOT NULL
        )
        """,
        "CREATE UNIQUE INDEX messages_id ON messages (id)",
        # Each ends with the rowid by itself, so that `ready` is in order of (priority, seq).
        "CREATE INDEX ready ON messages (queue, priority) WHERE state = 0",
        "CREATE INDEX timers ON messages (at) WHERE state > 0",
        """
        CREATE TABLE dead (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL UNIQUE,
            queue TEXT NOT NULL,
            deliveries INTEGER NOT NULL,
            letter BLOB NOT NULL,
            frame BLOB NOT NULL
        )
        """,
        # A stored outcome always gets a new `seq`: who waits reads on from the last one seen.
        """
        CREATE TABLE outcomes (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL UNIQUE,
            state TEXT NOT NULL,
            sent REAL NOT NULL,
            deliveries INTEGER NOT NULL,
            ttl REAL,
            expires REAL,
            frame BLOB NOT NULL
        )
        """,
        "CREATE INDEX outcomes_expires ON outcomes (expires) WHERE expires IS NOT NULL",
        """
        CREATE TABLE revocations (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL,
            terminate INTEGER NOT NULL,
            expires REAL NOT NULL
        )
        """,
        """
        CREATE TABLE counters (
            key TEXT PRIMARY KEY,
            size INTEGER NOT NULL,
            expires REAL NOT NULL
        )
        """,
        """
        CREATE TABLE members (
            key TEXT NOT NULL,
            member TEXT NOT NULL,
            PRIMARY KEY (key, member)
        ) WITHOUT ROWID
        """,
    ),
    ("CREATE INDEX dead_queue ON dead (queue, seq)",),
    (
        """
        CREATE TABLE keys (
            seq INTEGER PRIMARY KEY,
            key TEXT NOT NULL UNIQUE,
            value BLOB NOT NULL,
            expires REAL
        )
        """,
        "CREATE INDEX keys_expires ON keys (expires) WHERE expires IS NOT NULL",
        # AUTOINCREMENT: the greatest fence is remembered when its lock is free again.
        """
        CREATE TABLE locks (
            fence INTEGER PRIMARY KEY AUTOINCREMENT,
            name TEXT NOT NULL UNIQUE,
            token TEXT NOT NULL,
            expires REAL NOT NULL
        )
        """,
    ),
)
"""`STEPS[n]` brings layout n to layout n + 1; an empty file has layout 0. Only ever append."""

LAYOUT = len(STEPS)

_NAMED = re.compile(r"CREATE .*?(\w+) (?:ON|\()")
_OURS = frozenset(name for step in STEPS for text in step for name in _NAMED.findall(text))
"""The names of our tables and indexes."""


def check_library() -> None:
    """Raise `ConfigurationError` when Python's SQLite is too old."""
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        raise ConfigurationError(
            f"Taskline needs SQLite 3.35 or newer, but this Python has {sqlite3.sqlite_version}: "
            "use a newer Python build, or another broker"
        )


def layout_of(connection: sqlite3.Connection, path: str, shared: bool = False) -> int:
    """The file's layout; raises `ConfigurationError` when it is not for this Taskline.

    `shared`: another application's tables may be there, under names that are not ours.
    """
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (layout,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master")]
        if application or layout:
            raise ConfigurationError(
                f"{path} is the database of another application, whose application_id is "
                f"{application} and user_version {layout}: give Taskline a file of its own"
            )
        if names and not shared:
            raise ConfigurationError(
                f"{path} is the database of another application: give Taskline a file of its own, "
                f"or add ?shared=true to keep both in one"
            )
        taken = _OURS.intersection(name.lower() for name in names)
        if taken:
            raise ConfigurationError(
                f"{path} has {' and '.join(sorted(taken))} already, and Taskline needs the name: "
                "give Taskline a file of its own"
            )
    if layout > LAYOUT:
        raise ConfigurationError(
            f"{path} was written by a newer Taskline (layout {layout}, this one knows "
            f"{LAYOUT}): upgrade Taskline"
        )
    return int(layout)


def upgrade(connection: sqlite3.Connection, path: str, shared: bool = False) -> None:
    """Bring the file to the present layout, all or nothing. It may be there already."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        for step in STEPS[layout_of(connection, path, shared) :]:
            for statement in step:
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {LAYOUT}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
