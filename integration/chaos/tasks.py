"""The app under test: tasks that write down when they start and how they end."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import time
from pathlib import Path
from typing import NamedTuple

import msgspec

from integration.chaos.history import History
from taskline import Reject, Taskline, current_task

LOAD, GRAVE = "load", "grave"
"""The queue of all that shall succeed or fail in its own way, and that of what kills its worker."""


class Config(msgspec.Struct, frozen=True):
    """What a process of a run must know. Times are in seconds."""

    directory: str
    broker: str
    backend: str
    lease: float = 2.0
    skew: float = 0.0
    """By how much the clock of this process is wrong."""

    @property
    def grace(self) -> float:
        """What a site that is told to stop gives its tasks: longer than any of them takes."""
        return max(15.0, 2.5 * self.lease)

    @property
    def history(self) -> Path:
        return Path(self.directory) / "history"

    def dumps(self) -> str:
        return msgspec.json.encode(self).decode()

    @classmethod
    def loads(cls, text: str) -> Config:
        return msgspec.json.decode(text, type=cls)


class Kind(NamedTuple):
    """One kind of task: its share of the load, and what must become of it."""

    letter: str
    task: str
    weight: float
    ends: frozenset[str]


_GOOD, _BAD = frozenset({"SUCCESS"}), frozenset({"FAILURE"})
KINDS = {
    kind.letter: kind
    for kind in (
        Kind("s", "short", 70, _GOOD),
        Kind("m", "medium", 10, _GOOD),
        Kind("l", "long", 0.15, _GOOD),
        Kind("a", "coroutine", 4, _GOOD),
        Kind("f", "flaky", 5, _GOOD),
        Kind("d", "delayed", 4, _GOOD),
        Kind("c", "crashing", 0.5, _GOOD),
        Kind("e", "expiring", 2, frozenset({"SUCCESS", "EXPIRED"})),
        Kind("r", "rejecting", 1, _BAD),
        Kind("x", "exhausting", 1, _BAD),
        Kind("p", "poison", 0.1, _BAD),
        Kind("b", "bystander", 2, _GOOD),
        Kind("u", "single", 0, _GOOD),
        Kind("t", "limited", 1, _GOOD),
        Kind("n", "narrow", 1, _GOOD),
    )
}
KEYS = 2
"""So many keys have the tasks of which one of each may be there at a time."""
RATE, PLACES = 10, 2
"""So many limited tasks may begin in a second, and so many narrow ones run at a time."""
FLAKY_ATTEMPTS, EXHAUSTING_ATTEMPTS = 3, 2


def make_app(config: Config) -> Taskline:
    """The app with all tasks, writing to the run's history."""
    app = Taskline(
        "chaos",
        broker=config.broker,
        backend=config.backend,
        lease=config.lease,
        grace=config.grace,
    )
    history = History(config.history, "worker")
    group = os.getpgrp()

    def note(kind: str, run: str, **fields: object) -> None:
        task = current_task
        history.write(
            kind,
            run=run,
            id=task.id,
            deliveries=task.deliveries,
            pid=os.getpid(),
            group=group,
            **fields,
        )

    def start() -> str:
        run = f"{os.getpid()}-{secrets.token_hex(6)}"
        note("start", run, attempt=current_task.attempt, wall=time.time())
        return run

    def finish(run: str) -> str:
        note("finish", run, end="ok")
        return run

    def crash(run: str, how: int) -> None:
        note("crash", run)
        if how % 2:
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(1)

    @app.task(name="short", queue=LOAD)
    def short(number: int) -> str:
        run = start()
        if number % 3 == 0:
            time.sleep(number % 5 / 1000)
        return finish(run)

    @app.task(name="medium", queue=LOAD)
    def medium(number: int) -> str:
        run = start()
        time.sleep(0.02 + number % 40 / 1000)
        return finish(run)

    @app.task(name="long", queue=LOAD)
    def long(number: int) -> str:
        run = start()
        time.sleep(config.lease * (1.5 + number % 5 / 10))
        return finish(run)

    @app.task(name="coroutine", queue=LOAD)
    async def coroutine(number: int) -> str:
        run = start()
        await asyncio.sleep(0.01 + number % 40 / 1000)
        return finish(run)

    @app.task(name="single", queue=LOAD, unique="until_end")
    def single(key: int) -> str:
        run = start()
        time.sleep(0.3)
        return finish(run)

    @app.task(name="limited", queue=LOAD, rate=f"{RATE}/s")
    def limited(number: int) -> str:
        run = start()
        return finish(run)

    @app.task(name="narrow", queue=LOAD, concurrency=PLACES)
    def narrow(number: int) -> str:
        run = start()
        time.sleep(0.05)
        return finish(run)

    @app.task(name="flaky", queue=LOAD, retry={"max": FLAKY_ATTEMPTS, "wait": 0.05})
    def flaky(number: int) -> str:
        run = start()
        if current_task.attempt < FLAKY_ATTEMPTS:
            note("finish", run, end="raised")
            raise ConnectionError(f"attempt {current_task.attempt} of {number}")
        return finish(run)

    @app.task(name="delayed", queue=LOAD)
    def delayed(number: int) -> str:
        run = start()
        return finish(run)

    @app.task(name="crashing", queue=LOAD)
    def crashing(number: int) -> str:
        run = start()
        if current_task.deliveries <= 1 + number % 2:
            crash(run, number)
        return finish(run)

    @app.task(name="expiring", queue=LOAD)
    def expiring(number: int) -> str:
        run = start()
        return finish(run)

    @app.task(name="rejecting", queue=LOAD)
    def rejecting(number: int) -> str:
        run = start()
        note("finish", run, end="raised")
        raise Reject(f"{number} was meant to be rejected")

    @app.task(name="exhausting", queue=LOAD, retry={"max": EXHAUSTING_ATTEMPTS - 1, "wait": 0.05})
    def exhausting(number: int) -> str:
        run = start()
        note("finish", run, end="raised")
        raise ValueError(f"{number} was meant to fail")

    @app.task(name="poison", queue=GRAVE)
    def poison(number: int) -> str:
        run = start()
        crash(run, number)
        return finish(run)

    @app.task(name="bystander", queue=GRAVE)
    def bystander(number: int) -> str:
        run = start()
        return finish(run)

    return app
