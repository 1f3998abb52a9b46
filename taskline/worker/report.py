"""What a worker process can tell of itself. Owned by the I/O thread."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Iterable

import taskline
from taskline.app import Taskline
from taskline.control.records import ActiveTask, Answer, Order, ProcessInfo, ReservedTask
from taskline.errors import TasklineError
from taskline.worker.execute import Job
from taskline.worker.gather import expanded
from taskline.worker.lifetime import PROC, resident
from taskline.worker.options import WorkerOptions
from taskline.worker.prefetch import Prefetch
from taskline.worker.settle import Settlements
from taskline.worker.slots import AsyncSlots, ThreadSlot
from taskline.worker.verdicts import ACK, BURY, REPLACE
from taskline.worker.watch import Watch

TOLD_AT_MOST = 1000
"""How many tasks one answer has."""
ARGUMENTS_SHOWN = 200
"""Characters of a task's arguments, at most."""


class Reporter:
    """Looks at the parts of one process when it is asked."""

    def __init__(
        self,
        app: Taskline,
        options: WorkerOptions,
        consumer: str,
        queues: list[str],
        settlements: Settlements,
        watch: Watch,
        prefetch: Prefetch,
        slots: list[ThreadSlot],
        async_slots: AsyncSlots | None,
    ) -> None:
        self._app = app
        self._settlements = settlements
        self._watch = watch
        self._prefetch = prefetch
        self._slots = slots
        self._async_slots = async_slots
        self._began = self._beaten = app.clock.monotonic()
        self._ended = 0
        self._info = ProcessInfo(
            id=consumer,
            worker=options.name or consumer,
            instance=options.instance or consumer,
            number=options.number,
            host=socket.gethostname(),
            pid=os.getpid(),
            supervisor=options.supervisor or None,
            queues=queues,
            version=app.settings.version,
            taskline=taskline.__version__,
            python=platform.python_version(),
            threads=len(slots),
            async_slots=options.async_slots if async_slots is not None else 0,
        )

    @property
    def id(self) -> str:
        """Of the process."""
        return self._info.id

    @property
    def instance(self) -> str:
        """Of its worker: tells it from another that has had its name."""
        return self._info.instance

    def info(self, stopping: bool) -> ProcessInfo:
        """How the process is now. For the beat: the rate is that since the last call."""
        info, now = self._info, self._app.clock.monotonic()
        counts = self._settlements.counts
        ended, since = sum(counts.values()), now - self._beaten
        info.rate = (ended - self._ended) / since if since > 0 else 0.0
        self._ended, self._beaten = ended, now
        info.stopping = stopping
        info.up = now - self._began
        info.tasks = len(self._app.tasks)
        info.active = sum(1 for _ in self._active())
        info.reserved = sum(1 for _ in self._reserved())
        info.done, info.failed, info.retried = counts[ACK], counts[BURY], counts[REPLACE]
        info.memory = resident(info.pid) if PROC else 0
        info.prefetch = self._prefetch.target()
        if self._async_slots is not None:
            info.lag = self._async_slots.lag(now)
        return info

    def answer(self, order: Order) -> Answer:
        """What was asked for."""
        if order.ask == "registered":
            return Answer(registered=sorted(self._app.tasks))
        jobs = list(self._active() if order.ask == "active" else self._reserved())
        shown, more = jobs[:TOLD_AT_MOST], max(0, len(jobs) - TOLD_AT_MOST)
        if order.ask == "active":
            return Answer(active=[self._running(job, order.arguments) for job in shown], more=more)
        return Answer(reserved=[self._waiting(job, order.arguments) for job in shown], more=more)

    def _active(self) -> Iterable[Job]:
        return (job for job in expanded(self._watch.running()) if job.started)

    def _reserved(self) -> Iterable[Job]:
        held = self._settlements.held.values()
        return (job for job in held if job.header and not job.started and not job.verdict)

    def _running(self, job: Job, arguments: bool) -> ActiveTask:
        header, now = job.header, self._app.now()
        assert header is not None
        return ActiveTask(
            id=header.id,
            task=header.task,
            queue=header.queue,
            since=job.started,
            seconds=max(0.0, now - job.started),
            attempt=header.attempt,
            slot=self._slot_of(job),
            worker=self._info.worker,
            pid=self._info.pid,
            arguments=self._arguments(job) if arguments else None,
        )

    def _waiting(self, job: Job, arguments: bool) -> ReservedTask:
        header = job.header
        assert header is not None
        return ReservedTask(
            id=header.id,
            task=header.task,
            queue=header.queue,
            attempt=header.attempt,
            priority=header.priority,
            worker=self._info.worker,
            pid=self._info.pid,
            arguments=self._arguments(job) if arguments else None,
        )

    def _slot_of(self, job: Job) -> int:
        for slot in self._slots:
            current = slot.current
            if current is not None and (current is job or job in current.members):
                return slot.index
        return self._async_slots.places.get(job, 0) if self._async_slots is not None else 0

    def _arguments(self, job: Job) -> str:
        """The arguments as they travelled, but for what is secret, as text."""
        if job.header is None or job.task is None:
            return ""
        try:
            args, kwargs = self._app.codec.arguments(job.header, job.body)
            args, kwargs = job.task.signature.redacted(args, kwargs)
        except TasklineError as error:
            return f"unreadable: {error}"
        parts = [repr(each) for each in args]
        parts += [f"{name}={value!r}" for name, value in kwargs.items()]
        text = ", ".join(parts)
        return text if len(text) <= ARGUMENTS_SHOWN else text[: ARGUMENTS_SHOWN - 1] + "…"
