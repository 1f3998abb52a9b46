"""The places of semaphores that the jobs of a process hold. Owned by the I/O thread."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

from taskline.backends.keys import KeyStore
from taskline.backends.permits import Claim, Holder
from taskline.limiting import Semaphore
from taskline.worker.execute import Job
from taskline.worker.limits.permits import Line, Places
from taskline.worker.verdicts import RELEASE

log = logging.getLogger("taskline.worker")


class Holdings:
    """Takes places, renews them with the leases of messages, and frees them in batches."""

    def __init__(self, keys: KeyStore, consumer: str, lease: float) -> None:
        self._keys = keys
        self._consumer = consumer
        self._lease = lease
        self._held: dict[Job, Line] = {}
        self.freed: list[Claim] = []
        """By which places are given up at the next call."""

    @property
    def lines(self) -> Collection[Line]:
        """Those whose jobs hold places."""
        return self._held.values()

    def want(self, asked: Sequence[tuple[list[Job], Places]]) -> list[list[str]]:
        """Ask for places for these jobs; returns for each the ids of those that have one."""
        claims = [
            Claim(each.name, each.limit, tuple(map(self._holder, jobs))) for jobs, each in asked
        ]
        freed = len(self.freed)
        answers = self._keys.hold([*self.freed, *claims], self._lease)
        self.freed = []
        return answers[freed:]

    def took(self, jobs: list[Job], line: Line) -> None:
        """These jobs have their places and begin."""
        self._held.update(dict.fromkeys(jobs, line))
        for each in line.places:
            each.held.update(jobs)

    def free(self, job: Job, line: Line) -> None:
        """Give up the places of a job."""
        for each in line.places:
            self.free_one(job, each)

    def free_one(self, job: Job, places: Places) -> None:
        """Give up one of them."""
        places.held.discard(job)
        places.ready_at = 0.0
        self.freed.append(Claim(places.name, places.limit, freed=(self._holder(job),)))

    def leave(self, job: Job, semaphores: Sequence[Semaphore]) -> None:
        """Give up what another run of this job held, which was cut off."""
        holder = self._holder(job)
        for each in semaphores:
            # It takes the place over first: only who holds it can give it up.
            self.freed.append(Claim(each.name, each.limit, wanted=(holder,)))
            self.freed.append(Claim(each.name, each.limit, freed=(holder,)))

    def ended(self, job: Job) -> None:
        """The job runs no more."""
        line = self._held.pop(job, None)
        if line is not None:
            self.free(job, line)
            if job.finished > job.started > 0:
                line.mean += 0.2 * (job.finished - job.started - line.mean)

    def drop_settled(self) -> None:
        """Free the places of jobs that were handed back, or lost, before they began."""
        for job in list(self._held):
            if job.verdict == RELEASE or (job.lost and not job.started):
                self.ended(job)

    def give_up(self) -> None:
        """Free what is to be freed now."""
        if self.freed:
            self._keys.hold(self.freed, self._lease)
            self.freed = []

    def renew(self) -> None:
        """Hold on to all places for another lease."""
        self.drop_settled()
        wanted: dict[str, list[Job]] = {}
        limits: dict[str, int] = {}
        for job, line in self._held.items():
            for each in line.places:
                wanted.setdefault(each.name, []).append(job)
                limits[each.name] = each.limit
        self._renew(wanted, limits, again=False)
        # The store may have lost some. While the message is ours, so is the place.
        self._renew(wanted, limits, again=True)
        for name, some in wanted.items():
            for job in some:
                if not job.lost:
                    log.warning(
                        "task %s runs without a place of %s: its lease ended, and others have all",
                        job.delivery.id,
                        name,
                    )

    def _renew(self, wanted: dict[str, list[Job]], limits: dict[str, int], *, again: bool) -> None:
        """Renew the places `wanted`, or take them `again`; leaves in it those that have none."""
        claims = []
        for name, jobs in wanted.items():
            holders = tuple(self._holder(job) for job in jobs if not (again and job.lost))
            if holders:
                claim = Claim(name, limits[name])
                claims.append(
                    claim._replace(wanted=holders) if again else claim._replace(renewed=holders)
                )
        if claims:
            answers = self._keys.hold(claims, self._lease)
            for claim, ids in zip(claims, answers, strict=True):
                jobs = wanted[claim.name]
                wanted[claim.name] = [job for job in jobs if job.delivery.id not in ids]

    def close(self) -> None:
        """Give up all places."""
        for job in list(self._held):
            self.ended(job)
        self.give_up()

    def _holder(self, job: Job) -> Holder:
        return Holder(job.delivery.id, f"{job.delivery.deliveries} {self._consumer}")
