"""What a worker does for the steps of workflows. Owned by the I/O thread.

A step whose outcome is final is not run again, however often its message comes: the worker
only makes sure that what follows from it has been started, and acknowledges.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from taskline.errors import SerializationError, TransportError
from taskline.failures import encode_error
from taskline.message import FAILURE, FINAL_STATES, SUCCESS, Outcome
from taskline.worker.execute import Job, StepState
from taskline.worker.verdicts import ACK, BURY

if TYPE_CHECKING:
    from taskline.app import Taskline
    from taskline.backends.base import Backend
    from taskline.transports.base import Transport
    from taskline.workflows.advance import Ended, Engine

log = logging.getLogger("taskline.worker")


class Flows:
    """Looks at steps before they run, and starts what follows when they have ended."""

    def __init__(self, app: Taskline, transport: Transport, backend: Backend) -> None:
        self._app = app
        self._backend = backend
        self._transport = transport
        self._made: Engine | None = None
        self._claims = not transport.capabilities.idempotent

    @property
    def _engine(self) -> Engine:
        """Made, and its room imported, when the first step of a workflow has ended."""
        if self._made is None:
            from taskline.workflows.advance import Engine

            self._made = Engine(self._app, self._backend, self._transport.send)
        return self._made

    def ended(self, jobs: Collection[Job]) -> set[Job]:
        """Which of these steps have ended already, or are another message's to run.

        They get a verdict. The others are given the results that they take and that are at hand.
        """
        wanted: set[str] = set()
        for job in jobs:
            assert job.header is not None
            assert job.header.flow is not None
            wanted.add(job.delivery.id)
            wanted.update(ref for _, ref in job.header.flow.take if isinstance(ref, str))
        found = self._backend.fetch(wanted)
        ended = set()
        for job in jobs:
            state = job.step = StepState(found)
            outcome = found.get(job.delivery.id)
            if outcome is not None and _is_end(outcome, job):
                state.ended = outcome
            elif not self._claims or self._claim(job):
                continue
            else:
                state.advanced = True  # by the other copy, when it ends
            job.verdict = ACK
            ended.add(job)
        return ended

    def _claim(self, job: Job) -> bool:
        """Whether this is the copy that runs, on a transport that may store several.

        Copies differ in when they were sent; a retry and a redelivery do not.
        """
        header = job.header
        assert header is not None
        keys, key = self._backend.keys(), f"taskline:step:{header.id}"
        mine = repr(header.sent).encode()
        return keys.set(key, mine, header.result_ttl, if_absent=True) or keys.get(key) == mine

    def advance(self, jobs: Sequence[Job]) -> None:
        """Start what follows from the ends of these steps; raises `TransportError`."""
        try:
            self._engine.advance([_end_of(job) for job in jobs if not job.outranked])
        except TransportError:
            raise
        except Exception as error:
            if len(jobs) > 1:
                for job in jobs:
                    self.advance([job])
                return
            self._break(jobs[0], error)

    def _break(self, job: Job, error: Exception) -> None:
        """What follows cannot be started, now or ever: that must end the workflow, not us."""
        header = job.header
        assert header is not None
        assert header.flow is not None
        expected = isinstance(error, SerializationError)
        log.error(
            "workflow %s cannot go on after %s: %s",
            header.flow.id,
            header.id,
            error if expected else repr(error),
            exc_info=None if expected else error,
        )
        self._engine.fail(header.flow.id, encode_error(error))


def _is_end(outcome: Outcome, job: Job) -> bool:
    """Whether a stored outcome means that the step is not to be run (again).

    A failure of the same message at an earlier handing-over does not: it was
    requeued, or its worker died before it could bury it.
    """
    if outcome.state not in FINAL_STATES:
        return False
    assert job.header is not None
    again = outcome.sent == job.header.sent and job.delivery.deliveries > outcome.deliveries
    return not (outcome.state == FAILURE and again)


def _end_of(job: Job) -> Ended:
    from taskline.workflows.advance import Ended

    header = job.header
    assert header is not None
    assert header.flow is not None
    outcome = (job.step and job.step.ended) or job.outcome
    if outcome is not None:
        state = outcome.state
    else:
        state = FAILURE if job.verdict == BURY else SUCCESS
    return Ended(header.flow.id, header.flow.at, header.flow.member, state)
