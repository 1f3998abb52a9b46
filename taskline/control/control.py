"""`app.control`: see the workers of an app, and tell them what to do."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, TypeVar

import msgspec

from taskline import limits
from taskline.control.presence import Presence
from taskline.control.records import (
    ActiveTask,
    Answer,
    Order,
    ProcessInfo,
    Question,
    ReservedTask,
    WorkerInfo,
)
from taskline.control.state import State, States
from taskline.errors import ConfigurationError

if TYPE_CHECKING:
    from taskline.app import Taskline

ANSWER_WITHIN = 5.0
"""Seconds that workers have to answer, unless they are given others."""
LOOK_EVERY = 0.1
"""Seconds between two looks for answers."""
MOST_PROCESSES = 1000

T = TypeVar("T")


class Told(msgspec.Struct):
    """What came of an order or a question, by the processes that it was for."""

    answers: dict[str, Answer]
    """By the ids of those that answered."""
    silent: list[ProcessInfo]
    """Those that did not in time: stopped, cut off, or dead since some seconds. They will not do it
    later. Who has left in the meantime is not among them; nor, of an order, one whose worker has
    heard it by another process."""
    processes: list[ProcessInfo]
    """Whom it was for."""

    def refusals(self) -> dict[str, str]:
        """Why workers do not do it, by the name of the worker."""
        return {
            each.worker: self.answers[each.id].error
            for each in self.processes
            if each.id in self.answers and self.answers[each.id].error
        }


class Control:
    """Looks at the workers of one app, and gives them orders. Also `app.control`.

    All of it goes through the result backend, on any broker. Without one that keeps keys,
    every method raises `ConfigurationError`. `workers` are names; None means all.
    """

    def __init__(self, app: Taskline) -> None:
        self._app = app
        self._presence = Presence(app)
        self._states = States(app)

    # Seeing

    def processes(self, workers: Collection[str] | None = None) -> list[ProcessInfo]:
        """The worker processes, as each was at its last beat, by worker and number.

        One that was killed is still there for up to 15 seconds: see its `beat`. Raises
        `ConfigurationError` for a name that no worker has.
        """
        found = self._presence.processes()
        found.sort(key=lambda each: (each.worker, each.instance, each.number, each.up))
        if workers is None:
            return found
        names = {each.worker for each in found}
        for name in workers:
            if name not in names:
                raise ConfigurationError(_no_such_worker(name, names))
        return [each for each in found if each.worker in workers]

    def workers(self, workers: Collection[str] | None = None) -> list[WorkerInfo]:
        """The workers, by name: what `processes` gives, put together."""
        groups: dict[str, list[ProcessInfo]] = {}
        for each in self.processes(workers):
            groups.setdefault(each.instance, []).append(each)
        return [_together(group) for group in groups.values()]

    def active(
        self,
        workers: Collection[str] | None = None,
        *,
        arguments: bool = False,
        timeout: float = ANSWER_WITHIN,
    ) -> tuple[list[ActiveTask], Told]:
        """The tasks that run now, the longest first; with `arguments` as text, but for secrets."""
        told = self.ask("active", workers, arguments=arguments, timeout=timeout)
        tasks = [task for answer in told.answers.values() for task in answer.active]
        return sorted(tasks, key=lambda task: -task.seconds), told

    def reserved(
        self,
        workers: Collection[str] | None = None,
        *,
        arguments: bool = False,
        timeout: float = ANSWER_WITHIN,
    ) -> tuple[list[ReservedTask], Told]:
        """The messages that processes hold and have not begun."""
        told = self.ask("reserved", workers, arguments=arguments, timeout=timeout)
        return [task for answer in told.answers.values() for task in answer.reserved], told

    def registered(
        self, workers: Collection[str] | None = None, *, timeout: float = ANSWER_WITHIN
    ) -> tuple[dict[str, list[str]], Told]:
        """The names of all tasks that any worker knows, each with the processes that know it."""
        told = self.ask("registered", workers, timeout=timeout)
        found: dict[str, list[str]] = {}
        for process, answer in told.answers.items():
            for task in answer.registered:
                found.setdefault(task, []).append(process)
        return dict(sorted(found.items())), told

    def ask(
        self,
        question: Question,
        workers: Collection[str] | None = None,
        *,
        arguments: bool = False,
        timeout: float = ANSWER_WITHIN,
    ) -> Told:
        """Ask every process, and wait until all have answered, `timeout` seconds at most."""
        processes = self.processes(workers)
        return self._order(processes, timeout, what="tell", ask=question, arguments=arguments)

    # Telling

    def shutdown(
        self,
        workers: Collection[str] | None = None,
        *,
        now: bool = False,
        timeout: float = ANSWER_WITHIN,
    ) -> Told:
        """Stop workers, as SIGTERM does; with `now` as a second one: what runs is handed back."""
        return self._order(self.processes(workers), timeout, what="shutdown", now=now)

    def restart(
        self,
        workers: Collection[str] | None = None,
        *,
        grace: float | None = None,
        timeout: float = ANSWER_WITHIN,
    ) -> Told:
        """Replace the processes of workers, one after the other.

        What they run has `grace` seconds to end, by default the worker's, and is then
        handed back. A forked process has the code that its supervisor has loaded.
        """
        if grace is not None and not 0 <= grace < float("inf"):
            raise ConfigurationError(f"grace={grace!r}: must be seconds, 0 or more")
        return self._order(self.processes(workers), timeout, what="restart", grace=grace)

    def scale(
        self,
        processes: int,
        workers: Collection[str] | None = None,
        *,
        timeout: float = ANSWER_WITHIN,
    ) -> Told:
        """Have so many processes in each of these workers, from 1 on.

        Those that are too many end after what they run.
        """
        if not isinstance(processes, int) or not 1 <= processes <= MOST_PROCESSES:
            raise ConfigurationError(
                f"processes={processes!r}: must be a whole number from 1 to {MOST_PROCESSES}; "
                "pause the queues of a worker that is to do nothing, or shut it down"
            )
        return self._order(self.processes(workers), timeout, what="scale", count=processes)

    def rate(self, task: str, rate: str | None) -> None:
        """Let this rate, such as `10/s`, hold in place of what the code says; None ends that.

        `none` lifts it. Raises `ConfigurationError` for what is no rate.
        """
        if rate is not None:
            limits.rates("rate", rate)

        def alter(state: State) -> State:
            rates = {name: old for name, old in state.rates.items() if name != task}
            if rate is not None:
                rates[task] = rate
            return msgspec.structs.replace(state, rates=rates)

        self._states.change(alter)

    def state(self) -> State:
        """What all workers heed: paused queues, and changed rates."""
        return self._states.get()

    def _order(self, processes: list[ProcessInfo], timeout: float, **order: object) -> Told:
        """Give an order to the workers of these processes; returns what they say to it."""
        if not processes:
            return Told({}, [], [])
        order_id = secrets.token_hex(8)
        instances = sorted({each.instance for each in processes})
        self._states.order(
            msgspec.convert(
                {"id": order_id, "workers": instances, "issued": self._app.now(), **order}, Order
            )
        )
        try:
            return self._answers(order_id, processes, timeout, of_each=order["what"] == "tell")
        finally:
            # Who has not heard it by now shall not obey it who knows when.
            self._states.withdraw(order_id)

    def _answers(
        self, order_id: str, processes: list[ProcessInfo], timeout: float, *, of_each: bool
    ) -> Told:
        """Wait for the answers `of_each` process, or else of one process of each worker."""
        answers: dict[str, Answer] = {}
        clock, there = self._app.clock, self._presence
        by = clock.monotonic() + timeout
        waiting = processes
        while waiting and clock.monotonic() < by:
            clock.sleep(LOOK_EVERY)
            for each in waiting:
                answer = there.answer_of(order_id, each.id)
                if answer is not None:
                    answers[each.id] = answer
            heard = {each.instance for each in processes if each.id in answers}
            waiting = [
                each
                for each in processes
                if each.id not in answers and (of_each or each.instance not in heard)
            ]
        silent = [each for each in waiting if there.has(each.id)]
        return Told(answers, silent, processes)


def _together(processes: Sequence[ProcessInfo]) -> WorkerInfo:
    first = processes[0]
    return WorkerInfo(
        name=first.worker,
        host=first.host,
        pid=first.supervisor or first.pid,
        instance=first.instance,
        queues=first.queues,
        versions=sorted({each.version for each in processes} - {""}),
        taskline=first.taskline,
        python=first.python,
        slots=sum(each.threads for each in processes),
        active=sum(each.active for each in processes),
        reserved=sum(each.reserved for each in processes),
        done=sum(each.done for each in processes),
        failed=sum(each.failed for each in processes),
        retried=sum(each.retried for each in processes),
        rate=sum(each.rate for each in processes),
        memory=sum(each.memory for each in processes),
        up=max(each.up for each in processes),
        beat=max(each.beat for each in processes),
        stopping=all(each.stopping for each in processes),
        processes=list(processes),
    )


def _no_such_worker(name: str, names: Collection[str]) -> str:
    from taskline.config import nearest

    if not names:
        return f"no worker {name!r}: none of this app gives a sign of life"
    return f"no worker {name!r}{nearest(name, tuple(sorted(names)))}"
