"""Batch tasks: messages gather here until they are run together. Owned by the I/O thread."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from taskline import context
from taskline.app import Taskline
from taskline.batching import item_of, results_of
from taskline.errors import TasklineError
from taskline.task import Task
from taskline.worker.execute import Gate, Job, Runner
from taskline.worker.ledger import Ledger
from taskline.worker.prefetch import PATIENCE


class BatchJob(Job):
    """One run of many messages: a slot runs it as one job, each member gets its own verdict."""

    places: list[int] = []
    """Where the ledger has the members but the first, which is in the slot's own place."""
    _ledger: Ledger | None = None
    _items: list[Any] = []
    _ran: list[Job] = []

    @classmethod
    def of(cls, members: list[Job], ledger: Ledger | None, places: list[int]) -> BatchJob:
        """The job that runs these."""
        first = members[0]
        assert first.header is not None
        # What one message says of times does not hold for the others.
        header = msgspec.structs.replace(
            first.header, expires=None, timeout=None, soft_timeout=None, retry=None
        )
        batch = cls(first.delivery, header, b"", first.task, members, places=places)
        batch._ledger = ledger
        return batch

    def begin(self, now: float, monotonic: Callable[[], float]) -> float:
        first_limit = super().begin(now, monotonic)
        if self._ledger is not None:
            for place, member in zip(self.places, self.members[1:], strict=False):
                self._ledger.start(place, member.delivery.id, now)
        return first_limit

    def abandon(self) -> Job:
        self.abandoned = True
        twin = BatchJob.of([each.abandon() for each in self.members], self._ledger, self.places)
        twin.started = self.started
        twin.interrupted = self.interrupted
        self.places = []
        return twin

    def run_members(self, runner: Runner, gate: Gate | None) -> None:
        batch, task = self._prepare(runner), self.task
        assert task is not None
        if batch is not None:
            token = context.activate(batch)
            try:
                try:
                    if gate is not None:
                        gate.is_open = True
                        if self.interrupted is not None:
                            raise self.interrupted
                    values = task.call_batch(self._items)
                finally:
                    if gate is not None:
                        gate.close()
                    context.deactivate(token)
            except BaseException as error:  # as that of any task
                if gate is not None:
                    gate.close()
                runner.verdicts.failed(self, error)
            else:
                self._share(runner, values)
        for member in self.members:
            if member.events:
                runner.verdicts.tell(member)

    async def run_members_async(self, runner: Runner) -> None:
        from asyncio import CancelledError

        from taskline.worker.steered import steered, to_its_end

        task = self.task
        assert task is not None
        try:
            batch = await to_its_end(self._prepare, runner)
        except CancelledError as error:
            batch = None
            if not self.abandoned:
                runner.verdicts.failed(self, self.cancelled_by(error))
        if batch is not None:
            token = context.activate(batch)
            try:
                try:
                    running = task.call_batch(self._items)
                    if self.soft_deadline or self.interrupted is not None:
                        running = steered(running, self)
                    values = await running
                finally:
                    context.deactivate(token)
            except CancelledError as error:
                if not self.abandoned:
                    runner.verdicts.failed(self, self.cancelled_by(error))
            except BaseException as error:
                runner.verdicts.failed(self, error)
            else:
                self._share(runner, values)
        for member in self.members:
            if member.events:
                await runner.verdicts.atell(member)

    def _prepare(self, runner: Runner) -> context.Request | None:
        """Know the items of the members that may run, and return the request of them all.

        The others have a verdict then. None when there are no others.
        """
        requests: list[context.Request] = []
        for member in self.members:
            header, task = member.header, member.task
            assert header is not None
            assert task is not None
            if member.lost or not runner.may_begin(member, self.started):
                continue
            member.started = self.started
            try:
                item = item_of(task, *runner.arguments(member))
                request = runner.request(member, header)
                if task.hooks is not None:
                    task.hooks.call("before_run", request)
            except Exception as error:
                runner.verdicts.failed(member, error)
                continue
            if self.deadline:
                request.deadline = self.started + (self.limit or 0.0)
            requests.append(request)
            self._items.append(item)
            self._ran.append(member)
        if not requests:
            return None
        first = requests[0]
        return context.BatchRequest(
            first.header, first.deliveries, first.receipt, first.deadline, requests
        )

    def _share(self, runner: Runner, values: Any) -> None:
        """Give each member that ran its result."""
        assert self.task is not None
        count = len(self._ran)
        try:
            values = results_of(self.task.name, values, count)
        except TasklineError as error:
            runner.verdicts.failed(self, error)
            return
        for member, value in zip(self._ran, values, strict=True):
            if isinstance(value, Exception):
                runner.verdicts.failed(member, value)
            else:
                runner.verdicts.succeeded(member, value)
        self.finished = runner.now()


