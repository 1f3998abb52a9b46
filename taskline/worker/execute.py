"""One message through a slot: decode, convert, run, and what becomes of it.

Nothing here talks to the broker or the backend. A `Job` leaves with a verdict,
and the I/O thread carries it out.
"""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import msgspec

from taskline import context, outcomes
from taskline.app import Taskline
from taskline.errors import (
    Ignore,
    InvalidArguments,
    Reject,
    Retry,
    SerializationError,
    TaskRevoked,
    TasklineError,
)
from taskline.message import (
    EXPIRED,
    FAILURE,
    RETRY,
    REVOKED,
    STARTED,
    SUCCESS,
    DeadLetter,
    Delivery,
    Header,
    Message,
    Outcome,
)
from taskline.policy import RetryPolicy
from taskline.task import Task

log = logging.getLogger("taskline.worker")

ACK = "ack"
REPLACE = "replace"
BURY = "bury"
RELEASE = "release"

_ERRORS_KEPT = 10
_LINE = 500
_OURS = str(Path(__file__).parent.parent) + os.sep


class Job:
    """A delivery on its way through this process.

    The I/O thread makes it; from the moment a slot takes it until its verdict is
    set it belongs to the slot; then to the I/O thread again. `lost`, `terminate`
    and `abandoned` are set by the I/O thread at any time and read by the slot.
    """

    __slots__ = (
        "abandoned",
        "body",
        "deadline",
        "delay",
        "delivery",
        "early",
        "finished",
        "header",
        "letter",
        "lost",
        "marked",
        "outcome",
        "request",
        "soft_deadline",
        "started",
        "stored",
        "successor",
        "task",
        "terminate",
        "verdict",
    )

    def __init__(
        self, delivery: Delivery, header: Header | None, body: bytes, task: Task[..., Any] | None
    ) -> None:
        self.delivery = delivery
        self.header = header
        self.body = body
        self.task = task
        self.request: context.Request | None = None
        self.started = 0.0
        self.finished = 0.0
        self.deadline = 0.0
        self.soft_deadline = 0.0
        self.verdict = ""
        self.outcome: Outcome | None = None
        self.successor: Message | None = None
        self.letter: DeadLetter | None = None
        self.delay = 0.0
        self.early = False
        self.stored = False
        self.marked = False
        self.lost = False
        self.terminate = False
        self.abandoned = False


