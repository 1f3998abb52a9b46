"""What a fork does to the connections of its parent."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from taskline.errors import TransportError
from taskline.sqlite.database import Database
from taskline.sqlite.location import Location
from taskline.transports.sqlite import SQLiteTransport

from .helpers import BOUND, message


def in_child(work: Callable[[], None]) -> int:
    """Fork; the child does the work and ends without any clean-up. Returns its process id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    finally:
        os._exit(status)


def ended_well(child: int) -> bool:
    return os.waitpid(child, 0)[1] == 0


def ready(file: Path) -> int:
    transport = SQLiteTransport(Location(str(file)))
    try:
        return transport.stats(["q"])[0].ready or 0
    finally:
        transport.close()


def test_what_a_child_sends_outlives_its_parents_connections(tmp_path: Path) -> None:
    """The parent closes what it takes for the last connection while the child still writes."""
    file = tmp_path / "tasks.db"
    parent = SQLiteTransport(Location(str(file)))
    parent.send([message("parent")])
    closed, sent = os.pipe(), os.pipe()

    def work() -> None:
        child = SQLiteTransport(Location(str(file)))
        child.send([message("child-1")])
        os.write(sent[1], b"!")
        os.read(closed[0], 1)
        child.send([message("child-2")])

    child = in_child(work)
    os.read(sent[0], 1)
    parent.close()
    os.write(closed[1], b"!")
    assert ended_well(child)
    assert ready(file) == 3
    connection = sqlite3.connect(file)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
    for fd in (*closed, *sent):
        os.close(fd)


def test_a_child_may_use_the_object_that_it_inherited(tmp_path: Path) -> None:
    """An app that was used before a server forked its workers."""
    file = tmp_path / "tasks.db"
    transport = SQLiteTransport(Location(str(file)))
    transport.send([message("before")])
    children = [
        in_child(lambda number=number: transport.send([message(f"child-{number}")]))
        for number in range(4)
    ]
    transport.send([message("after")])
    assert [ended_well(child) for child in children] == [True] * 4
    transport.close()
    assert ready(file) == 6


def test_a_fork_waits_for_the_transactions_of_other_threads(tmp_path: Path) -> None:
    """Else the child inherits a lock that nobody releases."""
    file = tmp_path / "tasks.db"
    database = Database(Location(str(file)), TransportError)
    stop, began = threading.Event(), threading.Event()

    def write() -> None:
        while not stop.is_set():
            database.write(lambda db: began.set())

    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert began.wait(BOUND)
    location = Location(str(file), busy_timeout=5.0)
    try:
        for number in range(20):
            own = message(str(number))
            assert ended_well(in_child(lambda own=own: SQLiteTransport(location).send([own])))
    finally:
        stop.set()
        for thread in threads:
            thread.join(BOUND)
        database.close()
    assert ready(file) == 20


def test_forks_of_several_threads_do_not_hinder_one_another(tmp_path: Path) -> None:
    file = tmp_path / "tasks.db"
    transport = SQLiteTransport(Location(str(file)))
    failed: list[int] = []

    def fork_and_send(part: int) -> None:
        for number in range(5):
            key = f"{part}-{number}"
            if not ended_well(in_child(lambda: transport.send([message(f"c{key}")]))):  # noqa: B023
                failed.append(number)
            transport.send([message(f"p{key}")])

    threads = [threading.Thread(target=fork_and_send, args=(part,)) for part in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND)
    assert failed == []
    transport.close()
    assert ready(file) == 30


def test_a_child_has_no_open_file_of_its_parent(tmp_path: Path) -> None:
    file = tmp_path / "tasks.db"
    transport = SQLiteTransport(Location(str(file)))
    transport.send([message("a")])
    transport.receive(["other"], 1, 30, 0.01, "w")

    def work() -> None:
        links = Path("/proc/self/fd")
        if links.is_dir():
            targets = [os.readlink(link) for link in links.iterdir() if link.is_symlink()]
            assert not [path for path in targets if path.startswith(str(file))]

    assert ended_well(in_child(work))
    transport.close()


PROGRAM = """
from taskline.sqlite.pool import Pool

class Connection:
    def close(self):
        print("closed", flush=True)

pool = Pool(Connection)
pool.give(pool.take())
"""


@pytest.mark.parametrize("end", ["", "del pool; print('deleted')"])
def test_idle_connections_are_closed_with_their_pool_and_their_program(end: str) -> None:
    program = [sys.executable, "-c", PROGRAM + end]
    ran = subprocess.run(program, capture_output=True, text=True, timeout=BOUND, check=True)
    assert ran.stdout.split() == (["closed", "deleted"] if end else ["closed"])
