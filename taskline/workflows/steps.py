"""What workflows are written with: signatures of calls, chains, groups, chords.

A `Step[T, R]` takes a T from the step before it and gives an R to the next; one that
takes nothing has `Start` for T. Steps are immutable, and none is sent before `delay()`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

import msgspec

from taskline.errors import ConfigurationError, InvalidArguments
from taskline.message import VERSION, Header
from taskline.workflows.elements import bound, group_of, node, takes, without
from taskline.workflows.plan import Call, Each, Flow, Group

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from taskline.app import Taskline
    from taskline.options import CallOptions
    from taskline.signature import TaskSignature
    from taskline.workflows.launch import LaunchOptions
    from taskline.workflows.result import FlowResult

T = TypeVar("T", contravariant=True)
R = TypeVar("R", covariant=True)
A = TypeVar("A")
B = TypeVar("B")
S = TypeVar("S")


_SHOWN = 3


class Start:
    """The type that stands for taking nothing: such a step may be the first."""


class Step(Generic[T, R]):
    """Something that can be a step of a workflow, or the whole of it."""

    app: Taskline
    defaults: Mapping[str, Any] = {}
    """Options for the whole, unless `apply_async` is given others."""

    def element(self, *, first: bool) -> Call | Group | Each | Flow:
        """This step as a plan has it, for the first place of a workflow or a later one.

        Raises `InvalidArguments` when it cannot stand there.
        """
        raise NotImplementedError

    @property
    def takes(self) -> bool:
        """Whether it takes the result of a step before it."""
        raise NotImplementedError

    def bind(self, value: Any) -> Step[Any, R]:
        """This step with `value` for what it takes."""
        raise NotImplementedError

    def parts(self) -> list[Step[Any, Any]]:
        """The steps that this one is in a chain."""
        return [self]

    def __or__(self: Step[S, A], other: Step[A, B]) -> Step[S, B]:
        """`a | b` is `chain(a, b)`."""
        if not isinstance(other, Step):
            return NotImplemented
        return Chain([*self.parts(), *other.parts()])

    @overload
    def delay(self: Step[Start, A]) -> FlowResult[A]: ...
    @overload
    def delay(self: Step[S, A], value: S, /) -> FlowResult[A]: ...
    def delay(self, *value: Any) -> Any:
        """Start it as a workflow, with a value for what its first step takes.

        Raises `ConfigurationError` when the app has no result backend, `InvalidArguments`,
        `SerializationError` and `TransportError` as a task's `delay` does.
        """
        return self.apply_async(*value)

    def apply_async(self, *value: Any, **options: Unpack[LaunchOptions]) -> FlowResult[R]:
        """As `delay`, with options for the whole.

        `expires`: seconds, or a datetime, after which none of its steps is started.
        `on_failure`: `stop`, `continue` or `compensate`. `keep`: seconds for which its
        results are kept while it runs, a week by default. `task_id`: an id of your own;
        starting it a second time under the same id changes nothing. `name`: for `graph()`.
        """
        from taskline.workflows.launch import launch

        if len(value) > 1:
            raise InvalidArguments(f"a workflow starts with one value, not {len(value)}")
        return launch(self.bind(value[0]) if value else self, {**self.defaults, **options})

    def to_dict(self) -> dict[str, Any]:
        """The step as plain data; `from_dict` makes a step of it again."""
        try:
            element = self.element(first=False)
        except InvalidArguments:
            element = self.element(first=True)
        found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(element))
        return found


def from_dict(app: Taskline, data: Mapping[str, Any]) -> Step[Any, Any]:
    """The step that `to_dict` has described; raises `ConfigurationError` for anything else."""
    try:
        element = msgspec.convert(data, Call | Group | Each | Flow)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"not a step of a workflow: {error}") from None
    return Made(app, element)


class TaskStep(Step[T, R]):
    """One call of a task: what `task.s(...)` and `task.si(...)` give."""

    def __init__(
        self,
        app: Taskline,
        name: str,
        signature: TaskSignature | None,
        options: CallOptions,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        immutable: bool,
        into: str | None = None,
        undo: TaskStep[Any, Any] | None = None,
    ) -> None:
        self.app = app
        self.name = name
        self._signature = signature
        self._options = options
        self._args = args
        self._kwargs = kwargs
        self._immutable = immutable
        self._into = into
        self._undo = undo
        if not self.complete:
            self._check_given()

    @property
    def complete(self) -> bool:
        """Whether it has all its arguments."""
        if self._signature is None:
            return True
        try:
            self._signature.check(self._args, self._kwargs)
        except InvalidArguments:
            if self._immutable:
                raise
            return False
        return True

    @property
    def takes(self) -> bool:
        return not self._immutable

    def into(self, parameter: str) -> TaskStep[Any, R]:
        """Take the result of the step before as this parameter, instead of the first."""
        if self._immutable:
            raise InvalidArguments(f"{self}: si() takes no result, so into() has none to place")
        return self._changed(into=parameter)

    def undo(self, step: Step[Any, Any]) -> TaskStep[T, R]:
        """With `on_failure="compensate"`: what undoes this step. It takes this step's result."""
        if not isinstance(step, TaskStep):
            raise ConfigurationError(f"undo({step!r}): give it one call, such as release.s()")
        return self._changed(undo=step)

    def bind(self, value: Any) -> TaskStep[Any, R]:
        if self._immutable:
            return self
        if self._into is not None:
            return self._changed(kwargs={**self._kwargs, self._into: value}, immutable=True)
        return self._changed(args=(value, *self._args), immutable=True)

    def element(self, *, first: bool) -> Call:
        if first or self._immutable:
            return self.call(0, ())
        return self.call(0, (self._into,)) if self._into is not None else self.call(1, ())

    def call(self, missing: int, later: Sequence[str]) -> Call:
        """The call, which will be given `missing` first arguments, and those named `later`.

        Raises `InvalidArguments` when that does not fit the task.
        """
        if self._signature is not None:
            try:
                self._signature.check_partial(
                    self._args, self._kwargs, missing=missing, later=later
                )
            except InvalidArguments as error:
                if missing == 1 and self.complete:
                    raise InvalidArguments(
                        f"{error}: {self} has all its arguments, and would get the result of the "
                        "step before as its first one; .si() takes none"
                    ) from None
                raise
        options = self._options
        header = Header(VERSION, "", self.name, "", 0.0, options.serializer)
        body = self.app.codec.dump(header, (self._args, self._kwargs))
        undo = None if self._undo is None else self._undo.element(first=False)
        takes = bool(missing or later)
        return Call(self.name, body, options, header.compression, takes, self._into, undo)

    def _check_given(self) -> None:
        """Raise `InvalidArguments` if what is given will not fit, whatever is given later."""
        assert self._signature is not None
        try:
            self._signature.check_partial(self._args, self._kwargs, missing=1)
        except InvalidArguments:
            try:
                self._signature.signature.bind_partial(*self._args, **self._kwargs)
            except TypeError as error:
                raise InvalidArguments(f"{self.name}{self._signature}: {error}") from None

    def _changed(self, **changes: Any) -> TaskStep[Any, Any]:
        known = {
            "args": self._args,
            "kwargs": self._kwargs,
            "immutable": self._immutable,
            "into": self._into,
            "undo": self._undo,
            **changes,
        }
        return TaskStep(self.app, self.name, self._signature, self._options, **known)

    def __repr__(self) -> str:
        shown = [repr(value) for value in self._args]
        shown += [f"{name}={value!r}" for name, value in self._kwargs.items()]
        return f"{self.name}.{'si' if self._immutable else 's'}({', '.join(shown)})"


