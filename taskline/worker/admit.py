"""From deliveries to jobs: what may run, and a verdict at once for what may not.

Owned by the I/O thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from taskline.app import Taskline
from taskline.backends.base import Backend
from taskline.errors import (
    ConfigurationError,
    MessageRefused,
    SerializationError,
    TaskPoisoned,
    TaskTimeout,
    TransportError,
    UnknownTask,
)
from taskline.message import FINAL_STATES, Delivery
from taskline.task import Task
from taskline.worker.execute import Job
from taskline.worker.flows import Flows
from taskline.worker.ledger import Condemned
from taskline.worker.revoked import Revoked
from taskline.worker.settle import Settlements
from taskline.worker.verdicts import ACK, Verdicts

log = logging.getLogger("taskline.worker")

ASK_AGAIN = 1.0
"""Seconds for which a message is handed back that needs the backend, which does not answer."""


class Admitted(NamedTuple):
    """Jobs that may run."""

    plain: list[Job]
    coroutines: list[Job]
    suspects: list[Job]
    """Those that were lost before, with a worker or a lease: see `quarantine`."""


class Admission:
    """Decodes headers; `admit` takes what was received and makes the settlements hold it."""

    def __init__(
        self,
        app: Taskline,
        verdicts: Verdicts,
        settlements: Settlements,
        backend: Backend | None,
        flows: Flows | None,
        revoked: Revoked,
        condemned: Condemned | None,
        max_deliveries: int,
    ) -> None:
        self._app = app
        self._verdicts = verdicts
        self._settlements = settlements
        self._backend = backend
        self._flows = flows
        self._builtin: dict[str, Task[..., Any]] = {}
        self._revoked = revoked
        self._condemned = condemned
        self._max_deliveries = max_deliveries
        self._unknown_grace = app.settings.unknown_grace
        self.limited: Callable[[Job], bool] | None = None
        """Whether a job is subject to limits, when there are some: it is acknowledged early
        not before it has what they ask for."""
        self.given_up: Callable[[Job], None] | None = None
        """Told of jobs with limits that will not go on where a run of them was cut off."""

    def admit(self, deliveries: list[Delivery]) -> Admitted:
        """Sort these deliveries by what becomes of them."""
        open_frame, tasks, revoked = self._app.codec.open, self._app.tasks, self._revoked
        routed = self._app.queues.routed
        held = self._settlements.held
        now = self._app.clock.time()
        plain: list[Job] = []
        coroutines: list[Job] = []
        suspects: list[Job] = []
        early: list[Job] = []
        steps: list[Job] = []
        for delivery in deliveries:
            try:
                header, body = open_frame(delivery.frame)
                if header.id != delivery.id:
                    raise MessageRefused(
                        f"the message is of task {header.id[:100]!r}, but it was stored as"
                        f" {delivery.id[:100]!r}: its outcome would be another's"
                    )
            except SerializationError as error:
                job = held[delivery] = Job(delivery, None, b"", None)
                self._refuse(job, error)
                continue
            if routed:  # its sender may call the queue otherwise
                header.queue = delivery.queue
            task = tasks.get(header.task)
            job = Job(delivery, header, body, task)
            if header.flow is not None:
                steps.append(job)
                continue
            held[delivery] = job
            # Said here for the usual message, which is not doubtful: a call for each would cost.
            if (
                task is None
                or delivery.lost
                or header.expires is not None
                or header.slot is not None
                or revoked
            ) and not self._may_run(job, now):
                if delivery.lost and self.given_up is not None:
                    self.given_up(job)
                continue
            assert task is not None
            if task.ack == "early" and not (self.limited is not None and self.limited(job)):
                early.append(job)
            elif delivery.lost and task.ack != "early":
                suspects.append(job)
            else:
                (coroutines if task.is_async else plain).append(job)
        for job in self._look(steps) if steps else ():
            assert job.task is not None
            if job.task.ack == "early" and not (self.limited is not None and self.limited(job)):
                early.append(job)
            elif job.delivery.lost and job.task.ack != "early":
                suspects.append(job)
            else:
                (coroutines if job.task.is_async else plain).append(job)
        if early:
            for job in self._settlements.ack_early(early):
                assert job.task is not None
                (coroutines if job.task.is_async else plain).append(job)
        return Admitted(plain, coroutines, suspects)

    def _look(self, steps: list[Job]) -> list[Job]:
        """Of steps of workflows those that may run."""
        from taskline.workflows import builtin

        self._settlements.has_steps = True
        for job in steps:
            assert job.header is not None
            if job.task is None:
                name = job.header.task
                if name not in self._builtin and name in builtin.NAMES:
                    self._builtin[name] = builtin.find(self._app, name)
                job.task = self._builtin.get(name)
        self._settlements.held.update((job.delivery, job) for job in steps)
        try:
            ended = set() if self._flows is None else self._flows.ended(steps)
        except TransportError as error:
            log.warning("%d steps of workflows are handed back: %s", len(steps), error)
            self._settlements.give_back(steps, ASK_AGAIN)
            return []
        for job in ended:
            self._settlements.add(job)
        now = self._app.clock.time()
        kept = [job for job in steps if job not in ended and self._may_run(job, now)]
        if self.given_up is not None:
            for job in set(steps).difference(kept):
                if job.delivery.lost:
                    self.given_up(job)
        return kept

    def _may_run(self, job: Job, now: float) -> bool:
        """False, with a verdict that is carried out, for what must not run."""
        delivery, header, task = job.delivery, job.header, job.task
        assert header is not None
        if task is None and now - max(header.sent, header.eta or 0.0) < self._unknown_grace:
            self._settlements.give_back([job], ASK_AGAIN)  # a worker of newer code may know it
        elif task is None:
            self._refuse(
                job,
                UnknownTask(
                    f"no task {header.task!r} is registered in this worker:"
                    " import its module (include=…) or send it to another queue"
                ),
            )
        elif header.flow is not None and self._flows is None:
            self._refuse(
                job,
                ConfigurationError(
                    "a step of a workflow, but this worker has no result backend, which "
                    "workflows need to go on: give its app the backend that the caller has"
                ),
            )
        elif self._revoked.concerns(header):
            self._verdicts.revoked(job)
            self._settlements.add(job)
        elif header.expires is not None and header.expires <= now:
            self._verdicts.expired(job)
            self._settlements.add(job)
        elif header.slot is not None and self._is_repeated(job):
            pass
        elif delivery.lost and self._was_killed_for(header.id):
            self._verdicts.failed(
                job,
                TaskTimeout(
                    f"the task ran longer than its timeout of {job.limit or 0:g} s"
                    " and did not react: its process was killed"
                ),
            )
            self._settlements.add(job)
        elif delivery.lost >= self._max_deliveries:
            self._refuse(
                job,
                TaskPoisoned(
                    f"its worker died or lost its lease {delivery.lost} times while it ran"
                    f" (max_deliveries={self._max_deliveries})"
                ),
            )
        else:
            return True
        return False

    def _refuse(self, job: Job, error: Exception) -> None:
        self._verdicts.bury(job, error, str(error))
        self._settlements.add(job)

    def _is_repeated(self, job: Job) -> bool:
        """Whether another message of this id, for the same slot of a schedule, has ended.

        Then this one is done with. A requeued message has been delivered before: its first
        delivery is not the first.
        """
        delivery = job.delivery
        if delivery.deliveries > 1 or self._backend is None:
            return False
        try:
            found = self._backend.fetch([delivery.id]).get(delivery.id)
        except TransportError:
            self._settlements.give_back([job], ASK_AGAIN)
            return True
        if found is None or found.state not in FINAL_STATES:
            return False
        job.verdict = ACK
        self._settlements.add(job)
        return True

    def _was_killed_for(self, id: str) -> bool:
        return self._condemned is not None and self._condemned.take(id)
