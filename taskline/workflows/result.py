"""What a caller holds of a workflow: its end, its steps, and how far it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeVar

from taskline.backends.base import Revocation
from taskline.errors import NoResult, ResultTimeout, TasklineError
from taskline.message import (
    FAILURE,
    FINAL_STATES,
    PENDING,
    REVOKED,
    STARTED,
    SUCCESS,
    OutcomeHeader,
)
from taskline.result import REVOCATION_TTL, AsyncResult
from taskline.workflows.inputs import CHUNK, value_of
from taskline.workflows.plan import (
    CONTINUE,
    Call,
    Flow,
    Group,
    Plan,
    end_of,
    failures_key,
    plan_id,
    read,
    step_id,
    undo_id,
)

if TYPE_CHECKING:
    from taskline.app import Taskline
    from taskline.message import Outcome

R = TypeVar("R", covariant=True)


class Progress(NamedTuple):
    """How far a workflow is: `done` of `total` tasks have ended well, `failed` have not.

    A workflow within another counts as one task. `total` is None while the size of
    a group is not known yet.
    """

    done: int
    total: int | None
    failed: int


class FlowResult(AsyncResult[R]):
    """The result of a workflow: the value of its last step, a list where that is a group.

    `FlowResult(app, id)` is the same in another process. It is an `AsyncResult`: `get()`,
    `state` and the rest speak of the whole.
    """

    known: Plan | None = None
    """What was started, once that was read."""

    @property
    def plan(self) -> Plan:
        """What was started. Raises `NoResult` when no such workflow is known (any more)."""
        if self.known is None:
            found = read(self.app.require_backend(), self.app.codec, [self.id])
            if not found:
                raise NoResult(
                    f"no workflow {self.id} is known: was it forgotten, or kept too short?"
                )
            self.known = found[0]
        return self.known

    @property
    def state(self) -> str:
        """As of a task. STARTED from its start to its end."""
        state = super().state
        return STARTED if state == PENDING else state

    @property
    def info(self) -> dict[str, Any]:
        """What is known of the whole, as of a task."""
        return {**super().info, "state": self.state}

    @property
    def children(self) -> Sequence[AsyncResult[Any] | GroupResult[Any]]:  # type: ignore[override]
        """The results of its steps, in their order; of a group a `GroupResult`."""
        return [self._child(number) for number in range(len(self.plan.flow.nodes))]

    def __getitem__(self, step: str | int) -> AsyncResult[Any] | GroupResult[Any]:
        """The result of one step, by its number or its name."""
        names = [node.name for node in self.plan.flow.nodes]
        if isinstance(step, str):
            if step not in names:
                raise TasklineError(f"workflow {self.id} has no step {step!r}, but {names}")
            step = names.index(step)
        return self._child(range(len(names))[step])

    def _child(self, number: int) -> AsyncResult[Any] | GroupResult[Any]:
        key = step_id(self.id, number)
        step = self.plan.flow.nodes[number].step
        if isinstance(step, Call):
            return AsyncResult(self.app, key)
        if isinstance(step, Flow):
            return FlowResult(self.app, key)
        if isinstance(step, Group):
            flows = None if step.flows is None else frozenset(step.flows)
            return GroupResult(self.app, key, step.size, flows)
        nested = isinstance(step.step, Flow)
        return GroupResult(self.app, key, None, None if nested else frozenset())

    @property
    def compensation(self) -> FlowResult[Any]:
        """With `on_failure="compensate"`: the workflow of what undoes the steps."""
        return FlowResult(self.app, undo_id(self.id))

    def members(self) -> GroupResult[Any]:
        """The group that is the last step; raises `TasklineError` when that is none."""
        sinks = self.plan.flow.sinks
        last = self._child(sinks[0]) if len(sinks) == 1 else None
        if not isinstance(last, GroupResult):
            raise TasklineError(f"the last step of workflow {self.id} is no group of members")
        return last

    def iter(self, timeout: float | None = None) -> Iterator[Any]:
        """The values of the group that is the last step, in order, each as soon as it is there.

        A thousand are held at a time. Raises the exception of a member that failed,
        and `ResultTimeout` when one has not ended after `timeout` seconds in all.
        """
        return self.members().iter(timeout)

    def as_completed(self, timeout: float | None = None) -> Iterator[AsyncResult[Any]]:
        """The results of all its tasks as they end, in about that order.

        Steps that are not started, because another has failed, never come: give a
        `timeout`, in seconds for all, after which this raises `ResultTimeout`.
        """
        return _as_completed(self.app, self._leaves(), timeout)

    def _leaves(self) -> Iterator[AsyncResult[Any]]:
        for number in range(len(self.plan.flow.nodes)):
            child = self._child(number)
            if isinstance(child, GroupResult):
                yield from child
            else:
                yield child

    # A task tells of itself, a workflow is counted: both have `done` and `total`.
    def progress(self) -> Progress:  # type: ignore[override]
        """How many of its tasks have ended by now."""
        done, total = 0, 0
        known = True
        plan, backend = self.plan, self.app.require_backend()
        singles = []
        groups = {}
        for number, node in enumerate(plan.flow.nodes):
            key = step_id(self.id, number)
            if isinstance(node.step, (Call, Flow)):
                singles.append(key)
                continue
            size = GroupResult(self.app, key, getattr(node.step, "size", None), None).size
            known = known and size is not None
            total += size or 0
            groups[f"{key}*"] = ["sent"]
        total += len(singles)
        found = backend.fetch(singles)
        done += sum(each.state == SUCCESS for each in found.values())
        done += sum(size - 1 for size in backend.count_all(groups, plan.ttl).values())
        marker = backend.fetch([self.id]).get(self.id)
        ended_well = marker is not None and marker.state == SUCCESS
        failed = 0
        if not ended_well or plan.policy == CONTINUE:
            generation = 0 if marker is None or ended_well else marker.deliveries
            failed = backend.count(failures_key(self.id, generation), "", plan.ttl) - 1
        return Progress(done, total if known else None, failed)

    def graph(self, form: Literal["text", "mermaid", "dot"] = "text") -> str:
        """The steps and who waits for whom, with their states.

        `text` is for a terminal, `mermaid` for a page, `dot` for Graphviz.
        """
        from taskline.workflows.graph import draw

        return draw(self, form)

    def revoke(self, terminate: bool = False) -> bool:
        """Start none of its steps any more; with `terminate`, stop those that run.

        What runs without `terminate` comes to its end, and nothing follows. False:
        the messages that wait are dropped as workers come to them.
        """
        backend, plan = self.app.require_backend(), self.plan
        if self.ready():
            return False
        backend.revoke([Revocation(self.id, terminate)], REVOCATION_TTL)
        found = backend.fetch([self.id]).get(self.id)
        generation = 0 if found is None else found.deliveries
        backend.store([end_of(self.app.codec, self._serializer, plan, REVOKED, generation)])
        return False

    def resume(self) -> list[str]:
        """Send its failed tasks again from the dead letters; returns their ids.

        When they succeed the workflow goes on. `taskline dead requeue` does the same.
        """
        again: list[str] = []
        leaves = self._leaves()
        while chunk := list(islice(leaves, CHUNK)):
            found = self.app.require_backend().fetch([each.id for each in chunk])
            failed = [each for each in chunk if _state(found, each.id) == FAILURE]
            for each in failed:
                if isinstance(each, FlowResult):
                    again += each.resume()
            again += self.app.dead.requeue([each.id for each in failed])
        self._final = None
        return again

    def forget(self) -> None:
        """Delete all that is stored of it. One that still runs does not go on then."""
        backend, leaves = self.app.require_backend(), self._leaves()
        steps = [step_id(self.id, number) for number in range(len(self.plan.flow.nodes))]
        while chunk := list(islice(leaves, CHUNK)):
            for each in chunk:
                if isinstance(each, FlowResult):
                    each.forget()
            backend.forget([each.id for each in chunk])
        backend.forget([self.id, plan_id(self.id), *steps])
        self._final = None

    def requeue(self) -> None:
        """As `resume`; raises `NoResult` when none of its tasks is among the dead letters."""
        if not self.resume():
            raise NoResult(f"no task of workflow {self.id} is among the dead letters")

    @property
    def _serializer(self) -> str:
        return self.app.settings.serializer

    def _hint(self, state: str, known: OutcomeHeader | None) -> str:
        try:
            done, total, failed = self.progress()
        except NoResult as error:
            return str(error)
        of = "" if total is None else f" of {total}"
        return f"{done}{of} tasks have ended, {failed} failed: do workers serve their queues?"

    def __repr__(self) -> str:
        return f"<FlowResult {self.id}>"


class GroupResult(Generic[R]):
    """The members of a group within a workflow, none of which is held in memory."""

    def __init__(
        self, app: Taskline, id: str, size: int | None, flows: frozenset[int] | None
    ) -> None:
        """`flows` are the members that are workflows; None for all."""
        self.app = app
        self.id = id
        self._size = size
        self._flows = flows

    @property
    def size(self) -> int | None:
        """How many there are; None while that is not known."""
        if self._size is None:
            found = self.app.require_backend().fetch([self.id]).get(self.id)
            if found is not None and found.state == SUCCESS:
                self._size = int(value_of(self.app, self.id, {self.id: found}))
        return self._size

    def __len__(self) -> int:
        if self.size is None:
            raise TasklineError(f"the size of group {self.id} is not known yet")
        return self.size

    def __getitem__(self, index: int) -> AsyncResult[R]:
        number = range(len(self))[index]
        key = f"{self.id}-{number}"
        nested = self._flows is None or number in self._flows
        return FlowResult(self.app, key) if nested else AsyncResult(self.app, key)

    def __iter__(self) -> Iterator[AsyncResult[R]]:
        return (self[number] for number in range(len(self)))

    def iter(self, timeout: float | None = None) -> Iterator[R]:
        """The values in order. See `FlowResult.iter`."""
        until = None if timeout is None else self.app.clock.monotonic() + timeout
        for first in range(0, len(self), CHUNK):
            numbers = range(first, min(first + CHUNK, len(self)))
            ids = [f"{self.id}-{number}" for number in numbers]
            found = self.app.waiters.wait(ids, _left(self.app, until))
            for key in ids:
                if key not in found:
                    raise ResultTimeout(f"member {key} has not ended after {timeout:g} seconds")
                value = value_of(self.app, key, found)
                if isinstance(value, Exception) and found[key].state != SUCCESS:
                    raise value
                yield value

    def as_completed(self, timeout: float | None = None) -> Iterator[AsyncResult[R]]:
        """The members as they end. See `FlowResult.as_completed`."""
        return _as_completed(self.app, iter(self), timeout)

    def get(self, timeout: float | None = None) -> list[R]:
        """Wait for all members and return their values in order."""
        return list(self.iter(timeout))

    def completed(self) -> int:
        """How many members have ended by now."""
        ended = 0
        for first in range(0, len(self), CHUNK):
            last = min(first + CHUNK, len(self))
            ids = [f"{self.id}-{number}" for number in range(first, last)]
            found = self.app.require_backend().fetch(ids)
            ended += sum(each.state in FINAL_STATES for each in found.values())
        return ended

    def __repr__(self) -> str:
        return f"<GroupResult {self.id} of {'?' if self._size is None else self._size}>"


def _as_completed(
    app: Taskline, results: Iterator[AsyncResult[Any]], timeout: float | None
) -> Iterator[AsyncResult[Any]]:
    until = None if timeout is None else app.clock.monotonic() + timeout
    waiting: dict[str, AsyncResult[Any]] = {}
    while True:
        waiting.update((each.id, each) for each in islice(results, CHUNK - len(waiting)))
        if not waiting:
            return
        found = app.waiters.wait(list(waiting), _left(app, until), enough=1)
        if not found:
            raise ResultTimeout(f"{len(waiting)} tasks have not ended after {timeout:g} seconds")
        for key in found:
            result = waiting.pop(key)
            result._final = found[key]
            yield result


def _left(app: Taskline, until: float | None) -> float | None:
    return None if until is None else max(0.0, until - app.clock.monotonic())


def _state(found: dict[str, Outcome], id: str) -> str:
    return found[id].state if id in found else PENDING
