"""What a worker can be told."""

from __future__ import annotations

from typing import Annotated, get_type_hints

import msgspec

from taskline.errors import ConfigurationError

MOST_PROCESSES = 1000
"""Of one worker. Here and below, more is a slip of the finger: no machine has room for it."""

Seconds = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Processes = Annotated[int, msgspec.Meta(ge=1, le=MOST_PROCESSES)]

START_METHODS = ("fork", "forkserver", "spawn")
"""How processes are made: see `taskline.worker.parent.starters` and `forkserver`."""


class WorkerOptions(msgspec.Struct, kw_only=True):
    """The options of one worker: a supervisor and its processes. None takes the app's setting."""

    queues: list[str] = []
    """The queues to serve; empty: those of all registered tasks and the default queue."""
    weights: dict[str, Count] = {}
    """How often a queue is asked first, relative to the others (1 where not given)."""
    ranks: dict[str, Annotated[int, msgspec.Meta(ge=0)]] = {}
    """A queue gets only what those of a lower rank leave (0 where not given)."""
    processes: Processes = 1
    max_processes: Processes | None = None
    """As many at most, and `processes` at least, by what waits; None keeps to `processes`."""
    threads: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 1
    """Slots for `def` tasks in each process."""
    async_slots: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 100
    """`async def` tasks that one process runs at a time."""
    lease: Seconds | None = None
    grace: Annotated[float, msgspec.Meta(ge=0)] | None = None
    prefetch: Count | None = None
    max_deliveries: Count | None = None
    drain: bool = False
    """End when the queues have nothing left that is due, and nobody runs anything of them."""
    starvation: Seconds | None = None
    """Seconds without a message after which the middleware is told, and again after as many."""
    max_tasks: Count | None = None
    """Tasks after which a process is replaced, once what it runs has ended."""
    max_age: Seconds | None = None
    """Seconds after which a process is replaced likewise."""
    soft_memory_limit: Count | None = None
    """Bytes of resident memory beyond which a process is replaced likewise."""
    memory_limit: Count | None = None
    """Bytes of resident memory beyond which a process is killed; what it ran counts as lost."""
    nice: Annotated[int, msgspec.Meta(ge=-20, le=19)] = 0
    """Added to the niceness of the worker processes."""
    cpus: list[int] = []
    """Processors that the processes are bound to, one each, in turn."""
    solo: bool = False
    """One process without a supervisor, whose main thread runs everything: for debuggers."""
    schedule: bool = True
    """Whether this worker may be the one that sends the messages of schedules."""
    batch_places: int = 0
    """Set by the supervisor: how many messages of batches it is told of beside the slots'."""
    instance: str = ""
    """Set by the supervisor: tells this worker from another that has had its name."""
    supervisor: int = 0
    """Set by the supervisor: its process id."""
    number: int = 0
    """Set by the supervisor: which of its processes this is."""
    replaces: str = ""
    """Set by the supervisor: what the broker called the dead process in whose place this one is."""
    place: str = ""
    """Set by the supervisor: what the first of those was called in whose place it is at the broker,
    where that knows places; empty where it is to have one of its own."""
    begun: list[str] = []
    """Set by the supervisor: the messages that those before it ran when they died."""
    hung_after: Seconds = 60.0
    """Seconds without a sign of its I/O thread after which a process is killed."""
    status_file: str | None = None
    """Where the supervisor says, once a second, how its processes are: see `taskline health`."""
    http: str | None = None
    """`HOST:PORT` where a server says how the worker is: /livez, /readyz and /metrics."""
    name: str | None = None
    """Default: the host's name and the supervisor's pid."""
    start_method: str = "fork"
    """One of `START_METHODS`. With `fork` a crashed process is replaced within milliseconds."""
    app_path: str = ""
    """`module:attribute` of the app; all but `fork` need it."""
    loglevel: str = "INFO"


def check_values(options: WorkerOptions) -> None:
    """Raise `ConfigurationError` for an option of a wrong type, or out of its bounds."""
    for name, hint in get_type_hints(WorkerOptions, include_extras=True).items():
        value = getattr(options, name)
        try:
            msgspec.convert(value, hint)
        except msgspec.ValidationError as error:
            raise ConfigurationError(f"{name}={value!r}: {error}") from None
