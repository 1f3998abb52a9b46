"""`Taskline`: the app, which holds the tasks, the settings and the connections."""

from __future__ import annotations

import os
import time
from collections.abc import (
    AsyncIterator,
    Callable,
    Collection,
    Coroutine,
    Generator,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import contextmanager
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    NoReturn,
    ParamSpec,
    TypeVar,
    overload,
)

from msgspec import UNSET, UnsetType

from taskline import config, submitting
from taskline.batch import Batch, current_batch
from taskline.calls import Calls
from taskline.clock import SYSTEM_CLOCK, Clock
from taskline.codec import Codec
from taskline.connections import Connections
from taskline.dead import DeadLetters
from taskline.errors import ConfigurationError, NoResult
from taskline.hooks import Hooks, Middleware, checked
from taskline.message import Message, Outcome
from taskline.options import TASK_OPTIONS, CallOptions, identifier, refuse_unknown
from taskline.queueing import Queues
from taskline.resources import Resources
from taskline.result import AsyncResult
from taskline.task import AsyncTask, Task, make, replaces

if TYPE_CHECKING:
    import sqlite3
    from datetime import datetime

    from typing_extensions import Unpack

    from taskline.backends.base import Backend
    from taskline.backends.keys import KeyStore
    from taskline.control import Control, WorkerInfo
    from taskline.decorators import BatchDecorator, BoundDecorator, Decorator, Periodic
    from taskline.kv import KeyValues
    from taskline.limiting import LimitStatus
    from taskline.lock import Lock
    from taskline.options import SendOptions, TaskOptions
    from taskline.schedule import Schedule, Schedules
    from taskline.schedule.entry import ScheduleOptions
    from taskline.transports.base import Transport
    from taskline.waiters import Waiters
    from taskline.workflows.dag import Workflow
    from taskline.workflows.launch import LaunchOptions

P = ParamSpec("P")
R = TypeVar("R")

_MOST_FINISHED = 1000
"""How many outcomes of eager mode are remembered."""


