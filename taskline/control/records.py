"""What a worker process says of itself, and what it is told."""

from __future__ import annotations

from typing import Literal

import msgspec

Question = Literal["active", "reserved", "registered"]


class ProcessInfo(msgspec.Struct, kw_only=True):
    """One worker process, as it was at its last beat."""

    id: str
    """What it is called by the broker, too: no other process has had it."""
    worker: str
    """The worker's name."""
    instance: str
    """Tells a worker from those that had its name before."""
    number: int = 0
    """Which of the worker's processes it is."""
    host: str
    pid: int
    supervisor: int | None = None
    """The process id of its supervisor; None when it has none."""
    queues: list[str]
    version: str = ""
    """Of the app: its setting `version`."""
    taskline: str
    python: str
    threads: int
    async_slots: int = 0
    """0 where the app has no coroutines."""
    tasks: int = 0
    """How many tasks are registered in it."""
    stopping: bool = False
    up: float = 0.0
    """Seconds since it began."""
    active: int = 0
    """Tasks that it runs."""
    reserved: int = 0
    """Messages that it holds and has not begun."""
    done: int = 0
    """Messages that ended well, or were revoked or had expired, since it began."""
    failed: int = 0
    """Messages that went to the dead letters."""
    retried: int = 0
    """Runs after which the message was put back for another attempt."""
    rate: float = 0.0
    """Tasks that ended in a second, between its last two beats."""
    memory: int = 0
    """Resident, in bytes; 0 where the system does not tell."""
    prefetch: int = 0
    """Messages that it would hold ahead now."""
    lag: float | None = None
    """Seconds after which the event loop came to what was due; None where none runs."""
    beat: float = 0.0
    """Seconds since it said this, by the backend's clock."""


class WorkerInfo(msgspec.Struct, kw_only=True):
    """One worker: its processes together."""

    name: str
    host: str
    pid: int
    """Of the supervisor, or of the one process."""
    instance: str
    queues: list[str]
    versions: list[str]
    """The app's; several while its processes are being replaced."""
    taskline: str
    python: str
    slots: int
    """Places for `def` tasks in all processes."""
    active: int
    reserved: int
    done: int
    failed: int
    retried: int
    rate: float
    memory: int
    up: float
    """Seconds since the oldest of its processes began."""
    beat: float
    """Seconds since the last sign of the process that is silent for the longest time."""
    stopping: bool
    processes: list[ProcessInfo]


class ActiveTask(msgspec.Struct, kw_only=True):
    """A task that runs."""

    id: str
    task: str
    queue: str
    since: float
    """When its run began, Unix seconds by the worker's clock."""
    seconds: float
    """For how long it has run."""
    attempt: int = 1
    slot: int = 0
    """Which of its process's: first those of threads, then those of coroutines."""
    worker: str = ""
    pid: int = 0
    arguments: str | None = None
    """As text, without what is secret; None unless they were asked for."""


class ReservedTask(msgspec.Struct, kw_only=True):
    """A message that a process holds and has not begun to run."""

    id: str
    task: str
    queue: str
    attempt: int = 1
    priority: int = 5
    worker: str = ""
    pid: int = 0
    arguments: str | None = None


class Answer(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a process has to say to an order."""

    error: str = ""
    """Why it does not do it; empty when it does."""
    active: list[ActiveTask] = []
    reserved: list[ReservedTask] = []
    registered: list[str] = []
    more: int = 0
    """How many there are besides."""


class Order(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something that some workers are to do, or to tell."""

    id: str
    what: Literal["shutdown", "restart", "scale", "tell"]
    workers: list[str]
    """Their instances."""
    issued: float
    """Unix seconds by the clock of who gives it."""
    now: bool = False
    """Of a shutdown: what runs is handed back at once."""
    grace: float | None = None
    """Of a restart: seconds that what runs has."""
    count: int = 0
    """Of scaling: how many processes there shall be."""
    ask: Question = "active"
    arguments: bool = False
    """Whether the arguments of tasks are wanted."""