def expanded(jobs: Iterable[Job]) -> list[Job]:
    """These jobs, each batch as its members."""
    return [each for job in jobs for each in (job.members or (job,))]


def batch_places(app: Taskline, threads: int) -> int:
    """How many places of the ledger batches of this app need, besides those of the slots."""
    sizes = {False: 0, True: 0}
    for task in app.tasks.values():
        if task.batch:
            sizes[task.is_async] = max(sizes[task.is_async], task.batch)
    return threads * sizes[False] + ASYNC_BATCHES * sizes[True]


ASYNC_BATCHES = 4
"""Batches of coroutines of which the ledger has all members, in one process."""


class Gather:
    """The messages of batch tasks that wait for more of their kind, by task."""

    def __init__(self, ledger: Ledger | None, places: Iterable[int]) -> None:
        self._ledger = ledger
        self._free = list(places)
        self._waiting: dict[Task[..., Any], tuple[float, list[Job]]] = {}
        """Each with when the first of them came, by the monotonic clock."""

    def take(self, jobs: list[Job], now: float) -> list[Job]:
        """Keep those of batch tasks; returns the others."""
        others = []
        for job in jobs:
            task = job.task
            if task is None or not task.batch:
                others.append(job)
            else:
                self._waiting.setdefault(task, (now, []))[1].append(job)
        return others

    def room(self, tasks: Iterable[Task[..., Any]]) -> int:
        """How many messages the fullest of these tasks' batches could still take."""
        most = 0
        for task in tasks:
            if task.batch:
                _, jobs = self._waiting.get(task, (0.0, ()))
                most = max(most, task.batch - len(jobs))
        return most

    def begin(self, now: float, idle: int, idle_async: int) -> tuple[list[Job], list[Job]]:
        """What is to be run now, in threads and as coroutines, as far as slots are idle.

        A batch begins when it is full or its first message has waited for `batch_wait`.
        """
        plain: list[Job] = []
        coroutines: list[Job] = []
        for task, (since, jobs) in list(self._waiting.items()):
            jobs = [job for job in jobs if not job.lost]
            begun, left = (coroutines, idle_async) if task.is_async else (plain, idle)
            while jobs and len(begun) < left:
                if len(jobs) < task.batch and now < since + task.batch_wait:
                    break
                some, jobs = jobs[: task.batch], jobs[task.batch :]
                places, self._free = self._free[: len(some) - 1], self._free[len(some) - 1 :]
                begun.append(BatchJob.of(some, self._ledger, places))
            if jobs:
                self._waiting[task] = (since, jobs)
            else:
                del self._waiting[task]
        return plain, coroutines

    def next_due(self) -> float:
        """When the next batch begins though it is not full, by the monotonic clock."""
        return min(
            (since + task.batch_wait for task, (since, _) in self._waiting.items()),
            default=math.inf,
        )

    def stuck(self, now: float) -> list[Job]:
        """Those that no slot here is free for, to be handed back for idle ones elsewhere."""
        found: list[Job] = []
        for task, (since, jobs) in list(self._waiting.items()):
            if now > since + task.batch_wait + PATIENCE:
                found += jobs
                del self._waiting[task]
        return found

    def take_back(self) -> list[Job]:
        """All of them."""
        jobs = [job for _, some in self._waiting.values() for job in some]
        self._waiting.clear()
        return jobs

    def ended(self, job: Job) -> None:
        """A batch has ended: its places are free."""
        if isinstance(job, BatchJob):
            for place in job.places:
                if self._ledger is not None:
                    self._ledger.clear(place)
            self._free += job.places
            job.places = []
