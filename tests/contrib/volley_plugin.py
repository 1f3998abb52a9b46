"""A connector as users of Volley write them, after the plug-in in its documentation, on SQLite.

The base classes have the fields and calls of those in py-volley 1.3.
"""

from __future__ import annotations

import os
import sqlite3
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

LOCKED_FOR = 1.0
"""Seconds after which a message that nobody finished comes again."""


@dataclass
class QueueMessage:
    message_context: Any
    message: Any


@dataclass
class BaseConsumer(ABC):
    queue_name: str
    host: str | None = None
    config: dict[str, Any] = field(default_factory=dict)

    @abstractmethod
    def consume(self) -> QueueMessage | None: ...

    @abstractmethod
    def on_success(self, message_context: Any) -> None: ...

    @abstractmethod
    def on_fail(self, message_context: Any) -> None: ...

    @abstractmethod
    def shutdown(self) -> None: ...


@dataclass
class BaseProducer(ABC):
    queue_name: str
    host: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    callback_delivery: bool = False
    on_success: Any = None
    on_fail: Any = None

    @abstractmethod
    def produce(
        self, queue_name: str, message: Any, message_context: Any, **kwargs: Any
    ) -> bool: ...

    @abstractmethod
    def shutdown(self) -> None: ...


def connect(config: dict[str, Any]) -> sqlite3.Connection:
    database = sqlite3.connect(
        config.get("file") or os.environ["VOLLEY_FILE"],
        timeout=30,
        isolation_level=None,
        check_same_thread=False,
    )
    database.execute(
        "CREATE TABLE IF NOT EXISTS volley (id INTEGER PRIMARY KEY, queue TEXT, message BLOB, "
        "locked REAL DEFAULT 0)"
    )
    return database


@dataclass
class MyConsumer(BaseConsumer):
    def __post_init__(self) -> None:
        self.database = connect(self.config)

    def consume(self) -> QueueMessage | None:
        row = self.database.execute(
            "UPDATE volley SET locked = ?1 + ?2 WHERE id = (SELECT id FROM volley "
            "WHERE queue = ?3 AND locked <= ?1 ORDER BY id LIMIT 1) RETURNING id, message",
            (time.time(), LOCKED_FOR, self.queue_name),
        ).fetchone()
        return None if row is None else QueueMessage(message_context=row[0], message=row[1])

    def on_success(self, message_context: int) -> None:
        self.database.execute("DELETE FROM volley WHERE id = ?", (message_context,))

    def on_fail(self, message_context: int) -> None:
        self.database.execute("UPDATE volley SET locked = 0 WHERE id = ?", (message_context,))

    def shutdown(self) -> None:
        self.database.close()


@dataclass
class MyProducer(BaseProducer):
    def __post_init__(self) -> None:
        self.database = connect(self.config)

    def produce(self, queue_name: str, message: Any, message_context: Any, **kwargs: Any) -> bool:
        self.database.execute(
            "INSERT INTO volley (queue, message) VALUES (?, ?)", (queue_name, message)
        )
        return True

    def shutdown(self) -> None:
        self.database.close()


@dataclass
class MyConfirmingProducer(MyProducer):
    """Tells of its success in a callback, as Volley's producer for Kafka does."""

    callback_delivery: bool = True

    def produce(self, queue_name: str, message: Any, message_context: Any, **kwargs: Any) -> bool:
        fails = b"unlucky" in message
        if not fails:
            super().produce(queue_name, message, message_context)
        (self.on_fail if fails else self.on_success)(message_context)
        return True
