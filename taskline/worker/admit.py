"""From deliveries to jobs: what may run, and a verdict at once for what may not.

Owned by the I/O thread.
"""

from __future__ import annotations

from typing import NamedTuple

from taskline.app import Taskline
from taskline.backends.base import Backend
from taskline.errors import (
    MessageRefused,
    SerializationError,
    TaskPoisoned,
    TaskTimeout,
    TransportError,
    UnknownTask,
)
from taskline.message import FINAL_STATES, Delivery
from taskline.worker.execute import ACK, Job, Runner
from taskline.worker.ledger import Condemned
from taskline.worker.settle import Settlements

ASK_AGAIN = 1.0
"""Seconds for which a scheduled message is handed back when the backend does not answer."""


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
        runner: Runner,
        settlements: Settlements,
        backend: Backend | None,
        revoked: set[str],
        condemned: Condemned | None,
        max_deliveries: int,
    ) -> None:
        self._app = app
        self._runner = runner
        self._settlements = settlements
        self._backend = backend
        self._revoked = revoked
        self._condemned = condemned
        self._max_deliveries = max_deliveries

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
            job = held[delivery] = Job(delivery, header, body, task)
            if task is None:
                self._refuse(
                    job,
                    UnknownTask(
                        f"no task {header.task!r} is registered in this worker:"
                        " import its module (include=…) or send it to another queue"
                    ),
                )
            elif header.id in revoked:
                self._runner.revoked(job)
                self._settlements.add(job)
            elif header.expires is not None and header.expires <= now:
                self._runner.expired(job)
                self._settlements.add(job)
            elif header.slot is not None and self._is_repeated(job):
                pass
            elif delivery.lost and self._was_killed_for(header.id):
                self._runner.failed(
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
            elif task.ack == "early":
                early.append(job)
            elif delivery.lost:
                suspects.append(job)
            else:
                (coroutines if task.is_async else plain).append(job)
        if early:
            for job in self._settlements.ack_early(early):
                assert job.task is not None
                (coroutines if job.task.is_async else plain).append(job)
        return Admitted(plain, coroutines, suspects)

    def _refuse(self, job: Job, error: Exception) -> None:
        self._runner.bury(job, error, str(error))
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