class Chain(Step[T, R]):
    """Steps one after the other, each with the result of the one before it."""

    def __init__(self, steps: Sequence[Step[Any, Any]]) -> None:
        self.steps = [part for step in steps for part in step.parts()]
        if not self.steps:
            raise ConfigurationError("an empty chain: give it at least one step")
        self.app = self.steps[0].app

    def parts(self) -> list[Step[Any, Any]]:
        return self.steps

    @property
    def takes(self) -> bool:
        return self.steps[0].takes

    def bind(self, value: Any) -> Chain[Any, R]:
        return Chain([self.steps[0].bind(value), *self.steps[1:]])

    def element(self, *, first: bool) -> Flow:
        nodes = []
        for number, step in enumerate(self.steps):
            element = step.element(first=first and number == 0)
            nodes.append(node(element, [number - 1] if number else []))
        return Flow(nodes)

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.steps))


class GroupStep(Step[T, R]):
    """Steps side by side; its result is the list of theirs."""

    def __init__(self, steps: Iterable[Step[Any, Any]], app: Taskline | None = None) -> None:
        self._steps = steps
        self._app = app

    @property
    def app(self) -> Taskline:  # type: ignore[override]
        if self._app is None:
            members = iter(self._steps)
            first = list(islice(members, 1))
            if not first:
                raise ConfigurationError("an empty group belongs to no app: give it app=")
            if not isinstance(self._steps, Sequence):
                self._steps = itertools.chain(first, members)
            self._app = first[0].app
        return self._app

    @property
    def size(self) -> int | None:
        """How many members there are, where that is known before they are made."""
        return len(self._steps) if isinstance(self._steps, Sized) else None

    def members(self) -> Iterator[Step[Any, Any]]:
        """The members, once; those of an iterator are gone then."""
        return iter(self._steps)

    @property
    def takes(self) -> bool:
        return any(step.takes for step in self._all())

    def bind(self, value: Any) -> GroupStep[Any, R]:
        return GroupStep([step.bind(value) for step in self._all()], self._app)

    def _all(self) -> Sequence[Step[Any, Any]]:
        if not isinstance(self._steps, Sequence):
            self._steps = list(self._steps)
        return self._steps

    def element(self, *, first: bool) -> Group:
        return group_of([member(step, first=first) for step in self._all()])

    def streamed(self) -> Group:
        """This group for a plan whose launcher makes and sends the members as they come.

        Of an iterator's members the first tells whether they are calls or workflows.
        """
        size = self.size
        if isinstance(self._steps, Sequence):
            looked_at: Sequence[Step[Any, Any]] = self._steps
            flows: list[int] | None = [n for n, each in enumerate(looked_at) if not _is_call(each)]
        else:
            members = iter(self._steps)
            looked_at = list(islice(members, 1))
            self._steps = itertools.chain(looked_at, members)
            flows = None if looked_at and not _is_call(looked_at[0]) else []
        names = {each.name if isinstance(each, TaskStep) else "…" for each in looked_at}
        return Group([], size, flows, sorted(names)[:_SHOWN])

    def __repr__(self) -> str:
        return f"<group of {'?' if self.size is None else self.size}>"


