"""What becomes of a run: the verdict on its job, its outcome, and what is told of it.

Nothing here talks to the broker or the backend: the I/O thread carries verdicts out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

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
    Header,
    Outcome,
)

if TYPE_CHECKING:
    from taskline.worker.execute import Job

log = logging.getLogger("taskline.worker")

ACK = "ack"
REPLACE = "replace"
BURY = "bury"
RELEASE = "release"
TOO_LATE = "late"
"""It did not begin in time, and waits for its limits again."""

PAUSE = 1.0
"""Seconds until a step is handed over again whose results could not be read."""


class NotNow(Exception):
    """The backend could not be reached, for the reason given as the cause."""


class NotToRun(Exception):
    """A message whose task must not run: another call has its place, as the text says; without
    a text, the task has ended under the same id."""


class Verdicts:
    """Decides the verdicts of one process. Any thread may use it."""

    def __init__(self, app: Taskline, worker: str, *, keep_results: bool) -> None:
        self.worker = worker
        self._app = app
        self._keep = keep_results
        self._codec = app.codec
        self._now = app.now
        self._serializer = app.settings.serializer
        self._default_ttl = app.settings.result_ttl
        self.largest = 2**62
        """Bytes of the largest outcome that the backend takes."""
        levels = {**LOG_LEVELS, **app.settings.log_levels}
        self._levels = {event: logging.getLevelName(level) for event, level in levels.items()}
        self._level_of_success = self._levels["succeeded"]

    def succeeded(self, job: Job, value: Any) -> None:
        """The task returned."""
        task, header = job.task, job.header
        assert task is not None
        assert header is not None
        now = job.finished = self._now()
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
            job.finished = self._now()
            for member in job.members:
                if not (member.verdict or member.lost):
                    member.interrupted = job.interrupted
                    self.failed(member, error)
            return
        header = job.header
        assert header is not None
        now = job.finished = self._now()
        if job.request is not None:
            self._note(job, "after_run", job.request, error)
        if isinstance(error, Ignore):
            self._end(job, SUCCESS)
            self._note(job, "success", job.request, None)
            return
        if isinstance(error, NotNow):
            log.warning("task %s is handed back: %s", job.delivery.id, error.__cause__)
            job.verdict, job.delay, job.finished = RELEASE, PAUSE, 0.0
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
        job.finished = job.finished or self._now()
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

    def _log(self, event: LogEvent, line: str, *args: Any, exc_info: Any = None) -> None:
        """One line for an event of a task's life, at the level that the settings give it."""
        log.log(self._levels[event], line, *args, exc_info=exc_info)

    def _end(self, job: Job, state: str, why: str = "") -> None:
        header = job.header
        assert header is not None
        job.finished = self._now()
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
        with self._noted(job) as (hooks, events):
            for event, args in events:
                hooks.call(event, *args)

    async def atell(self, job: Job) -> None:
        """As `tell`, in an event loop."""
        with self._noted(job) as (hooks, events):
            for event, args in events:
                await hooks.await_all(event, *args)

    @contextmanager
    def _noted(self, job: Job) -> Iterator[tuple[Hooks, list[tuple[str, tuple[Any, ...]]]]]:
        """Whom to tell, and what was noted for them; meanwhile `current_task` is the job's."""
        hooks, events, job.events = self._hooks(job) or Hooks(), job.events or [], None
        token = None if job.request is None else context.activate(job.request)
        try:
            yield hooks, events
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
