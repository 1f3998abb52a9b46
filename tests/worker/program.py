"""A worker in processes of its own, for tests that signal and kill it.

    python program.py supervisor|worker OPTIONS-AS-JSON

Its tasks leave notes in the directory PROGRAM_DIRECTORY, which the test reads.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import Annotated

from taskline import Depends, Middleware, Taskline
from taskline.context import current_task

kept: list[bytes] = []
DIRECTORY = os.environ.get("PROGRAM_DIRECTORY", "")


def note(*words: object) -> None:
    """Add a line to the notes, in one write."""
    line = " ".join(map(str, words)) + "\n"
    file = os.open(f"{DIRECTORY}/notes", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, line.encode())
    os.close(file)


def released(name: str) -> bool:
    return os.path.exists(f"{DIRECTORY}/release-{name}")


def make_app(directory: str, **settings: object) -> Taskline:
    url = f"sqlite:///{directory}/broker.db"
    app = Taskline("program", **{"broker": url, "backend": url, **settings})
    if os.environ.get("PROGRAM_HOOKS"):
        app.use(Life())
    if os.environ.get("PROGRAM_HANGS"):
        app.use(Hang())
    for function in (
        quick,
        hold,
        nap,
        deaf,
        stuck,
        die,
        die_with_all,
        leave,
        grow,
        place,
        hold_async,
        borrow,
        borrow_async,
    ):
        app.task(name=function.__name__)(function)
    if os.environ.get("PROGRAM_LIMITS"):
        app.task(name="room", concurrency=2)(hold)
        app.task(name="alone", concurrency=1, retry=0, timeout=0.2, limit_key="name")(stuck)
    return app


class Hang(Middleware):
    """Hangs the I/O thread once a message has come, in the first process that gets one."""

    def after_receive(self, headers: object) -> None:
        if not os.path.exists(f"{DIRECTORY}/hung"):
            note("hang", "io", os.getpid())
            open(f"{DIRECTORY}/hung", "w").close()
            time.sleep(3600)


class Life(Middleware):
    """Notes the starts and ends of processes."""

    def worker_start(self, app: Taskline) -> None:
        note("worker_start", os.getpid())

    def worker_stop(self, app: Taskline) -> None:
        note("worker_stop", os.getpid())

    def process_start(self, app: Taskline) -> None:
        note("process_start", os.getpid())

    def process_stop(self, app: Taskline) -> None:
        note("process_stop", os.getpid())


def quick(number: int = 0) -> int:
    """Return the process's id."""
    return os.getpid()


def hold(name: str) -> list[int]:
    """Run until the test releases this name; returns process, deliveries and attempt."""
    note("begin", name, os.getpid())
    while not released(name):
        time.sleep(0.005)
    note("end", name, os.getpid())
    return [os.getpid(), current_task.deliveries, current_task.attempt]


def grow(name: str) -> int:
    """Take 100 MiB the first time, and hold on to them."""
    note("begin", name, os.getpid())
    if not released(name):
        kept.append(b"x" * 100 * 2**20)
    while not released(name):
        time.sleep(0.005)
    return os.getpid()


def place() -> tuple[list[int], int]:
    """The processors of this process, and its niceness."""
    return sorted(os.sched_getaffinity(0)), os.nice(0)


async def hold_async(name: str) -> list[int]:
    note("begin", name, os.getpid())
    while not released(name):
        await asyncio.sleep(0.005)
    note("end", name, os.getpid())
    return [os.getpid(), current_task.deliveries, current_task.attempt]


def base() -> Iterator[int]:
    note("open", "base", os.getpid())
    yield os.getpid()
    note("close", "base", os.getpid())


def resource(base: Annotated[int, Depends(base)]) -> Iterator[str]:
    note("open", "resource", os.getpid())
    yield f"resource of {base}"
    note("close", "resource", os.getpid())


async def client(base: Annotated[int, Depends(base)]) -> AsyncIterator[str]:
    loop = asyncio.get_running_loop()
    note("open", "client", os.getpid())
    yield f"client of {base}"
    assert asyncio.get_running_loop() is loop
    note("close", "client", os.getpid())


def borrow(name: str, resource: Annotated[str, Depends(resource)]) -> str:
    note("begin", name, os.getpid())
    while not released(name):
        time.sleep(0.005)
    return resource


async def borrow_async(name: str, client: Annotated[str, Depends(client)]) -> str:
    note("begin", name, os.getpid())
    while not released(name):
        await asyncio.sleep(0.005)
    return client


def nap(name: str) -> None:
    """Block in one system call."""
    note("begin", name, os.getpid())
    time.sleep(3600)


def deaf(name: str) -> None:
    """Swallow what is to end it."""
    note("begin", name, os.getpid())
    while not released(name):
        try:
            time.sleep(3600)
        except Exception:
            note("swallowed", name, os.getpid())


def stuck(name: str) -> None:
    """Keep the interpreter, in C."""
    note("begin", name, os.getpid())
    sum(itertools.repeat(1, 10**13))


def die(name: str) -> None:
    note("begin", name, os.getpid())
    os.kill(os.getpid(), signal.SIGKILL)


def die_with_all(name: str) -> None:
    """Kill the supervisor, too."""
    note("begin", name, os.getpid())
    os.killpg(0, signal.SIGKILL)


def leave(name: str) -> None:
    """End the process as if all was well, the first time."""
    note("begin", name, os.getpid())
    if not released(name):
        os._exit(0)


PLAIN = (quick, hold, nap, deaf, stuck, die, die_with_all, leave, grow, place)

app = make_app(DIRECTORY) if DIRECTORY else None

if __name__ == "__main__":
    from taskline.control import presence
    from taskline.log import setup
    from taskline.worker import Supervisor, Worker, WorkerOptions

    kind, options = sys.argv[1], WorkerOptions(**json.loads(sys.argv[2]))
    assert app is not None
    if os.environ.get("PROGRAM_DIES_YOUNG"):
        os.register_at_fork(after_in_child=lambda: os._exit(9))
    if ttl := os.environ.get("PROGRAM_RECORD_TTL"):
        presence.RECORD_TTL = float(ttl)
    setup("INFO")
    sys.exit((Supervisor if kind == "supervisor" else Worker)(app, options).run())