class EachStep(Step[T, R]):
    """A step for each item of the result before it; its result is the list of theirs."""

    def __init__(self, step: Step[Any, Any]) -> None:
        if not step.takes:
            raise InvalidArguments(f"each({step!r}): the step takes no item; use .s(), not .si()")
        self._step = step
        self.app = step.app

    @property
    def takes(self) -> bool:
        return True

    def bind(self, value: Any) -> GroupStep[Any, R]:
        return GroupStep([self._step.bind(item) for item in value], self.app)

    def element(self, *, first: bool) -> Each:
        if first:
            raise InvalidArguments(
                "each() needs a list to go through: put it after a step, "
                "or start it with one, as in each(step).delay([1, 2])"
            )
        return Each(member(self._step, first=False))

    def __repr__(self) -> str:
        return f"each({self._step!r})"


class Made(Step[T, R]):
    """A step that was read from plain data."""

    def __init__(self, app: Taskline, element: Call | Group | Each | Flow) -> None:
        self.app = app
        self._element = element

    @property
    def takes(self) -> bool:
        return takes(self._element)

    def bind(self, value: Any) -> Made[Any, R]:
        return Made(self.app, bound(self.app, self._element, value))

    def element(self, *, first: bool) -> Call | Group | Each | Flow:
        element: Call | Group | Each | Flow = self._element
        return without(element) if first and self.takes else element


def member(step: Step[Any, Any], *, first: bool) -> Call | Flow:
    """A step as a member of a group."""
    element = step.element(first=first)
    if isinstance(element, (Call, Flow)):
        return element
    return Flow([node(element, [])])


def _is_call(step: Step[Any, Any]) -> bool:
    return isinstance(step, TaskStep) or isinstance(getattr(step, "_element", None), Call)
