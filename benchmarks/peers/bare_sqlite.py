# /// script
# dependencies = ["taskline"]
# ///
"""The floor under bulk sending: Taskline's own schema and rows, inserted by bare sqlite3.

Taskline stores the messages once; then the same rows go into an empty copy of its tables,
1 000 a transaction, with the journal and synchronous modes that Taskline uses.
"""

from __future__ import annotations

import sqlite3
from typing import Any

import taskline_sqlite
from common import DIRECTORY, DURABILITY, Peer

BATCH = 1000


class BareSQLite(Peer):
    def prepare(self) -> None:
        taskline_sqlite.peer.prepare()
        self.connection = connect("bare.db")
        self.rows: list[tuple[Any, ...]] = []
        self.insert = ""

    def send_many(self, count: int) -> None:
        for start in range(0, count, BATCH):
            self.connection.execute("begin immediate")
            self.connection.executemany(self.insert, self.rows[start : start + BATCH])
            self.connection.execute("commit")

    def fill(self, count: int) -> None:
        """Fetch the rows of as many messages as Taskline stores them."""
        taskline_sqlite.peer.send_many(count)
        source = connect("taskline.db")
        table = max(tables(source), key=lambda name: size(source, name))
        schema = source.execute("select sql from sqlite_master where sql is not null")
        for (statement,) in schema.fetchall():
            if not statement.lower().startswith("create table sqlite_"):
                self.connection.execute(statement)
        self.rows = source.execute(f"select * from {table}").fetchall()
        if len(self.rows) != count:
            raise SystemExit(f"{len(self.rows)} rows for {count} messages in {table}")
        marks = ",".join("?" * len(self.rows[0]))
        self.insert = f"insert into {table} values ({marks})"


def connect(name: str) -> sqlite3.Connection:
    connection = sqlite3.connect(DIRECTORY / name, isolation_level=None)
    connection.execute("pragma journal_mode=wal")
    connection.execute(f"pragma synchronous={DURABILITY}")
    return connection


def tables(connection: sqlite3.Connection) -> list[str]:
    rows = connection.execute("select name from sqlite_master where type='table'")
    return [name for (name,) in rows]


def size(connection: sqlite3.Connection, table: str) -> int:
    count: int = connection.execute(f"select count(*) from {table}").fetchone()[0]
    return count


peer = BareSQLite()
