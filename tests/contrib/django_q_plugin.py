"""A broker as users of Django Q write them: a subclass of django-q2's own `Broker`, on SQLite."""

from __future__ import annotations

import os
import sqlite3
import threading
import time

from django.conf import settings

if not settings.configured:
    settings.configure(Q_CLUSTER={"name": "tests", "retry": 2, "timeout": 1})

from django_q.brokers import Broker

RETRY = 1.0
"""Seconds after which a task that nobody acknowledged comes again."""
BULK = 3
"""Tasks that one `dequeue` returns."""


class MyBroker(Broker):  # type: ignore[misc]
    @staticmethod
    def get_connection(list_key: str | None = None) -> sqlite3.Connection:
        database = sqlite3.connect(
            os.environ["DJANGO_Q_FILE"], timeout=30, isolation_level=None, check_same_thread=False
        )
        database.execute(
            "CREATE TABLE IF NOT EXISTS ormq (id INTEGER PRIMARY KEY, key TEXT, payload TEXT, "
            "lock REAL DEFAULT 0)"
        )
        return database

    def enqueue(self, task: str) -> int:
        assert isinstance(task, str)
        found = self.connection.execute(
            "INSERT INTO ormq (key, payload) VALUES (?, ?) RETURNING id", (self.list_key, task)
        ).fetchone()
        return int(found[0])

    def dequeue(self) -> list[tuple[int, str]] | None:
        found = self.connection.execute(
            "UPDATE ormq SET lock = ?1 + ?2 WHERE id IN (SELECT id FROM ormq WHERE "
            "key = ?3 AND lock <= ?1 ORDER BY id LIMIT ?4) RETURNING id, payload",
            (time.time(), RETRY, self.list_key, BULK),
        ).fetchall()
        return [(key, payload) for key, payload in found] or None

    def acknowledge(self, task_id: int) -> None:
        self.delete(task_id)

    def fail(self, task_id: int) -> None:
        self.delete(task_id)

    def delete(self, task_id: int) -> None:
        self.connection.execute("DELETE FROM ormq WHERE id = ?", (task_id,))

    def purge_queue(self) -> None:
        self.connection.execute("DELETE FROM ormq WHERE key = ?", (self.list_key,))

    def queue_size(self) -> int:
        return self._count("lock <= ?")

    def lock_size(self) -> int:
        return self._count("lock > ?")

    def _count(self, which: str) -> int:
        statement = f"SELECT count(*) FROM ormq WHERE key = ? AND {which}"
        return int(self.connection.execute(statement, (self.list_key, time.time())).fetchone()[0])

    def ping(self) -> bool:
        return True

    def info(self) -> str:
        return f"SQLite {sqlite3.sqlite_version}"


class NoReceipts(Broker):  # type: ignore[misc]
    """As Django Q's own broker for Redis: who takes a task has taken it away."""

    lists: dict[str, list[str]] = {}
    lock = threading.Lock()

    def enqueue(self, task: str) -> None:
        with self.lock:
            self.lists.setdefault(self.list_key, []).append(task)

    def dequeue(self) -> list[tuple[None, str]] | None:
        with self.lock:
            tasks = self.lists.get(self.list_key)
            return [(None, tasks.pop(0))] if tasks else None

    def queue_size(self) -> int:
        return len(self.lists.get(self.list_key, []))