class Runner:
    """Runs jobs for one process and decides their verdicts. Any thread may use it."""

    def __init__(self, app: Taskline, worker: str, *, keep_results: bool) -> None:
        self.app = app
        self.worker = worker
        self._keep = keep_results
        self._codec = app.codec
        self._loads = app.codec.loads
        self._clock = app.clock
        self._default_ttl = app.settings.result_ttl

    def run(self, job: Job) -> None:
        """Run a `def` task in this thread."""
        task = job.task
        header = job.header
        assert task is not None
        assert header is not None
        try:
            args, kwargs = self._loads(header, job.body)
            args, kwargs = task.signature.convert(args, kwargs)
            request = job.request = context.Request(header, job.delivery)
            token = context.activate(request)
            try:
                value = task.run(args, kwargs)
            finally:
                context.deactivate(token)
        except BaseException as error:  # a task's SystemExit is a failure, not our end
            self.failed(job, error)
        else:
            self.succeeded(job, value)

    async def run_async(self, job: Job) -> None:
        """Run an `async def` task in this event loop."""
        task = job.task
        header = job.header
        assert task is not None
        assert header is not None
        try:
            args, kwargs = self._loads(header, job.body)
            args, kwargs = task.signature.convert(args, kwargs)
            request = job.request = context.Request(header, job.delivery)
            token = context.activate(request)
            try:
                awaitable: Awaitable[Any] = task.run(args, kwargs)
                value = await awaitable
            finally:
                context.deactivate(token)
        except BaseException as error:
            self.failed(job, error)
        else:
            self.succeeded(job, value)

    def succeeded(self, job: Job, value: Any) -> None:
        """The task returned."""
        task = job.task
        assert task is not None
        assert job.header is not None
        policy = task.policy
        if policy is not None and policy.retries_results:
            delay = self._delay(job, policy, None, value)
            if delay is not None:
                self._again(job, delay, f"the policy refused the result {value!r:.100}", None)
                return
        job.finished = self._clock.time()
        if self._keep and job.header.result_ttl != 0:
            try:
                job.outcome = self._outcome(job, SUCCESS, value=value)
            except SerializationError as error:
                self.failed(job, error)
                return
        job.verdict = ACK

    def failed(self, job: Job, error: BaseException) -> None:
        """The task, or decoding its arguments, raised."""
        job.finished = self._clock.time()
        if isinstance(error, Ignore):
            self.succeeded(job, None)
        elif isinstance(error, TaskRevoked):
            self.revoked(job)
        elif isinstance(error, Reject):
            self.bury(job, error, error.reason)
        elif isinstance(error, (InvalidArguments, SerializationError)) and job.request is None:
            self.bury(job, error, str(error))
        else:
            policy = self._policy(job)
            delay: float | None = None
            if isinstance(error, Retry) and error.after is not None:
                allowed = error.always or policy is None
                if allowed or self._delay(job, policy, error, None) is not None:
                    delay = error.after
            elif policy is not None:
                delay = self._delay(job, policy, error, None)
                if delay is None and isinstance(error, Retry) and error.always:
                    delay = 1.0
            elif isinstance(error, Retry):
                delay = 1.0
            if delay is None:
                self.bury(job, error, _line(error))
            else:
                self._again(job, delay, _line(error), error)

    def revoked(self, job: Job) -> None:
        """The task was revoked: before it ran, or while it did."""
        job.finished = self._clock.time()
        if self._keep and job.header is not None:
            job.outcome = self._outcome(job, REVOKED)
        job.verdict = ACK

    def expired(self, job: Job) -> None:
        """The message was received after its `expires`."""
        job.finished = self._clock.time()
        if self._keep and job.header is not None:
            job.outcome = self._outcome(job, EXPIRED)
        job.verdict = ACK

    def started(self, job: Job) -> Outcome:
        """The outcome that shows a run in progress."""
        return self._outcome(job, STARTED)

    def bury(self, job: Job, error: BaseException, reason: str) -> None:
        """A final failure: FAILURE for those who wait, a dead letter for those who mend."""
        job.finished = job.finished or self._clock.time()
        header = job.header
        delivery = job.delivery
        name = header.task if header else "?"
        ran = job.request is not None
        text = "".join(traceback.format_exception(error)) if ran else ""
        log.error(
            "task %s[%s] failed for good: %s",
            name,
            delivery.id,
            reason,
            exc_info=_user_part(error) if ran else None,
        )
        if self._keep:
            job.outcome = self._outcome(job, FAILURE, error=error)
        job.letter = DeadLetter(
            id=delivery.id,
            queue=delivery.queue,
            reason=reason,
            at=job.finished,
            task=header.task if header else "",
            worker=self.worker,
            attempt=header.attempt if header else 1,
            deliveries=delivery.deliveries,
            traceback=text,
            frame=delivery.frame,
        )
        job.verdict = BURY

    def _policy(self, job: Job) -> RetryPolicy | None:
        assert job.header is not None
        assert job.task is not None
        if job.header.retry is not None:
            return RetryPolicy.from_dict(job.header.retry)
        return job.task.policy

    def _delay(
        self, job: Job, policy: RetryPolicy | None, error: BaseException | None, value: Any
    ) -> float | None:
        header = job.header
        assert header is not None
        if policy is None:
            return None
        return policy.decide(
            attempt=header.attempt,
            error=error,
            result=value,
            first_run=header.first_run or job.started or job.finished,
            waited=header.waited,
            now=self._clock.time(),
        )

    def _again(self, job: Job, delay: float, line: str, error: BaseException | None) -> None:
        header = job.header
        assert header is not None
        now = job.finished = self._clock.time()
        log.warning(
            "task %s[%s] attempt %d: %s; next attempt in %.1f s",
            header.task,
            header.id,
            header.attempt,
            line,
            delay,
        )
        errors = [*header.errors, line[:_LINE]][-_ERRORS_KEPT:]
        successor = msgspec.structs.replace(
            header,
            attempt=header.attempt + 1,
            eta=now + delay,
            first_run=header.first_run or job.started or now,
            waited=header.waited + delay,
            errors=errors,
            deliveries=job.delivery.deliveries,
        )
        job.successor = self._codec.seal(successor, job.body)
        if self._keep:
            job.outcome = self._outcome(
                job, RETRY, error=error, retry_at=now + delay, errors=errors
            )
        job.verdict = REPLACE

    def _outcome(
        self,
        job: Job,
        state: str,
        *,
        value: Any = None,
        error: BaseException | None = None,
        retry_at: float | None = None,
        errors: list[str] | None = None,
    ) -> Outcome:
        header = job.header
        ttl = self._default_ttl
        if header is not None and header.result_ttl is not None:
            ttl = header.result_ttl
        elif job.task is not None and job.task.result_ttl is not None:
            ttl = job.task.result_ttl
        return outcomes.build(
            self._codec,
            header or Header(1, job.delivery.id, "", job.delivery.queue, 0.0),
            state,
            value,
            deliveries=job.delivery.deliveries,
            worker=self.worker,
            started=job.started or None,
            finished=job.finished or None,
            error=outcomes.encode_error(error) if error is not None else None,
            ttl=ttl,
            retry_at=retry_at,
            errors=errors,
        )


def _line(error: BaseException) -> str:
    text = str(error).strip().split("\n", 1)[0]
    name = type(error).__name__
    if isinstance(error, TasklineError):
        return text or name
    return f"{name}: {text}"[:_LINE] if text else name


def _user_part(error: BaseException) -> BaseException:
    """The error with our own frame at the top of its traceback left out."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_OURS):
        trace = trace.tb_next
    return error.with_traceback(trace) if trace is not None else error
