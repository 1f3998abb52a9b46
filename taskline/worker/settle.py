"""What a process holds, and how each verdict is carried out.

An outcome is stored before its message is acknowledged, replaced or buried, in
the same step where transport and backend share their storage. What fails stays
and is tried again by the next `flush`. Owned by the I/O thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from taskline.backends.base import Backend
from taskline.errors import TransportError
from taskline.message import SUCCESS, Delivery, Header, Message, Outcome
from taskline.transports.base import Transport
from taskline.worker.execute import Job
from taskline.worker.flows import Flows
from taskline.worker.verdicts import ACK, BURY, RELEASE, REPLACE

log = logging.getLogger("taskline.worker")


class Settlements:
    """`held` has every delivery from its receipt until it is settled or lost."""

    def __init__(
        self,
        transport: Transport,
        backend: Backend | None,
        flows: Flows | None = None,
        tell: Callable[[Job], None] = lambda job: None,
        bury: Callable[[Job, BaseException, str], None] = lambda job, error, reason: None,
        reply: Callable[[Header, Outcome], Message | None] | None = None,
    ) -> None:
        """`tell` is called for jobs whose middleware no slot has told; `bury` ends a job
        for good, as `Runner.bury` does; `reply` is the codec's."""
        self._reply = reply
        self._bury_job = bury
        self._tell = tell
        self._transport = transport
        self._backend = backend
        self._flows = flows
        self.has_steps = False
        """Whether there were steps of workflows so far: most workers never see one."""
        self.shared = backend is not None and transport.shares(backend)
        """Whether transport and backend are one store."""
        self._copies = not transport.capabilities.idempotent
        self.held: dict[Delivery, Job] = {}
        self._claims: list[Job] = []
        """Jobs of unique calls that come to their end: then their keys are free."""
        self.counts = {ACK: 0, REPLACE: 0, BURY: 0}
        """How many messages have got each verdict."""
        self._pending: dict[str, list[Job]] = {ACK: [], REPLACE: [], BURY: [], RELEASE: []}

    def add(self, job: Job) -> None:
        """Carry out the job's verdict at the next flush."""
        if job.events is not None:
            self._tell(job)
        if job.early or job.delivery in self.held:
            self._pending[job.verdict].append(job)
            if job.header is not None and job.header.unique is not None:
                self._claims.append(job)
        else:
            log.warning(
                "task %s[%s] outcome dropped: its lease was lost and another run has replaced it",
                job.header.task if job.header else "?",
                job.delivery.id,
            )

    def give_back(self, jobs: Iterable[Job], delay: float = 0.0) -> None:
        """Release these unstarted jobs at the next flush, due again in `delay` seconds."""
        for job in jobs:
            job.verdict = RELEASE
            job.delay = delay
            self._pending[RELEASE].append(job)

    @property
    def has_releases(self) -> bool:
        """Whether jobs were given back that are not released yet."""
        return bool(self._pending[RELEASE])

    def flush(self) -> None:
        """Carry out the verdicts; raises `TransportError` with the rest still pending."""
        pending = self._pending
        if pending[RELEASE]:
            self._release()
        if pending[ACK]:
            self._ack()
        if pending[REPLACE]:
            self._replace()
        if pending[BURY]:
            self._bury()
        if self._claims:
            self._free()

    def _free(self) -> None:
        """Give back the keys of unique calls that have ended and are settled."""
        from taskline.worker.claims import free

        ended = [job for job in self._claims if job.delivery not in self.held]
        if self._backend is not None:
            free(self._backend.keys(), [job for job in ended if job.verdict in (ACK, BURY)])
        self._claims = [job for job in self._claims if job.delivery in self.held]

    def refuse(self, deliveries: Iterable[Delivery]) -> None:
        """Release deliveries that no job was made of yet, at the next flush."""
        jobs = [Job(delivery, None, b"", None) for delivery in deliveries]
        self.held.update((job.delivery, job) for job in jobs)
        self.give_back(jobs)

    def ack_early(self, jobs: list[Job]) -> list[Job]:
        """Acknowledge before the run; returns those that may run."""
        try:
            lost = set(self._transport.ack([job.delivery for job in jobs]))
        except TransportError:
            self.give_back(jobs)
            return []
        kept = []
        for job in jobs:
            del self.held[job.delivery]
            if job.delivery not in lost:
                job.early = True
                kept.append(job)
        return kept

    def renew(self, lease: float) -> None:
        """Extend all leases; jobs that are found lost are dropped."""
        if not self.held:
            return
        lost = self._transport.extend(list(self.held), lease)
        if not lost:
            return
        for delivery in lost:
            job = self.held.pop(delivery)
            job.lost = True
            if job.request is not None:
                job.request.cancelled = True
            log.warning("task %s lost its lease: another worker may run it now", delivery.id)
        for verdict, jobs in self._pending.items():
            self._pending[verdict] = [job for job in jobs if not job.lost]

    def _ack(self) -> None:
        self._emit(self._pending[ACK])
        jobs = self._pending[ACK]
        self._advance(jobs)
        self._answer(jobs)
        if self.shared:
            self._store([job for job in jobs if job.early])
            held = [job for job in jobs if not job.early]
            lost = self._transport.ack(
                [job.delivery for job in held],
                [job.outcome for job in held if job.outcome is not None and not job.stored],
            )
        else:
            self._store(jobs)
            lost = self._transport.ack([job.delivery for job in jobs if not job.early])
        self._settled(ACK, jobs, lost)

    def _replace(self) -> None:
        jobs = self._pending[REPLACE]
        self._store(jobs)
        early = [job for job in jobs if job.early and job.successor is not None]
        if early:
            self._transport.send([job.successor for job in early if job.successor is not None])
            for job in early:
                job.successor = None  # should what follows fail, it is not sent again
        pairs = [
            (job.delivery, job.successor)
            for job in jobs
            if not job.early and job.successor is not None
        ]
        self._settled(REPLACE, jobs, self._transport.replace(pairs))

    def _bury(self) -> None:
        jobs = self._pending[BURY]
        self._store(jobs)
        self._advance(jobs)
        self._answer(jobs)
        burials = [
            (job.delivery, job.letter) for job in jobs if not job.early and job.letter is not None
        ]
        self._settled(BURY, jobs, self._transport.bury(burials))

    def _release(self) -> None:
        early = [job for job in self._pending[RELEASE] if job.early]
        if early:
            self._pending[RELEASE] = [job for job in self._pending[RELEASE] if not job.early]
            self._send_back(early)
        by_delay: dict[float, list[Job]] = {}
        for job in self._pending[RELEASE]:
            by_delay.setdefault(job.delay, []).append(job)
        for delay, jobs in by_delay.items():
            self._transport.release([job.delivery for job in jobs], delay)
            for job in jobs:
                # Lost or not: it is not ours any more, which is what was wanted.
                self.held.pop(job.delivery, None)
        self._pending[RELEASE] = []

    def _send_back(self, jobs: list[Job]) -> None:
        """Send acknowledged jobs anew that were not begun. Once: a repetition might run twice."""
        messages = [
            Message(job.header, job.delivery.frame) for job in jobs if job.header is not None
        ]
        try:
            self._transport.send(messages)
        except TransportError as error:
            log.error('%d tasks with ack="early" may be lost: %s', len(messages), error)

    def _store(self, jobs: list[Job]) -> None:
        if self._backend is None:
            return
        fresh = [job for job in jobs if job.outcome is not None and not job.stored]
        again = [job for job in fresh if not job.started and self._may_have_run(job)]
        if again and self._stay(again):
            fresh = [job for job in fresh if not job.stored]
        if fresh:
            outcomes = [job.outcome for job in fresh if job.outcome is not None]
            refused = {id(outcome) for outcome in self._backend.store(outcomes)}
            for job in fresh:
                job.stored = True
                job.outranked = id(job.outcome) in refused

    def _may_have_run(self, job: Job) -> bool:
        """Whether this job, which ends without a run, may have a success stored already."""
        return job.verdict == ACK and (job.delivery.lost > 0 or self._copies)

    def _stay(self, jobs: list[Job]) -> bool:
        """Leave the successes of earlier runs as they are; whether there were any.

        Their workers died between storing them and the receipt, or they are of another copy of
        the message. A task that has ended well does not expire, and is not revoked.
        """
        assert self._backend is not None
        found = self._backend.fetch([job.delivery.id for job in jobs])
        for job in jobs:
            stored = found.get(job.delivery.id)
            if stored is not None and job.outcome is not None:
                job.stored = stored.state == SUCCESS and stored.sent == job.outcome.sent
        return any(job.stored for job in jobs)

    def _emit(self, jobs: list[Job]) -> None:
        """Send what tasks have emitted, whose outcomes are stored first."""
        emitting = [job for job in jobs if job.emits]
        if not emitting:
            return
        self._store(emitting)
        # Whom a later run has outranked leaves it to that run.
        emitting = [job for job in emitting if not job.outranked]
        try:
            self._transport.send([each for job in emitting for each in job.emits or ()])
        except TransportError as error:
            if error.retryable:
                raise
            for job in emitting:
                self._emit_alone(job)
        for job in jobs:
            job.emits = None

    def _emit_alone(self, job: Job) -> None:
        """Send what one task has emitted; where no repetition would help, that is its failure."""
        try:
            self._transport.send(job.emits or [])
        except TransportError as error:
            if error.retryable:
                raise
            self._pending[ACK].remove(job)
            job.stored = False
            self._bury_job(job, error, f"what it emits cannot be sent: {error}")
            self._pending[BURY].append(job)

    def _answer(self, jobs: list[Job]) -> None:
        """Tell who waits at a queue of its own; twice where what follows fails and is repeated."""
        if self._reply is None:
            return
        self._store(jobs)
        replies = [
            reply
            for job in jobs
            if job.header is not None
            and job.outcome is not None
            and not job.outranked
            and (reply := self._reply(job.header, job.outcome)) is not None
        ]
        try:
            self._transport.send(replies)
        except TransportError as error:
            if error.retryable:
                raise
            log.error("%d replies cannot be sent: %s", len(replies), error)

    def _advance(self, jobs: list[Job]) -> None:
        """Start what follows from the ends of steps of workflows, which are stored first."""
        if not self.has_steps:
            return
        steps = [job for job in jobs if job.step is not None and not job.step.advanced]
        if steps and self._flows is not None:
            self._store(steps)
            self._flows.advance(steps)
            for job in steps:
                if job.step is not None:
                    job.step.advanced = True

    def _settled(self, verdict: str, jobs: list[Job], lost: list[Delivery]) -> None:
        pop = self.held.pop
        for job in jobs:
            pop(job.delivery, None)
        self._pending[verdict] = []
        self.counts[verdict] += len(jobs) - len(lost)
        if lost:
            log.warning(
                "%d receipts were refused: the lease was lost, and the tasks run again (first: %s)",
                len(lost),
                lost[0].id,
            )
