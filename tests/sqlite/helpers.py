"""Messages, statements that are watched, and processes that may be killed."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taskline.clock import SYSTEM_CLOCK
from taskline.message import Header, Message, Outcome
from taskline.sqlite.database import Database

fork = multiprocessing.get_context("fork")
BOUND = 30.0
"""Seconds after which anything counts as hanging."""


def message(key: str, queue: str = "q", frame: bytes | None = None, **fields: Any) -> Message:
    fields.setdefault("sent", 0.0)
    header = Header(v=1, id=key, task="t", queue=queue, **fields)
    return Message(header, key.encode() if frame is None else frame)


def outcome(key: str, state: str = "SUCCESS", *, deliveries: int = 1, ttl: Any = None) -> Outcome:
    return Outcome(key, state, 1.0, deliveries, ttl, b"frame of " + key.encode())


class Statements:
    """The statements that reach SQLite, in this process, from now on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.all: list[tuple[int, str]] = []
        connect = Database.connect

        def traced(database: Database) -> sqlite3.Connection:
            connection = connect(database)
            number = id(connection)
            connection.set_trace_callback(lambda text: self.all.append((number, text)))
            return connection

        monkeypatch.setattr(Database, "connect", traced)

    def clear(self) -> None:
        self.all.clear()

    def transactions(self) -> int:
        """How many transactions wrote: each pays for the lock and the log."""
        inside: set[int] = set()
        count = 0
        for connection, text in self.all:
            word = text.split()[0].upper()
            if word == "BEGIN":
                inside.add(connection)
            elif word in ("COMMIT", "ROLLBACK"):
                inside.discard(connection)
                count += word == "COMMIT"
            elif word in ("INSERT", "UPDATE", "DELETE") and connection not in inside:
                count += 1
        return count

    def count(self, word: str) -> int:
        return sum(text.split()[0].upper() == word for _, text in self.all)


def until(probe: Callable[[], Any]) -> Any:
    """Poll until the probe answers with something true; fails after the bound."""
    end = SYSTEM_CLOCK.monotonic() + BOUND
    pause = threading.Event()
    while not (answer := probe()):
        if SYSTEM_CLOCK.monotonic() > end:
            pytest.fail(f"did not happen within {BOUND:g} s; the last answer was {answer!r}")
        pause.wait(0.002)
    return answer


class Diary:
    """Lines that a process writes and that outlive it, whenever it is killed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(self, *words: object) -> None:
        os.write(self._file, (" ".join(map(str, words)) + "\n").encode())

    def lines(self) -> list[list[str]]:
        return [line.split() for line in self.path.read_text().splitlines()]

    def close(self) -> None:
        os.close(self._file)


def run(*targets: tuple[Callable[..., None], tuple[Any, ...]]) -> None:
    """Run each in a process of its own, to its end; fails when one fails or hangs."""
    processes = [fork.Process(target=target, args=args) for target, args in targets]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(BOUND)
        assert [process.exitcode for process in processes] == [0] * len(processes)
    finally:
        for process in processes:
            process.kill()
            process.join()
