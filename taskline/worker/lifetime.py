"""How long a worker process lives, and the place that it has on the machine."""

from __future__ import annotations

import logging
import os

from taskline.errors import ConfigurationError
from taskline.worker.options import WorkerOptions, check_values

log = logging.getLogger("taskline.worker")

LOOK_EVERY = 1.0
"""Seconds between two looks at how large a process is."""


class Lifetime:
    """Tells when a process has run enough tasks, or is old or large enough, to be replaced.

    Owned by the I/O thread, which adds to `tasks` what has ended.
    """

    def __init__(self, options: WorkerOptions, now: float) -> None:
        """`now` is by the monotonic clock."""
        self.tasks = 0
        self.told = ""
        """Why it is to be replaced although it is not over. Any thread may say so."""
        self._most = options.max_tasks
        self._until = None if options.max_age is None else now + options.max_age
        self._age = options.max_age
        self._largest = options.soft_memory_limit
        self._next_look = now
        self._warned = False

    def limit(self, room: int, held: int) -> int:
        """How many of `room` messages a process that holds so many may still take in."""
        if self._most is None:
            return room
        return max(0, min(room, self._most - self.tasks - held))

    def over(self, now: float, *, busy: bool = True) -> str:
        """Why the process should be replaced; empty when it need not. `busy`: it runs something."""
        if self.told:
            return self.told
        if self._most is not None and self.tasks >= self._most:
            return f"it has run {self.tasks} tasks (max_tasks={self._most})"
        if self._until is not None and now >= self._until:
            return f"it is old enough (max_age={self._age:g} s)"
        if self._largest is not None and now >= self._next_look:
            self._next_look = now + LOOK_EVERY
            size = resident(os.getpid())
            if size > self._largest:
                # Its successor would be as large: each must run something.
                if busy or self.tasks:
                    return (
                        f"it uses {mebibytes(size)} (soft_memory_limit={mebibytes(self._largest)})"
                    )
                if not self._warned:
                    self._warned = True
                    log.warning(
                        "soft_memory_limit=%s is too low: this process uses %s before its first "
                        "task, and is replaced after it",
                        mebibytes(self._largest),
                        mebibytes(size),
                    )
        return ""


def resident(pid: int) -> int:
    """The resident memory of a process in bytes, shared pages included; 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE
    except (FileNotFoundError, ProcessLookupError):
        return 0


PROC = os.path.exists("/proc/self/statm")
"""Whether this system tells how large a process is."""

_PAGE = os.sysconf("SC_PAGESIZE") if hasattr(os, "sysconf") else 4096


def mebibytes(size: int) -> str:
    """A size as people read it."""
    return f"{size / 2**20:.0f} MiB" if size >= 2**20 else f"{size} bytes"


def check(options: WorkerOptions) -> None:
    """Raise `ConfigurationError` for what cannot be, or cannot be kept on this machine."""
    check_values(options)
    for name in ("soft_memory_limit", "memory_limit"):
        if getattr(options, name) is not None and not PROC:
            raise ConfigurationError(
                f"{name}={getattr(options, name)}: memory is measured through /proc, which "
                "this system has not got; use max_tasks or max_age"
            )
    soft, hard = options.soft_memory_limit, options.memory_limit
    if soft is not None and hard is not None and soft >= hard:
        raise ConfigurationError(
            f"soft_memory_limit={mebibytes(soft)} is not below memory_limit={mebibytes(hard)}: "
            "the process would be killed before it could be replaced"
        )
    if options.cpus:
        if not hasattr(os, "sched_getaffinity"):
            raise ConfigurationError(
                f"cpus={options.cpus}: this system cannot bind processes to processors"
            )
        usable = os.sched_getaffinity(0)
        if wrong := sorted(set(options.cpus) - usable):
            raise ConfigurationError(
                f"cpus={options.cpus}: there is no processor {wrong[0]} for this process; "
                f"it may use {', '.join(map(str, sorted(usable)))}"
            )


def check_room(options: WorkerOptions) -> None:
    """Raise `ConfigurationError` where processes would be killed before they ran anything.

    For the supervisor, which has imported what they have.
    """
    limit, size = options.memory_limit, resident(os.getpid())
    if limit is not None and size > limit:
        raise ConfigurationError(
            f"memory_limit={mebibytes(limit)}: a process uses {mebibytes(size)} before it runs "
            "anything: give more"
        )


def settle_in(options: WorkerOptions) -> None:
    """Give this process the processors and the niceness that it was told."""
    if options.cpus:
        os.sched_setaffinity(0, options.cpus)
    if options.nice:
        try:
            os.nice(options.nice)
        except PermissionError:
            raise ConfigurationError(
                f"nice={options.nice}: only root may make a process less nice: give 0 to 19"
            ) from None


def cpus_of(options: WorkerOptions, number: int) -> list[int]:
    """The processor of the process with this number: each has one, in turn."""
    return options.cpus and [options.cpus[number % len(options.cpus)]]
