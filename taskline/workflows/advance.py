"""What starts when something has ended: the rules by which workflows go on.

Whoever ends a step calls `advance` after its outcome is stored and before its message is
acknowledged; whoever starts a workflow calls it for what was started. All that it does
may be done again: the ids of what it sends follow from the plan, members are counted in
sets, and a worker that gets a step whose outcome is final does not run it again but only
advances. So a crash at any point is made good by the message that was not acknowledged, and no
step is started twice. `docs/decisions/workflow-completion.md` argues this at length.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from taskline.chunking import chunks
from taskline.message import (
    FAILURE,
    FINAL_STATES,
    SUCCESS,
    Message,
    Outcome,
    OutcomeHeader,
)
from taskline.workflows import compensate
from taskline.workflows.keeping import let_expire
from taskline.workflows.plan import (
    COMPENSATE,
    CONTINUE,
    INPUT,
    WORKFLOW,
    Call,
    Each,
    Flow,
    Group,
    Plan,
    Plans,
    Up,
    encode,
    end_of,
    failures_key,
    step_id,
)
from taskline.workflows.sending import fan_of, message_of

if TYPE_CHECKING:
    from taskline.app import Taskline
    from taskline.backends.base import Backend

log = logging.getLogger("taskline.workflows")

SENT = "sent"
"""The member of a group's set that says that all its members have been sent."""

LAST = 2**31 - 1
"""The `deliveries` of the outcome of a workflow that succeeded: it goes over any failure."""

BATCH = 1000
_SIZES = 1000


class Ended(NamedTuple):
    """A step, or a member of one, came to its end; or all members of a group were sent."""

    flow: str
    at: int
    member: int | None = None
    state: str = SUCCESS
    error: dict[str, Any] | None = None

    @property
    def id(self) -> str:
        return step_id(self.flow, self.at, self.member)