class Taskline:
    """An app: tasks, settings, and the way to a broker and a result backend.

    `broker` is a URL, a list of URLs (several unclustered nodes) or a connector mapping;
    `backend` the same, or None to keep no results. Other settings by name, see
    `taskline.config.Settings`. Each may also come from the environment (`TASKLINE_BROKER`).
    Connections are opened at first use; close them with `close()`, or use the
    app in a `with`. Threads may share an app, and it may be used on both sides of a fork.
    """

    def __init__(
        self,
        name: str,
        *,
        broker: str | Sequence[str] | Mapping[str, Any] | UnsetType = UNSET,
        backend: str | Sequence[str] | Mapping[str, Any] | UnsetType | None = UNSET,
        clock: Clock = SYSTEM_CLOCK,
        **settings: Any,
    ) -> None:
        if broker is not UNSET:
            settings["broker"] = broker
        if backend is not UNSET:
            settings["backend"] = backend
        self._set_up(name, config.load(settings, None, os.environ), clock)

    @classmethod
    def from_config(
        cls,
        source: str | os.PathLike[str] | Mapping[str, Any],
        *,
        name: str | None = None,
        clock: Clock = SYSTEM_CLOCK,
        **settings: Any,
    ) -> Taskline:
        """An app with settings from a YAML or TOML file, or a mapping.

        `name` may stand in the file too. Arguments go before the environment, and that
        before the file.
        """
        found = dict(source) if isinstance(source, Mapping) else config.read(source)
        in_file = found.pop("name", None)
        named = name or in_file
        if named is None:
            raise ConfigurationError("the app has no name: give name= here or in the configuration")
        app = cls.__new__(cls)
        app._set_up(named, config.load(settings, found, os.environ), clock)
        return app

    def _set_up(self, name: str, settings: config.Settings, clock: Clock) -> None:
        self.name = identifier("name", name)
        self.settings = settings
        self.clock = clock
        # The system's clock is asked without a call of ours: every delay() asks it.
        self.now: Callable[[], float] = time.time if type(clock) is Clock else clock.time
        self.queues = Queues(settings)
        self.codec = _codec(settings, self.queues)
        self.tasks: dict[str, Task[..., Any]] = {}
        self.periodics: dict[str, tuple[Schedule, Task[..., Any]]] = {}
        """The schedules that the code declares, by name, each with its task."""
        self.hooks = Hooks()
        """Those of all middleware that was added with `use`."""
        self.dead = DeadLetters(self)
        self.resources = Resources()
        """What `Depends` has opened in this process."""
        self._finished: dict[str, Outcome] = {}
        self._connections = Connections(settings, self.queues, clock)
        submitting.register(self)

    # Tasks

    @overload
    def task(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...
    @overload
    def task(self, function: Callable[P, AsyncIterator[Any]], /) -> AsyncTask[P, None]: ...
    @overload
    def task(self, function: Callable[P, Generator[Any, Any, R]], /) -> Task[P, R]: ...  # type: ignore[overload-overlap]
    @overload
    def task(self, function: Callable[P, Iterator[Any]], /) -> Task[P, None]: ...
    @overload
    def task(self, function: Callable[P, R], /) -> Task[P, R]: ...
    @overload
    def task(
        self, function: None = None, /, *, bind: Literal[True], **options: Unpack[TaskOptions]
    ) -> BoundDecorator: ...
    @overload
    def task(
        self,
        function: None = None,
        /,
        *,
        bind: Literal[False] = False,
        **options: Unpack[TaskOptions],
    ) -> Decorator: ...
    @overload
    def task(
        self,
        function: None = None,
        /,
        *,
        batch: int,
        batch_wait: float = ...,
        bind: Literal[False] = False,
        **options: Unpack[TaskOptions],
    ) -> BatchDecorator: ...
    @overload
    def task(
        self,
        function: None = None,
        /,
        *,
        batch: int,
        batch_wait: float = ...,
        bind: Literal[True],
        **options: Unpack[TaskOptions],
    ) -> Callable[[Any], Task[..., Any]]: ...
    def task(
        self,
        function: Any = None,
        /,
        *,
        bind: bool = False,
        batch: int | None = None,
        batch_wait: float | None = None,
        **options: Unpack[TaskOptions],
    ) -> Any:
        """Make a task of a function: `@app.task`, or `@app.task(queue="mail", retry=3)`.

        The function may be a `def` or an `async def`, or a generator of either kind, whose
        items `AsyncResult.stream` gives.

        `name`: by default the module and the function. `queue`. `priority`: 0 to 9, the
        highest first. `retry`: a number, a mapping or tenacity's objects. `timeout`: seconds
        after which a run is ended; `soft_timeout`: after which it gets `SoftTimeout`.
        `expires`: seconds after which it is not started any more. `result_ttl`: seconds for
        which the outcome is kept. `serializer`. `ack`: "late", after the run, or "early",
        before it (at most once). `durable`: what its steps return is kept (`taskline.step`).
        `batch`: a run gets the arguments of up to so many messages, as one list; the first
        of them waits `batch_wait` seconds for more (0.1). See `docs/batches.md`.
        `fair_key`: the argument, or a function of the arguments, that says whose message it
        is, in a queue that is `fair`: see `docs/queues.md`.
        `unique`: "until_start", "until_end" or seconds; a second call with the same arguments, or
        the same of those that `unique_by` names, joins the first until then, unless `on_duplicate`
        is "drop" or "replace"; `unique_for`: seconds for which that holds at most (a day).
        `throttle`: seconds in which one call is sent, and others are dropped. `debounce`: it runs
        once there was no call for so many seconds, with the last arguments, and `max_wait`
        seconds after the first at the latest. See `docs/unique.md`.
        `bind`: the first argument is the task itself.
        `rate`: how many runs may begin in a time, in all workers together: "100/s", "10/m".
        `concurrency`: how many may run at a time. `limit_key`: the argument, or a function of
        the arguments, each value of which has these limits of its own. See `docs/limits.md`.
        `middleware`: for the runs of this task, inside the app's.

        Raises `ConfigurationError` for a wrong option, for a function that cannot be a
        task, and for a name that another function has.
        """
        refuse_unknown(options, TASK_OPTIONS)
        given: dict[str, Any] = {**options, "bind": bind}
        if batch is not None:
            given |= {"batch": batch, "batch_wait": batch_wait}
        elif batch_wait is not None:
            raise ConfigurationError("batch_wait= goes with batch=: how many messages a run gets")
        if function is None:
            return lambda function: self._register(make(self, function, given))
        return self._register(make(self, function, given))

    def _register(self, task: Task[..., Any]) -> Task[..., Any]:
        old = self.tasks.get(task.name)
        if old is not None and not replaces(task, old):
            raise ConfigurationError(
                f"the name {task.name} is taken by {old.__module__}.{old.__qualname__}: "
                f"give one of them another with name="
            )
        self.tasks[task.name] = task
        task.hook_up()
        return task

    def use(self, *middleware: Middleware) -> None:
        """Add middleware, whose methods are called from now on: see `taskline.Middleware`.

        Raises `ConfigurationError` for what is none.
        """
        self.hooks = Hooks([*self.hooks.middleware, *map(checked, middleware)])
        for task in self.tasks.values():
            task.hook_up()

    def send_task(
        self,
        name: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[SendOptions],
    ) -> AsyncResult[Any]:
        """Send a task by its name; its code need not be imported here.

        Where it is, its signature is checked and its options hold. See
        `Task.options` for the options.
        """
        return self.by_name(name).apply_async(args, kwargs, **options)

    def by_name(self, name: str) -> Calls[..., Any]:
        """The ways to send a task by its name; its code need not be imported here.

        `app.by_name("shop.add").s(1, 2)` is a step of a workflow.
        """
        settings = self.settings
        serializer = self.queues.serializer(settings.queue) or settings.serializer
        usual = CallOptions(settings.queue, settings.priority, serializer)
        return self.tasks.get(name) or Calls(
            self,
            identifier("task name", name),
            None,
            usual.changed({"expires": settings.expires}),
        )

    @overload
    def submit(
        self, function: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> AsyncResult[R]: ...
    @overload
    def submit(
        self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> AsyncResult[R]: ...
    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> AsyncResult[Any]:
        """Send a function that is no task, a closure or a lambda for instance, by cloudpickle.

        Raises `ConfigurationError` where the setting `accept` does not have cloudpickle.
        """
        return submitting.task_of(self).delay(function, args, kwargs)

    # Workflows

    def workflow(self, **options: Unpack[LaunchOptions]) -> Workflow:
        """A graph of steps, to which `step()` adds: see `docs/workflows.md`.

        The options are those of `apply_async` of a workflow: `name`, `on_failure`, `expires`,
        `keep`, `task_id`.
        """
        from taskline.workflows.dag import Workflow

        return Workflow(self, options)

    # Sending

    def batch(
        self,
        *,
        connection: sqlite3.Connection | UnsetType = UNSET,
        session: Any = UNSET,
    ) -> Batch:
        """Collect what this context sends: `with app.batch() as results: ...`.

        The messages leave together at the end of the block, a thousand in each
        round trip, and `results` is the `ResultSet` of them. When the block raises,
        nothing is sent. A batch within a batch leaves with the outer one.

        With a `connection` of your own to the broker's SQLite file, or a `session` of
        pymongo's with the broker's MongoDB, the messages are a part of the transaction
        that is open there: they are sent when you commit it, or never. Raises
        `ConfigurationError` when there is none, and `NotSupported` for other brokers.
        """
        if connection is not UNSET and session is not UNSET:
            raise ConfigurationError(
                "batch() takes connection= or session=, not both: a message is part of one "
                "transaction"
            )
        if connection is not UNSET:
            return Batch(self, "connection", connection)
        if session is not UNSET:
            return Batch(self, "session", session)
        return Batch(self)

    def send(self, messages: Sequence[Message]) -> None:
        """Give messages to the batch of this context or, without one, to the broker."""
        batch = current_batch()
        if batch is not None and batch.take(self, messages):
            return
        connections = self._connections
        (connections.current or connections.transport()).send(messages)
        if self.hooks.of_sends:
            self.hooks.call("after_send", [message.header for message in messages])

    def run_here(self, message: Message) -> AsyncResult[Any]:
        """Run a message's task in this thread, as the setting `eager` asks for."""
        from taskline.eager import run

        final = run(self, message)
        if len(self._finished) >= _MOST_FINISHED:
            del self._finished[next(iter(self._finished))]
        self._finished[final.id] = final
        result: AsyncResult[Any] = AsyncResult(self, final.id, message.header, final)
        batch = current_batch()
        if batch is not None:
            batch.note(self, result)
        return result

    # Schedules

    def periodic(self, *, name: str | None = None, **options: Unpack[ScheduleOptions]) -> Periodic:
        """Send a task again and again: `@app.periodic(cron="*/5 8-18 * * mon-fri")`.

        It stands above `@app.task(...)`, or makes a task of a plain function. One of
        `cron` (five fields, or six that begin with seconds, or `@daily` and the like),
        `every` (seconds or a timedelta) and `at` (once) says when; `tz` is the time
        zone of `cron` and of datetimes without one, by default UTC. `start` and `end`:
        no slot before and after them. `repeats`: after so many messages it ends.
        `catch_up`: how many slots are sent afterwards that were missed while no worker
        was there, the newest ones; 1 by default, 0 skips them. `jitter` (seconds): each
        message is due up to so much later. `args`, `kwargs`; `pass_time`: the name of the
        argument that gets the intended time. `queue`, `priority`, `expires` and so on: as
        in `Task.options`. `name`: by default the task's.

        Raises `ConfigurationError` for a wrong option or a name that is taken, and
        `InvalidArguments` when the arguments do not fit the task.
        """
        from taskline.schedule import declare

        return lambda function: declare(self, function, name, dict(options))

    @property
    def schedules(self) -> Schedules:
        """The schedules, declared and stored: see, add, pause, run and remove them."""
        from taskline.schedule import Schedules

        return Schedules(self)

    # Dependencies

    @contextmanager
    def override(self, opener: Callable[..., Any], instead: Callable[..., Any]) -> Iterator[None]:
        """Let `instead` open what `opener` would have: `with app.override(connect, FakeSession):`.

        For tests, in this process. All dependencies are opened anew within the block, and closed
        at its end.
        """
        before = self.resources
        self.resources = before.over(opener, instead)
        try:
            yield
        finally:
            above, self.resources = self.resources, before
            above.close()

    # Workers

    @property
    def control(self) -> Control:
        """The workers of this app: see them, ask them, and tell them what to do."""
        from taskline.control import Control

        return Control(self)

    def workers(self) -> list[WorkerInfo]:
        """The workers of this app, as each was some seconds ago. See `control` for more.

        Raises `ConfigurationError` when the app has no result backend that keeps keys.
        """
        return self.control.workers()

    # Results

    def AsyncResult(self, id: str) -> AsyncResult[Any]:  # noqa: N802
        """The result of a task that was sent before, perhaps by another process."""
        return AsyncResult(self, id, None, self._finished.get(id))

    def revoke(
        self,
        *,
        task: str | Calls[..., Any] | None = None,
        headers: Mapping[str, Any] | None = None,
        before: datetime | float | None = None,
        terminate: bool = False,
    ) -> None:
        """Keep all messages from running that are of this task, or have these headers, or both.

        Those that were sent until now, or until `before` (a datetime or Unix seconds), by the
        clocks of who sent them; what is sent later runs. With `terminate`, stop those that
        run. Workers see to it as they come to them, also those that start later, for 30 days.
        Raises `ConfigurationError` when neither is given, `NoResult` without a result backend.
        """
        from taskline.revoking import revoke

        revoke(self, task, headers, before, terminate)

    # Queues

    def pause_queue(self, queue: str, *, seconds: float | None = None) -> None:
        """Let workers take nothing of the queue, until it is resumed or after so many seconds.

        Sending goes on, and what runs comes to its end. All workers of the app heed it within
        2 seconds, also those that start later. Raises `ConfigurationError` when the app has no
        result backend that keeps keys.
        """
        from taskline.control import pausing

        pausing.pause(self, queue, seconds)

    def resume_queue(self, queue: str) -> bool:
        """Let workers take of the queue again; returns whether it was paused."""
        from taskline.control import pausing

        return pausing.resume(self, queue)

    def paused_queues(self) -> dict[str, float | None]:
        """The paused queues, each with when it goes on by itself, Unix seconds, or None."""
        from taskline.control import pausing

        return pausing.paused(self)

    def limits(self, key: str = "") -> list[LimitStatus]:
        """How the rates and concurrency limits of tasks and queues stand at the moment.

        Those of tasks with a `limit_key` are told for one `key`. Raises `ConfigurationError`
        when the app has no result backend that keeps keys.
        """
        from taskline import limiting

        return limiting.status(self, key)

    # Locks and keys

    def lock(self, name: str, *, ttl: float | None = None, timeout: float | None = None) -> Lock:
        """A lock that all who use the result backend share: `with app.lock("stock:42"): ...`.

        `ttl`: seconds after which it is free again unless its holder renews it, by
        default the setting `lease`. `timeout`: seconds to wait for it, by default for
        ever. Raises `ConfigurationError` when the app has no result backend.
        """
        from taskline.lock import Lock

        self._check_keys()
        ttl = self.settings.lease if ttl is None else ttl
        return Lock(name, self._keys, self.clock, ttl=ttl, timeout=timeout)

    @property
    def kv(self) -> KeyValues:
        """Values by key, and counters, that all who use the result backend share.

        Raises `ConfigurationError` when the app has no result backend.
        """
        from taskline.kv import KeyValues

        self._check_keys()
        return KeyValues(self._keys, self.settings.max_message_size)

    def _check_keys(self) -> None:
        if self.settings.backend is None:
            raise ConfigurationError(
                f"the app {self.name} has no result backend, which keeps locks and keys: give it "
                f'one, such as Taskline(..., backend="sqlite:///results.db")'
            )

    def _keys(self) -> KeyStore:
        return self.require_backend().keys()

    # Connections

    @property
    def transport(self) -> Transport:
        """The connection to the broker, one in each process. Opened at first use."""
        return self._connections.transport()

    @property
    def backend(self) -> Backend | None:
        """The connection to the result backend, one in each process; None keeps no results."""
        return self._connections.backend()

    @property
    def waiters(self) -> Waiters:
        """Those in this process who wait for outcomes; raises as `require_backend`."""
        return self._connections.waiters() or self._no_backend()

    def require_backend(self) -> Backend:
        """The result backend; raises `NoResult` when there is none."""
        return self._connections.backend() or self._no_backend()

    def _no_backend(self) -> NoReturn:
        raise NoResult(
            f"the app {self.name} has no result backend: give it one, "
            f'such as Taskline(..., backend="sqlite:///results.db")'
        )

    def open_transport(self) -> Transport:
        """A further connection to the broker, which the caller closes."""
        return self._connections.new_transport()

    def open_transport_for(self, queues: Collection[str]) -> Transport:
        """As `open_transport`, where the brokers of other queues need not answer."""
        return (
            self._connections.new_transport(queues) if self.queues.routed else self.open_transport()
        )

    def open_backend(self) -> Backend | None:
        """A further connection to the result backend, which the caller closes."""
        return self._connections.new_backend()

    def close(self) -> None:
        """Close what dependencies have opened, and the connections.

        The app may be used again: they are opened anew.
        """
        self.resources.close()
        self._connections.close()

    def __enter__(self) -> Taskline:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Taskline {self.name}: {len(self.tasks)} tasks>"


def _codec(settings: config.Settings, queues: Queues) -> Codec:
    if queues.speaks_celery:
        from taskline.celery_messages import CeleryCodec

        return CeleryCodec(settings, queues)
    if str(settings.backend).startswith("celery+"):
        raise ConfigurationError(
            "a celery+… backend keeps Celery's results: set protocol='celery', for the app or "
            "for some of its queues"
        )
    return Codec(settings)
