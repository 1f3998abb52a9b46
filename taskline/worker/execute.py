"""One message through a slot: decode, convert, run, and what becomes of it.

Nothing here talks to the broker or the backend. A `Job` leaves with a verdict,
and the I/O thread carries it out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from taskline import context, outcomes
from taskline.app import Taskline
from taskline.config import LOG_LEVELS, LogEvent
from taskline.emitting import Emitted, messages
from taskline.errors import (
    ConfigurationError,
    Ignore,
    InvalidArguments,
    NoResult,
    Reject,
    SerializationError,
    SoftTimeout,
    TaskRevoked,
    TaskTimeout,
    TransportError,
)
from taskline.failures import error_line, traceback_text, user_traceback
from taskline.hooks import Hooks
from taskline.message import (
    EXPIRED,
    REVOKED,
    STARTED,
    SUCCESS,
    VERSION,
    DeadLetter,
    Delivery,
    Header,
    Message,
    Outcome,
)
from taskline.task import Task

log = logging.getLogger("taskline.worker")

ACK = "ack"
REPLACE = "replace"
BURY = "bury"
RELEASE = "release"


_PAUSE = 1.0
"""Seconds until a step is handed over again whose results could not be read."""


class _NotNow(Exception):
    """The backend could not be reached, for the reason given as the cause."""


class NotToRun(Exception):
    """A message whose task must not run: another call has its place, as the text says; without
    a text, the task has ended under the same id."""


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


class Job:
    """A delivery on its way through this process.

    The I/O thread makes it; from the moment a slot takes it until its verdict is
    set it belongs to the slot; then to the I/O thread again. `lost`, `revoked`,
    `terminate`, `abandoned` and `interrupted` are set by the I/O thread at any
    time and read by the slot.
    """

    __slots__ = (
        "abandoned",
        "body",
        "claim",
        "deadline",
        "delay",
        "delivery",
        "early",
        "emits",
        "events",
        "finished",
        "header",
        "interrupted",
        "letter",
        "lost",
        "marked",
        "outcome",
        "outranked",
        "reported",
        "request",
        "revoked",
        "soft_deadline",
        "started",
        "step",
        "stored",
        "successor",
        "task",
        "terminate",
        "verdict",
    )

    members: Sequence[Job] = ()
    """Of a batch: the jobs that are run together."""

    def __init__(
        self, delivery: Delivery, header: Header | None, body: bytes, task: Task[..., Any] | None
    ) -> None:
        self.delivery = delivery
        self.header = header
        self.body = body
        self.task = task
        self.request: context.Request | None = None
        self.reported: context.Progress | None = None
        """What has been stored of its progress."""
        self.started = 0.0
        """Unix seconds; 0 while it waits."""
        self.finished = 0.0
        self.deadline = 0.0
        """When the hard time limit ends the run, by the monotonic clock; 0 for never."""
        self.soft_deadline = 0.0
        self.verdict = ""
        self.outcome: Outcome | None = None
        self.successor: Message | None = None
        self.letter: DeadLetter | None = None
        self.delay = 0.0
        self.claim: bytes | None = None
        """Of a unique call: what its run holds under its key; None before it began."""
        self.step: StepState | None = None
        """Set for a step of a workflow."""
        self.outranked = False
        """A later run has stored its outcome already."""
        self.emits: list[Message] | None = None
        """What the task sends by its end, until it is sent."""
        self.early = False
        self.stored = False
        self.marked = False
        self.lost = False
        self.revoked = False
        self.terminate = False
        self.abandoned = False
        self.interrupted: Exception | None = None
        self.events: list[tuple[str, tuple[Any, ...]]] | None = None
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
    """Runs jobs for one process and decides their verdicts. Any thread may use it."""

    def __init__(self, app: Taskline, worker: str, *, keep_results: bool) -> None:
        self.worker = worker
        self._app = app
        self._keep = keep_results
        self._codec = app.codec
        self._arguments = app.codec.arguments
        self.now = app.now
        self._serializer = app.settings.serializer
        self._default_ttl = app.settings.result_ttl
        self.largest = 2**62
        """Bytes of the largest outcome that the backend takes."""
        self._models = app.queues.models
        levels = {**LOG_LEVELS, **app.settings.log_levels}
        self._levels = {event: logging.getLevelName(level) for event, level in levels.items()}
        self._level_of_start = self._levels["started"]
        self._level_of_success = self._levels["succeeded"]

    def may_begin(self, job: Job, now: float) -> bool:
        """False, with a verdict, for a job that was revoked or has expired while it waited."""
        header = job.header
        assert header is not None
        if job.revoked:
            self.revoked(job)
        elif header.expires is not None and header.expires <= now:
            self.expired(job)
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
            self.failed(job, error)
        else:
            self.succeeded(job, value)

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
                await to_thread(self._claim, job)
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
                if job.soft_deadline:
                    from taskline.worker.steered import steered

                    running = steered(running, job)
                value = await running
            finally:
                context.deactivate(token)
        except CancelledError as error:
            if not job.abandoned:
                self.failed(job, job.cancelled_by(error))
        except BaseException as error:
            self.failed(job, error)
        else:
            self.succeeded(job, value)

    def _claim(self, job: Job) -> None:
        """Begin the run of a unique call: raises as `claims.begin`, and `_NotNow`."""
        from taskline.worker.claims import begin

        try:
            begin(self._app, job)
        except TransportError as error:
            raise _NotNow from error

    def _with_results(
        self, job: Job, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> tuple[Sequence[Any], dict[str, Any]]:
        """The arguments of a step of a workflow, with the results that it takes.

        Raises `_NotNow` when the backend cannot be reached.
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
            raise _NotNow from error

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
        request = job.request = context.Request(
            header, deliveries=delivery.deliveries, receipt=delivery.receipt
        )
        if job.deadline:
            request.deadline = job.started + (job.limit or 0.0)
        return request

    def succeeded(self, job: Job, value: Any) -> None:
        """The task returned."""
        task, header = job.task, job.header
        assert task is not None
        assert header is not None
        now = job.finished = self.now()
        policy = task.policy
        if task.hooks is not None:
            self._note(job, "after_run", job.request, None)
        emitted, value = (value, value.result) if type(value) is Emitted else (None, value)
        if header.retry is not None or (policy is not None and policy.judges_results):
            try:
                delay = outcomes.next_attempt(
                    policy, header, None, now, result=value, started=job.started
                )
            except ConfigurationError as wrong:
                self.bury(job, wrong, str(wrong))
                return
            if delay is not None:
                self._again(job, header, outcomes.unsatisfying(value), delay)
                return
        if self._keep and header.result_ttl != 0:
            try:
                job.outcome = outcomes.outcome(
                    self._codec, header, SUCCESS, value, **self._known(job)
                )
                if len(job.outcome.frame) > self.largest:
                    raise SerializationError(
                        f"it has {len(job.outcome.frame)} bytes, and the result backend stores "
                        f"{self.largest}: put it into GridFS or other storage and return its name"
                    )
            except SerializationError as refused:
                error = outcomes.unfit(header, value, refused)
                self.bury(job, error, str(error))
                return
        if emitted is not None:
            try:
                job.emits = messages(self._app, emitted, header)
            except SerializationError as refused:
                job.outcome = None
                self.bury(job, refused, str(refused))
                return
        job.verdict = ACK
        if log.isEnabledFor(self._level_of_success):
            took = now - job.started
            self._log("succeeded", "task %s[%s] succeeded in %.3f s", task.name, header.id, took)
        if task.hooks is not None:
            self._note(job, "success", job.request, value)

    def failed(self, job: Job, error: BaseException) -> None:
        """The task, or decoding its arguments, raised."""
        if job.members:
            job.finished = self.now()
            for member in job.members:
                if not (member.verdict or member.lost):
                    member.interrupted = job.interrupted
                    self.failed(member, error)
            return
        header = job.header
        assert header is not None
        now = job.finished = self.now()
        if job.request is not None:
            self._note(job, "after_run", job.request, error)
        if isinstance(error, Ignore):
            self._end(job, SUCCESS)
            self._note(job, "success", job.request, None)
            return
        if isinstance(error, _NotNow):
            log.warning("task %s is handed back: %s", job.delivery.id, error.__cause__)
            job.verdict, job.delay, job.finished = RELEASE, _PAUSE, 0.0
            return
        if isinstance(error, NotToRun):
            if str(error):
                self.revoked(job, str(error))
            else:
                job.verdict = ACK
            return
        if job.interrupted is not None and type(error) is type(job.interrupted):
            # In a thread only the class can be raised; the text is here.
            error = job.interrupted.with_traceback(error.__traceback__)
            if isinstance(error, TaskRevoked):
                self.revoked(job)
                return
        if job.request is None and isinstance(
            error, (ConfigurationError, InvalidArguments, SerializationError, NoResult)
        ):
            self.bury(job, error, str(error))
            return
        if isinstance(error, (SoftTimeout, TaskTimeout)) and job.request is not None:
            self._note(job, "timeout", job.request, error)
        policy = job.task.policy if job.task is not None else None
        try:
            delay = outcomes.next_attempt(policy, header, error, now, started=job.started or None)
        except ConfigurationError as wrong:
            delay, error = None, wrong
        if delay is None:
            reason = error.reason if isinstance(error, Reject) else error_line(error)
            self.bury(job, error, reason)
        else:
            self._again(job, header, error, delay)

    def revoked(self, job: Job, why: str = "") -> None:
        """The task was revoked: before it ran, or while it did."""
        self._log("revoked", "task %s[%s] was revoked%s", *_named(job), why and f": {why}")
        self._end(job, REVOKED, why)

    def expired(self, job: Job) -> None:
        """The message was received after its `expires`."""
        self._log("expired", "task %s[%s] expired before it could start", *_named(job))
        self._end(job, EXPIRED)

    def showing(self, job: Job) -> Outcome | None:
        """The outcome that shows a run in progress; None when it does not fit a message."""
        header = job.header
        assert header is not None
        if job.request is not None:
            job.reported = job.request.reported
        try:
            return outcomes.outcome(self._codec, header, STARTED, **self._known(job))
        except SerializationError:
            return None

    def broken(self, job: Job, error: Exception) -> None:
        """Taskline itself failed to end the run. That must cost the message, not the slot."""
        if job.members:
            for member in job.members:
                if not (member.verdict or member.lost):
                    self.broken(member, error)
            return
        log.critical("task %s: a defect in Taskline", job.delivery.id, exc_info=error)
        self.bury(job, error, f"a defect in Taskline, please report it: {error!r}")

    def bury(self, job: Job, error: BaseException, reason: str) -> None:
        """A final failure: FAILURE for those who wait, a dead letter for those who mend."""
        job.finished = job.finished or self.now()
        delivery = job.delivery
        header = job.header or Header(
            VERSION, delivery.id, "", delivery.queue, 0.0, self._serializer
        )
        known = self._known(job)
        ran = job.request is not None
        trace = user_traceback(error.__traceback__)
        self._log(
            "failed",
            "task %s[%s] failed for good: %s",
            header.task or "?",
            delivery.id,
            reason,
            exc_info=(type(error), error, trace) if ran and trace is not None else None,
        )
        self._tell(job, header, lambda: outcomes.failure(self._codec, header, error, **known))
        job.letter = DeadLetter(
            id=delivery.id,
            queue=delivery.queue,
            reason=reason,
            at=job.finished,
            task=header.task,
            worker=self.worker,
            attempt=header.attempt,
            deliveries=delivery.deliveries,
            traceback=traceback_text(error) if ran else "",
            frame=delivery.frame,
        )
        if job.request is not None:
            self._note(job, "failure", job.request, error)
        self._note(job, "dead_letter", job.letter)
        job.verdict = BURY

    def _log_start(
        self, task: Task[..., Any], header: Header, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> None:
        shown = task.signature.shown(args, kwargs)
        self._log("started", "task %s[%s] started: (%s)", task.name, header.id, shown)

    def _log(self, event: LogEvent, line: str, *args: Any, exc_info: Any = None) -> None:
        """One line for an event of a task's life, at the level that the settings give it."""
        log.log(self._levels[event], line, *args, exc_info=exc_info)

    def _end(self, job: Job, state: str, why: str = "") -> None:
        header = job.header
        assert header is not None
        job.finished = self.now()
        known = self._known(job)
        if why:
            known["error"] = outcomes.revocation(why)
        self._tell(job, header, lambda: outcomes.outcome(self._codec, header, state, **known))
        job.verdict = ACK

    def _tell(self, job: Job, header: Header, make: Callable[[], Outcome]) -> None:
        """Keep what `make` returns as the job's outcome, if it fits a message at all."""
        if not self._keep:
            return
        try:
            job.outcome = make()
        except SerializationError as refused:
            log.error("task %s[%s]: its end cannot be told: %s", header.task, header.id, refused)

    def _again(self, job: Job, header: Header, error: BaseException, delay: float) -> None:
        now = job.finished
        successor = outcomes.successor(header, error, delay, now, job.started or now)
        successor = msgspec.structs.replace(successor, deliveries=job.delivery.deliveries)
        try:
            try:
                job.successor = self._codec.reframe(successor, job.body)
            except SerializationError:  # the lines about the attempts made it too large
                successor = msgspec.structs.replace(successor, errors=())
                job.successor = self._codec.reframe(successor, job.body)
        except SerializationError as refused:
            self.bury(job, error, f"{error_line(error)}; it cannot be tried again: {refused}")
            return
        self._log(
            "retried",
            "task %s[%s] attempt %d: %s; next attempt in %.1f s",
            header.task,
            header.id,
            header.attempt,
            error_line(error),
            delay,
        )
        known = {**self._known(job), "retry_at": now + delay}
        self._tell(job, header, lambda: outcomes.retrying(self._codec, header, error, **known))
        if job.request is not None:
            self._note(job, "retry", job.request, error, delay)
        job.verdict = REPLACE

    def _note(self, job: Job, event: str, *args: Any) -> None:
        """Let the middleware be told, by `tell` or `atell`, if any wants to know."""
        hooks = self._hooks(job)
        if hooks is not None and hooks[event] and not job.abandoned:
            if job.events is None:
                job.events = []
            job.events.append((event, args))

    def _hooks(self, job: Job) -> Hooks | None:
        return self._app.hooks if job.task is None else job.task.hooks

    def tell(self, job: Job) -> None:
        """Tell the middleware what became of the job, as its task's thread."""
        hooks, events, job.events = self._hooks(job), job.events, None
        if hooks is None or events is None:
            return
        token = None if job.request is None else context.activate(job.request)
        try:
            for event, args in events:
                hooks.call(event, *args)
        finally:
            if token is not None:
                context.deactivate(token)

    async def atell(self, job: Job) -> None:
        """As `tell`, in an event loop."""
        hooks, events, job.events = self._hooks(job), job.events, None
        if hooks is None or events is None:
            return
        token = None if job.request is None else context.activate(job.request)
        try:
            for event, args in events:
                await hooks.await_all(event, *args)
        finally:
            if token is not None:
                context.deactivate(token)

    def _known(self, job: Job) -> dict[str, Any]:
        header, task = job.header, job.task
        ttl: float | None = self._default_ttl
        if header is not None and header.result_ttl is not None:
            ttl = header.result_ttl
        elif task is not None and task.result_ttl is not None:
            ttl = task.result_ttl
        request = job.request
        known: dict[str, Any] = {
            "children": None if request is None else request.children,
            "deliveries": job.delivery.deliveries,
            "worker": self.worker,
            "started": job.started or None,
            "finished": job.finished or None,
            "ttl": ttl,
        }
        if request is not None and request.reported is not None:
            known["progress"] = request.reported
        return known


def _named(job: Job) -> tuple[str, str]:
    return job.header.task if job.header is not None else "?", job.delivery.id
