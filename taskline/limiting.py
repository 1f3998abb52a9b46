"""Which limits hold for a message, under which names the workers share them, and how they stand."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import msgspec

from taskline.backends.permits import Ask, Place
from taskline.control.state import States
from taskline.errors import ConfigurationError, InvalidArguments
from taskline.limits import Limits, Rate, rates

if TYPE_CHECKING:
    from taskline.app import Taskline
    from taskline.task import Task

log = logging.getLogger("taskline.worker")

LONGEST = 100
"""Characters of a key that stands in a name as it is; a longer one is hashed."""


class Bucket(msgspec.Struct, frozen=True):
    """A rate, and the name of the tokens that all workers share."""

    name: str
    rate: Rate

    def ask(self, wanted: int, at: float = 0.0) -> Ask:
        """The wish for so many of them; fewer than none were taken `at` that time, see `Taken`."""
        rate = self.rate
        return Ask(self.name, rate.per_second, rate.burst, wanted, span=rate.span, at=at)


class Semaphore(msgspec.Struct, frozen=True):
    """A number of places, and the name under which all workers share them."""

    name: str
    limit: int


class Rules(msgspec.Struct, frozen=True):
    """All limits of one message: its task's, its queue's."""

    buckets: tuple[Bucket, ...] = ()
    semaphores: tuple[Semaphore, ...] = ()


class Rulebook:
    """The limits of one app. `told` are rates that hold in place of those in the code."""

    def __init__(self, app: Taskline, told: Mapping[str, tuple[Rate, ...]] | None = None) -> None:
        self._app = app
        self._told = dict(told or {})

    def first(self) -> str:
        """One task or queue that has limits; empty when none has."""
        limited = [f"the task {task.name}" for task in self._app.tasks.values() if task.limits]
        limited += [f"the queue {queue}" for queue in self._app.queues.limits]
        limited += self._told
        return limited[0] if limited else ""

    def of_task(self, name: str) -> Limits | None:
        """The limits of a task, with the rates that it was told."""
        task = self._app.tasks.get(name)
        return self._with_told(name, None if task is None else task.limits)

    def of_queue(self, name: str) -> Limits | None:
        """The limits of a queue."""
        return self._with_told(f"queue:{name}", self._app.queues.limits.get(name))

    def _with_told(self, name: str, found: Limits | None) -> Limits | None:
        if name not in self._told:
            return found
        return msgspec.structs.replace(found or Limits(), rates=self._told[name])

    def rules(self, task: str, queue: str, key: str = "") -> Rules:
        """What a message of this task in this queue keeps to; `key` is `key_of` it."""
        own, shared = self.of_task(task), self.of_queue(queue)
        name = f"{self._app.name}:task:{task}" + (f":{short(key)}" if key else "")
        of_task = Rules() if own is None else _rules(name, own)
        of_queue = Rules() if shared is None else _rules(f"{self._app.name}:queue:{queue}", shared)
        return Rules(of_task.buckets + of_queue.buckets, of_task.semaphores + of_queue.semaphores)


def _rules(name: str, limits: Limits) -> Rules:
    return Rules(
        tuple(Bucket(f"{name}#{number}", rate) for number, rate in enumerate(limits.rates)),
        () if limits.concurrency is None else (Semaphore(name, limits.concurrency),),
    )


def short(key: str) -> str:
    """A key as it may stand in the name of a limit."""
    if len(key) <= LONGEST:
        return key
    return blake2b(key.encode(), digest_size=16).hexdigest()


def key_of(task: Task[..., Any], args: Any, kwargs: dict[str, Any]) -> str:
    """The key of a call of a task, of its converted arguments; "" where it has no `limit_key`.

    Raises `InvalidArguments` when the arguments have none, and what a function of them raises.
    """
    wanted = None if task.limits is None else task.limits.key
    if wanted is None:
        return ""
    if callable(wanted):
        return f"={wanted(*args, **kwargs)}"
    bound = task.signature.signature.bind(*args, **kwargs)
    bound.apply_defaults()
    for name, value in bound.arguments.items():
        if name == wanted:
            return f"={value}"
        if isinstance(value, dict) and wanted in value and name not in kwargs:
            return f"={value[wanted]}"
    raise InvalidArguments(f"{task.name}: there is no argument {wanted!r}, its limit_key")


class LimitStatus(msgspec.Struct, frozen=True):
    """How the limits of one task or queue stand at the moment."""

    scope: str
    """`task` or `queue`."""
    name: str
    key: str
    keyed: bool
    """Each key has limits of its own; without a `key` nothing is told of them."""
    rates: tuple[str, ...]
    left: tuple[float, ...]
    """For each rate: runs that may begin at once."""
    concurrency: int | None
    held: tuple[Place, ...]
    """Who has the places: ids of tasks, with their worker, and the seconds until they end."""


def status(app: Taskline, key: str = "") -> list[LimitStatus]:
    """How all limits of an app stand; those by key only for the key that is given.

    Raises `ConfigurationError` when the app has no result backend that keeps keys.
    """
    states = States(app)
    keys, book = states.documents.keys(), rulebook(app, states.get().rates)
    found = []
    scopes = [("task", name, book.of_task(name)) for name in sorted(app.tasks)]
    queues = sorted({*app.queues.limits, *(task.queue for task in app.tasks.values())})
    scopes += [("queue", name, book.of_queue(name)) for name in queues]
    for scope, name, limits in scopes:
        if limits is None:
            continue
        keyed = limits.key is not None
        rules = Rules()
        if not keyed or key:
            suffix = f":{short('=' + key)}" if keyed else ""
            rules = _rules(f"{app.name}:{scope}:{name}{suffix}", limits)
        asks = [bucket.ask(0) for bucket in rules.buckets]
        taken = keys.take(asks) if asks else []
        found.append(
            LimitStatus(
                scope,
                name,
                key if keyed else "",
                keyed,
                tuple(str(rate) for rate in limits.rates),
                tuple(each.left for each in taken),
                limits.concurrency,
                tuple(place for each in rules.semaphores for place in keys.places(each.name)),
            )
        )
    return found


def rulebook(app: Taskline, told: Mapping[str, str]) -> Rulebook:
    """The limits of an app where workers were told these rates; wrong ones are not heeded."""
    heeded = {}
    for name, text in told.items():
        try:
            heeded[name] = rates(f"the rate told for {name}", text)
        except ConfigurationError as error:
            log.error("%s: it is not heeded", error)
    return Rulebook(app, heeded)
