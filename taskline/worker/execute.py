"""One message through a slot: decode, convert, run; what becomes of it, the verdicts decide.

Nothing here talks to the broker or the backend. A `Job` leaves with a verdict,
and the I/O thread carries it out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from taskline import context
from taskline.app import Taskline
from taskline.config import LOG_LEVELS
from taskline.errors import TransportError
from taskline.message import DeadLetter, Delivery, Header, Message, Outcome
from taskline.task import Task
from taskline.worker.verdicts import TOO_LATE, NotNow, Verdicts

log = logging.getLogger("taskline.worker")


class StepState:
    """What is known of a step of a workflow on its way through this process."""

    __slots__ = ("advanced", "ended", "known")

    def __init__(self, known: dict[str, Outcome]) -> None:
        self.known = known
        """Results that it takes, as far as they are at hand."""
        self.ended: Outcome | None = None
        """The outcome it had before this handing-over."""
        self.advanced = False
        """What follows from it has been started."""


class Job(msgspec.Struct, eq=False):
    """A delivery on its way through this process.

    The I/O thread makes it; from the moment a slot takes it until its verdict is
    set it belongs to the slot; then to the I/O thread again. `lost`, `revoked`,
    `terminate`, `abandoned` and `interrupted` are set by the I/O thread at any
    time and read by the slot.
    """

    delivery: Delivery
    header: Header | None
    body: bytes
    task: Task[..., Any] | None
    members: Sequence[Job] = ()
    """Of a batch: the jobs that are run together."""
    request: context.Request | None = None
    reported: context.Progress | None = None
    """What has been stored of its progress."""
    started: float = 0.0
    """Unix seconds; 0 while it waits."""
    finished: float = 0.0
    begins_by: float = 0.0
    """Until when its limits let it begin, Unix seconds; 0 where that does not matter."""
    deadline: float = 0.0
    """When the hard time limit ends the run, by the monotonic clock; 0 for never."""
    soft_deadline: float = 0.0
    verdict: str = ""
    outcome: Outcome | None = None
    successor: Message | None = None
    letter: DeadLetter | None = None
    delay: float = 0.0
    claim: bytes | None = None
    """Of a unique call: what its run holds under its key; None before it began."""
    step: StepState | None = None
    """Set for a step of a workflow."""
    outranked: bool = False
    """A later run has stored its outcome already."""
    emits: list[Message] | None = None
    """What the task sends by its end, until it is sent."""
    early: bool = False
    stored: bool = False
    marked: bool = False
    lost: bool = False
    revoked: bool = False
    terminate: bool = False
    abandoned: bool = False
    interrupted: Exception | None = None
    events: list[tuple[str, tuple[Any, ...]]] | None = None
    """What its middleware has still to be told."""

    @property
    def limit(self) -> float | None:
        """The hard time limit in seconds: the message's, or else the task's."""
        assert self.header is not None
        assert self.task is not None
        return self.header.timeout if self.header.timeout is not None else self.task.timeout

    def begin(self, now: float, monotonic: Callable[[], float]) -> float:
        """Note that a slot begins to run it, and set its time limits, the message's or the task's.

        Returns the first of them, by the monotonic clock; 0 when there is none.
        """
        header, task = self.header, self.task
        assert header is not None
        assert task is not None
        timeout = header.timeout if header.timeout is not None else task.timeout
        soft = header.soft_timeout if header.soft_timeout is not None else task.soft_timeout
        if timeout is None and soft is None:
            self.started = now
            return 0.0
        start = monotonic()
        if timeout is not None:
            self.deadline = start + timeout
        if soft is not None:
            self.soft_deadline = start + soft
        self.started = now
        return min(self.deadline or self.soft_deadline, self.soft_deadline or self.deadline)

    def cancelled_by(self, error: BaseException) -> BaseException:
        """What ended its coroutine by a cancellation, and where."""
        if self.interrupted is None:
            return error
        return self.interrupted.with_traceback(error.__traceback__)

    def run_members(self, runner: Runner, gate: Gate | None) -> None:
        """Run a batch: see `gather.BatchJob`."""
        raise NotImplementedError

    async def run_members_async(self, runner: Runner) -> None:
        """As `run_members`, in an event loop."""
        raise NotImplementedError

    def abandon(self) -> Job:
        """A job for the same delivery, to settle while this one's code still runs."""
        self.abandoned = True
        twin = Job(self.delivery, self.header, self.body, self.task)
        twin.request = self.request
        twin.step = self.step
        twin.claim = self.claim
        twin.started = self.started
        twin.early = self.early
        twin.interrupted = self.interrupted
        return twin


class Gate(Protocol):
    """Lets interrupts through while it is open: while the task's own code runs."""

    is_open: bool

    def close(self) -> None:
        """Let none through any more, not even one under way."""