class Engine:
    """Advances the workflows of one app. For one thread."""

    def __init__(
        self, app: Taskline, backend: Backend, send: Callable[[Sequence[Message]], None]
    ) -> None:
        self.app = app
        self._codec = app.codec
        self.backend = backend
        self._send = send
        self.plans = Plans(backend, app.codec)
        self._sizes: dict[str, int] = {}
        self._records: list[Outcome] = []
        """Plans and ends to store before the messages are sent."""
        self._messages: list[Message] = []

    def advance(self, ended: Sequence[Ended]) -> None:
        """Start what waited for these ends alone. Raises `TransportError`: call it again then."""
        while ended:
            plans = self.plans.get({each.flow for each in ended})
            for each in ended:
                if each.flow not in plans:
                    log.warning(
                        "workflow %s is gone, so nothing follows its step %s: was it forgotten, or "
                        "did it take longer than its keep=?",
                        each.flow,
                        each.id,
                    )
            known = [(plans[each.flow], each) for each in ended if each.flow in plans]
            self._records, self._messages = [], []  # of a call that failed
            ended = self._turn(known)
            self.flush()

    def fail(self, flow: str, error: dict[str, Any]) -> None:
        """End a workflow that cannot go on. Raises `TransportError`."""
        plan = self.plans.get([flow]).get(flow)
        if plan is not None:
            self._records, self._messages = [], []
            more = self._fail(plan, [Ended(flow, 0, None, FAILURE, error)])
            self.flush()
            self.advance(more)

    def launch(self, plan: Plan, without: Iterable[int] = ()) -> None:
        """Start a workflow, but for the first steps `without`, which the caller starts."""
        self._records.append(encode(plan, self._codec, self._serializer))
        self.plans.add(plan)
        more: list[Ended] = []
        for number, node in enumerate(plan.flow.nodes):
            if not node.after and number not in without:
                more += self._start(plan, number)
        self.flush()
        if more:
            self.advance(more)

    @property
    def _serializer(self) -> str:
        return self.app.settings.serializer

    def _turn(self, ended: list[tuple[Plan, Ended]]) -> list[Ended]:
        """Everything that follows at once; returns what has ended by it."""
        done: list[tuple[Plan, int]] = []
        members: dict[str, list[str]] = {}
        groups: dict[str, tuple[Plan, int]] = {}
        more: list[Ended] = []
        failed: dict[str, tuple[Plan, list[Ended]]] = {}
        for plan, each in ended:
            grouped = isinstance(plan.flow.nodes[each.at].step, (Group, Each))
            if plan.policy == COMPENSATE and self._compensates(plan, each):
                continue
            if each.state != SUCCESS and plan.policy != CONTINUE:
                failed.setdefault(plan.id, (plan, []))[1].append(each)
                continue
            if each.state != SUCCESS:
                self.backend.count(failures_key(plan.id, 0), each.id, plan.ttl)
            if grouped and (each.member is not None or each.state == SUCCESS):
                key = f"{step_id(plan.id, each.at)}*"
                groups[key] = plan, each.at
                members.setdefault(key, []).append(
                    SENT if each.member is None else str(each.member)
                )
            else:
                done.append((plan, each.at))
        for key, count in self._count(members, groups).items():
            plan, at = groups[key]
            size = self._size(plan, at)
            if size is not None and count > size:
                done.append((plan, at))
        for plan, failures in failed.values():
            more += self._fail(plan, failures)
        for plan, number in self._ready(done):
            more += self._finish(plan) if number is None else self._start(plan, number)
        return more

    def _count(
        self, members: dict[str, list[str]], groups: dict[str, tuple[Plan, Any]]
    ) -> dict[str, int]:
        if not members:
            return {}
        return self.backend.count_all(members, max(plan.ttl for plan, _ in groups.values()))

    def _ready(self, done: list[tuple[Plan, int]]) -> list[tuple[Plan, int | None]]:
        """The steps that wait for nothing more; None for the end of the whole."""
        ready: list[tuple[Plan, int | None]] = []
        members: dict[str, list[str]] = {}
        waiting: dict[str, tuple[Plan, int | None, int]] = {}
        for plan, at in done:
            nodes = plan.flow.nodes
            pending: list[tuple[int | None, int, str]] = [
                (number, len(nodes[number].after), f"{step_id(plan.id, number)}<")
                for number in plan.flow.following(at)
            ]
            if not pending:
                pending = [(None, len(plan.flow.sinks), f"{plan.id}<")]
            for number, needed, key in pending:
                if needed == 1:
                    ready.append((plan, number))
                else:
                    members.setdefault(key, []).append(str(at))
                    waiting[key] = plan, number, needed
        counted = self._count(members, {key: (each[0], 0) for key, each in waiting.items()})
        for key, count in counted.items():
            plan, number, needed = waiting[key]
            if count >= needed:
                ready.append((plan, number))
        return ready

    def _compensates(self, plan: Plan, each: Ended) -> bool:
        """Undo a step that ended well while the whole is being undone: nothing follows it."""
        if each.state != SUCCESS or not compensate.is_failing(self, plan):
            return False
        step: Any = plan.flow.nodes[each.at].step
        if each.member is not None:
            step = step.step if isinstance(step, Each) else step.members[each.member]
        if isinstance(step, Call):
            compensate.undo_late(self, plan, each.id, step)
        return True

    def _size(self, plan: Plan, at: int) -> int | None:
        """How many members a group has; None while that is not known."""
        step = plan.flow.nodes[at].step
        if isinstance(step, Group) and step.size is not None:
            return step.size
        return self.size_of(step_id(plan.id, at))

    def size_of(self, id: str) -> int | None:
        """How many members the group of this id has had, once it is known."""
        if id not in self._sizes:
            outcome = self.backend.fetch([id]).get(id)
            if outcome is None or outcome.state != SUCCESS:
                return None
            if len(self._sizes) >= _SIZES:
                self._sizes.clear()
            self._sizes[id] = self._codec.loads(*self._codec.open_outcome(outcome.frame))
        return self._sizes[id]

    # Starting

    def _start(self, plan: Plan, at: int) -> list[Ended]:
        """Start a step; returns what has ended by that."""
        node = plan.flow.nodes[at]
        if plan.policy == CONTINUE and (error := self._missing(plan, at)) is not None:
            return self._skip(plan, at, error)
        take = [
            (name, plan.input if source == INPUT else self._reference(plan, source))
            for name, source in node.take
        ]
        step = node.step
        if isinstance(step, Call):
            self._messages.append(message_of(self.app, plan, at, None, step, take))
        elif isinstance(step, Group):
            more: list[Ended] = []
            for number, each in enumerate(step.members):
                more += self.start_member(plan, at, number, each, take)
            return [*more, Ended(plan.id, at)]
        elif isinstance(step, Each):
            self._messages.append(
                message_of(self.app, plan, at, None, fan_of(self.app, step), take)
            )
        else:
            up = Up(plan.id, at)
            return self._start_child(plan, up, step, take[0][1] if take else None)
        return []

    def start_member(
        self,
        plan: Plan,
        at: int,
        number: int,
        step: Call | Flow,
        take: list[tuple[str | None, Any]],
    ) -> list[Ended]:
        """Start a member of a group; the messages leave a thousand at a time."""
        more: list[Ended] = []
        if isinstance(step, Call):
            own = [(step.into, reference) for _, reference in take] if step.takes else []
            self._messages.append(message_of(self.app, plan, at, number, step, own))
        else:
            up = Up(plan.id, at, number)
            more = self._start_child(plan, up, step, take[0][1] if take else None)
        if len(self._messages) >= BATCH or len(self._records) >= BATCH:
            self.flush()
        return more

    def _start_child(self, plan: Plan, up: Up, flow: Flow, given: Any) -> list[Ended]:
        """Start a workflow that is a step, or a member of a step, of another."""
        own = step_id(up.id, up.at, up.member)
        child = msgspec.structs.replace(
            plan, id=own, flow=flow, up=up, input=given, name="", parent=plan.id
        )
        self._records.append(encode(child, self._codec, self._serializer))
        self.plans.add(child)
        more: list[Ended] = []
        for number, node in enumerate(flow.nodes):
            if not node.after:
                more += self._start(child, number)
        return more

    def _reference(self, plan: Plan, at: int) -> Any:
        step = plan.flow.nodes[at].step
        size = self._size(plan, at) if isinstance(step, (Group, Each)) else None
        return plan.reference(at, size)

    # Ending

    def _finish(self, plan: Plan) -> list[Ended]:
        """The whole has ended."""
        if plan.policy == CONTINUE:
            for at in plan.flow.sinks:
                if (failed := self._failed_step(plan, at)) is not None:
                    return self._fail(plan, [Ended(plan.id, at, None, failed.state, failed.error)])
        names = {at: plan.flow.nodes[at].name or str(at) for at in plan.flow.sinks}
        if len(names) == 1:
            refers = self._reference(plan, next(iter(names)))
        else:
            refers = {name: self._reference(plan, at) for at, name in names.items()}
        self._end(plan, SUCCESS, LAST, refers=refers)
        if plan.up is not None:
            return [Ended(plan.up.id, plan.up.at, plan.up.member)]
        self.flush()
        let_expire(self, plan)
        return []

    def _fail(self, plan: Plan, failures: list[Ended]) -> list[Ended]:
        """Steps did not succeed, and with them the whole: as the first of them that is told."""
        each = failures[0]
        found = self.backend.fetch([plan.id]).get(plan.id)
        generation = 0 if found is None or found.state == SUCCESS else found.deliveries
        key = failures_key(plan.id, generation)
        self.backend.count_all({key: [failed.id for failed in failures]}, plan.ttl)
        if found is None or found.state not in FINAL_STATES:
            error = each.error
            if error is None and each.state == FAILURE:
                failed = self._failed(each.id)
                error = failed.error if failed is not None else None
            self._end(plan, each.state, generation, error=error)
        if plan.up is not None:
            return [Ended(plan.up.id, plan.up.at, plan.up.member, each.state, each.error)]
        if plan.policy == COMPENSATE:
            self.flush()
            compensate.compensate(self, plan)
        return []

    def _end(self, plan: Plan, state: str, generation: int, **known: Any) -> None:
        now = self.app.now()
        self._records.append(
            end_of(self._codec, self._serializer, plan, state, generation, finished=now, **known)
        )

    def _missing(self, plan: Plan, at: int) -> OutcomeHeader | None:
        """With `continue`: the failure of a step whose result this one would take."""
        for _, source in plan.flow.nodes[at].take:
            if source != INPUT and (failed := self._failed_step(plan, source)) is not None:
                return failed
        return None

    def _failed_step(self, plan: Plan, at: int) -> OutcomeHeader | None:
        if isinstance(plan.flow.nodes[at].step, Group):
            return None  # its failed members are exceptions in its list
        return self._failed(step_id(plan.id, at))

    def _failed(self, id: str) -> OutcomeHeader | None:
        outcome = self.backend.fetch([id]).get(id)
        if outcome is None or outcome.state == SUCCESS:
            return None
        return self._codec.open_outcome(outcome.frame)[0]

    def _skip(self, plan: Plan, at: int, error: OutcomeHeader) -> list[Ended]:
        """A step is not started, since what it would take has failed. It fails likewise."""
        header = msgspec.structs.replace(
            error, id=step_id(plan.id, at), state=FAILURE, task=WORKFLOW, deliveries=0
        )
        self._records.append(self._codec.encode_outcome(header, None, sent=plan.sent, ttl=plan.ttl))
        return [Ended(plan.id, at, None, FAILURE, error.error)]

    def flush(self) -> None:
        """Store and send what has gathered."""
        records, messages = self._records, self._messages
        self._records, self._messages = [], []
        for some in chunks(records, BATCH):
            self.backend.store(some)
        for few in chunks(messages, BATCH):
            self._send(few)
