"""The file in which a supervisor says how its processes are, for probes that look from outside."""

from __future__ import annotations

import os

import msgspec

from taskline.errors import ConfigurationError

WRITE_EVERY = 1.0
STALE_AFTER = 10.0
"""Seconds after which a file that was not written again is a supervisor's that does not work."""


class ProcessStatus(msgspec.Struct):
    """One worker process. `silent`: seconds without a sign of its I/O thread."""

    pid: int
    ready: bool
    silent: float
    running: list[str]
    """Ids of the tasks that it runs."""


class Status(msgspec.Struct):
    """A worker at one moment, `at` in Unix seconds."""

    name: str
    pid: int
    at: float
    wanted: int
    """How many processes there should be."""
    stopping: bool
    processes: list[ProcessStatus]
    ended: dict[str, int] = {}
    """How many messages ended well, were retried and failed for good since the worker began."""
    deaths: int = 0
    """How many of its processes crashed."""
    oldest: float | None = None
    """When the task began that has run for the longest time, Unix seconds; None when none runs."""
    memory: int = 0
    """Resident, of its processes, in bytes."""

    def trouble(self, now: float, *, ready: bool = False) -> str:
        """What is wrong at `now`, or, with `ready`, why it takes no tasks; empty if all is well."""
        age = now - self.at
        if age > STALE_AFTER:
            return f"worker {self.name} has not said anything for {age:.0f} s"
        if not ready:
            return ""
        if self.stopping:
            return f"worker {self.name} is stopping"
        count = sum(process.ready for process in self.processes)
        if count < self.wanted:
            return f"{count} of {self.wanted} processes of worker {self.name} are ready"
        return ""


def claim(path: str, first: Status) -> None:
    """Write the file for the first time.

    Raises `ConfigurationError` when that is impossible, or another worker writes it.
    """
    try:
        other = read(path)
    except ConfigurationError:
        pass  # there is none, or it is of something else
    else:
        # In a container every worker may have the same id, and so had the one before.
        if other.pid != first.pid and not other.trouble(first.at) and runs(other.pid):
            raise ConfigurationError(
                f"--status-file {path}: worker {other.name} (process {other.pid}) writes it: "
                "give each worker a file of its own"
            )
    write(path, first)


def write(path: str, status: Status) -> None:
    """Replace the file in one step. Raises `ConfigurationError` when that is impossible."""
    beside = f"{path}.{os.getpid()}"
    try:
        with open(beside, "wb") as file:
            file.write(msgspec.json.encode(status))
        os.replace(beside, path)
    except OSError as error:
        raise ConfigurationError(f"--status-file {path}: {error.strerror}") from None


def runs(pid: int) -> bool:
    """Whether there is a process of this id."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def read(path: str) -> Status:
    """What the file says. Raises `ConfigurationError` when it is none, or not there."""
    try:
        with open(path, "rb") as file:
            return msgspec.json.decode(file.read(), type=Status)
    except FileNotFoundError:
        raise ConfigurationError(f"{path} is not there: does a worker run with it?") from None
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise ConfigurationError(f"{path} is no status file of a worker: {error}") from None