class Runner:
    """Runs the jobs of one process. Any thread may use it."""

    def __init__(self, app: Taskline, worker: str, *, keep_results: bool) -> None:
        self.verdicts = Verdicts(app, worker, keep_results=keep_results)
        self._app = app
        self._arguments = app.codec.arguments
        self.now = app.now
        self._models = app.queues.models
        level = {**LOG_LEVELS, **app.settings.log_levels}["started"]
        self._level_of_start: int = logging.getLevelName(level)

    def may_begin(self, job: Job, now: float) -> bool:
        """False, with a verdict, for a job that was revoked, has expired or is too late."""
        header = job.header
        assert header is not None
        if job.revoked:
            self.verdicts.revoked(job)
        elif header.expires is not None and header.expires <= now:
            self.verdicts.expired(job)
        elif job.begins_by and job.begins_by < now:
            job.verdict = TOO_LATE
        else:
            return True
        return False

    def run(self, job: Job, gate: Gate | None = None) -> None:
        """Run a `def` task in this thread; through the `gate`, its own code may be interrupted."""
        if job.members:
            job.run_members(self, gate)
            return
        task, header = job.task, job.header
        assert task is not None
        assert header is not None
        try:
            if header.unique is not None:
                self._claim(job)
            args, kwargs = self._arguments(header, job.body)
            if header.flow is not None:
                args, kwargs = self._with_results(job, args, kwargs)
            if self._models and header.queue in self._models:
                args = self._models[header.queue].convert(header.task, args, kwargs)
            args, kwargs = task.signature.convert(args, kwargs)
            if log.isEnabledFor(self._level_of_start):
                self._log_start(task, header, args, kwargs)
            token = context.activate(self.request(job, header))
            try:
                if task.hooks is not None:
                    task.hooks.call("before_run", job.request)
                if gate is not None:
                    gate.is_open = True
                    if job.interrupted is not None:
                        raise job.interrupted
                value = task.run(args, kwargs) if task.bind else task.body(*args, **kwargs)
            finally:
                if gate is not None:
                    gate.close()
                context.deactivate(token)
        except BaseException as error:  # a task's SystemExit is its failure, not our end
            if gate is not None:
                gate.close()  # an interrupt may have come before it was closed
            self.verdicts.failed(job, error)
        else:
            self.verdicts.succeeded(job, value)

    async def run_async(self, job: Job) -> None:
        """Run an `async def` task in this event loop."""
        from asyncio import CancelledError, to_thread

        if job.members:
            await job.run_members_async(self)
            return
        task, header = job.task, job.header
        assert task is not None
        assert header is not None
        try:
            if header.unique is not None:
                from taskline.worker.steered import to_its_end

                await to_its_end(self._claim, job)
            args, kwargs = self._arguments(header, job.body)
            if header.flow is not None:
                args, kwargs = await to_thread(self._with_results, job, args, kwargs)
            if self._models and header.queue in self._models:
                args = self._models[header.queue].convert(header.task, args, kwargs)
            args, kwargs = task.signature.convert(args, kwargs)
            if log.isEnabledFor(self._level_of_start):
                self._log_start(task, header, args, kwargs)
            token = context.activate(self.request(job, header))
            try:
                if task.hooks is not None:
                    await task.hooks.await_all("before_run", job.request)
                running = task.run(args, kwargs)
                if job.soft_deadline or job.interrupted is not None:
                    from taskline.worker.steered import steered

                    running = steered(running, job)
                value = await running
            finally:
                context.deactivate(token)
        except CancelledError as error:
            if not job.abandoned:
                self.verdicts.failed(job, job.cancelled_by(error))
        except BaseException as error:
            self.verdicts.failed(job, error)
        else:
            self.verdicts.succeeded(job, value)

    def _claim(self, job: Job) -> None:
        """Begin the run of a unique call: raises as `claims.begin`, and `NotNow`."""
        from taskline.worker.claims import begin

        try:
            begin(self._app, job)
        except TransportError as error:
            raise NotNow from error

    def _with_results(
        self, job: Job, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> tuple[Sequence[Any], dict[str, Any]]:
        """The arguments of a step of a workflow, with the results that it takes.

        Raises `NotNow` when the backend cannot be reached.
        """
        from taskline.workflows.inputs import completed

        task, header = job.task, job.header
        assert task is not None
        assert header is not None
        assert header.flow is not None
        known = {} if job.step is None else job.step.known
        try:
            return completed(self._app, task, header.flow, args, kwargs, known)
        except TransportError as error:
            raise NotNow from error

    def arguments(self, job: Job) -> tuple[Any, Any]:
        """As `decoded`, for the start of the job, of which the log is told."""
        args, kwargs = self.decoded(job)
        if log.isEnabledFor(self._level_of_start):
            assert job.task is not None
            assert job.header is not None
            self._log_start(job.task, job.header, args, kwargs)
        return args, kwargs

    def decoded(self, job: Job) -> tuple[Any, Any]:
        """A job's arguments as its task declares them; raises what is wrong with them."""
        task, header = job.task, job.header
        assert task is not None
        assert header is not None
        if header.unique is not None:
            self._claim(job)
        args, kwargs = self._arguments(header, job.body)
        if header.flow is not None:
            args, kwargs = self._with_results(job, args, kwargs)
        if header.queue in self._models:
            args = self._models[header.queue].convert(header.task, args, kwargs)
        return task.signature.convert(args, kwargs)

    def request(self, job: Job, header: Header) -> context.Request:
        """What the job's run knows of itself."""
        delivery = job.delivery
        request = job.request = context.Request(header, delivery.deliveries, delivery.receipt)
        if job.deadline:
            request.deadline = job.started + (job.limit or 0.0)
        return request

    def _log_start(
        self, task: Task[..., Any], header: Header, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> None:
        shown = task.signature.shown(args, kwargs)
        log.log(self._level_of_start, "task %s[%s] started: (%s)", task.name, header.id, shown)
