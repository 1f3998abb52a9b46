"""`app.workflow()`: named steps, and who waits for whom."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from taskline.calls import Calls
from taskline.config import nearest
from taskline.errors import ConfigurationError, InvalidArguments
from taskline.workflows.elements import bound, takes
from taskline.workflows.plan import INPUT, Call, Each, Flow, Group, Node
from taskline.workflows.steps import Made, Step, TaskStep, member

if TYPE_CHECKING:
    from taskline.app import Taskline


class Workflow(Step[Any, Any]):
    """A graph of steps. Its result is that of the step that nobody waits for.

    Where there are several such steps, it is a dict of their results by name. It may
    be started, as often as wanted, or be a step of a greater workflow.
    """

    def __init__(self, app: Taskline, options: Mapping[str, Any]) -> None:
        """Made by `app.workflow()`. `options` are those of `apply_async`."""
        from taskline.workflows.launch import check_options

        check_options(options)
        self.app = app
        self.defaults = options
        self._nodes: list[Node] = []
        self._numbers: dict[str, int] = {}

    def step(
        self,
        name: str,
        step: Step[Any, Any] | Calls[..., Any],
        *,
        takes: str | Iterable[str] = (),
        named: Mapping[str, str] | None = None,
        after: str | Iterable[str] = (),
        each: str | None = None,
    ) -> str:
        """Add a step, a task or a `Step`; returns its name, to give to those that wait for it.

        `takes`: the steps whose results are its first arguments. `named`: parameters, each
        with the step whose result it gets. `after`: steps that must have ended well, of
        whose results it takes none. `each`: run it for each item of that step's result.
        Raises `ConfigurationError` and `InvalidArguments`.
        """
        if isinstance(step, Calls):
            step = step._step((), {}, immutable=False)
        if name in self._numbers:
            raise ConfigurationError(f"the workflow has a step {name!r} already: name it otherwise")
        first = [self._number(other) for other in _list(takes)]
        by_name = {parameter: self._number(other) for parameter, other in (named or {}).items()}
        later = [self._number(other) for other in _list(after)]
        if each is not None and (first or by_name):
            raise ConfigurationError("each= gives the step its first argument: no takes=, named=")
        if each is not None:
            first = [self._number(each)]
        element = self._element(step, len(first), tuple(by_name), bool(each))
        take: list[tuple[str | None, int]] = [(None, number) for number in first]
        take += by_name.items()
        if not take and not later and _takes(element):
            take = [(element.into if isinstance(element, Call) else None, INPUT)]
        waits = sorted({number for _, number in take if number != INPUT} | set(later))
        self._numbers[name] = len(self._nodes)
        self._nodes.append(Node(element, name, waits, take))
        return name

    def _element(
        self, step: Step[Any, Any], first: int, later: tuple[str, ...], each: bool
    ) -> Call | Group | Each | Flow:
        if not isinstance(step, Step):
            raise ConfigurationError(f"{step!r} is no step: give task.s(...), a group or the like")
        if each:
            return Each(member(step, first=False))
        if isinstance(step, TaskStep):
            if first or later:
                return step.call(first, later)
            return step.element(first=step.complete)
        if first > 1 or later:
            raise ConfigurationError(f"{step!r} takes one result: give it by takes=")
        return step.element(first=not first)

    def _number(self, name: str) -> int:
        if name not in self._numbers:
            near = nearest(name, tuple(self._numbers))
            raise ConfigurationError(f"the workflow has no step {name!r} before this one{near}")
        return self._numbers[name]

    @property
    def takes(self) -> bool:
        return takes(Flow(self._nodes))

    def bind(self, value: Any) -> Made[Any, Any]:
        made: Made[Any, Any] = Made(self.app, bound(self.app, Flow(self._nodes), value))
        made.defaults = self.defaults
        return made

    def element(self, *, first: bool) -> Flow:
        flow = Flow(list(self._nodes))
        if not flow.nodes:
            raise ConfigurationError("the workflow has no steps: add some with step()")
        if first and takes(flow):
            names = [n.name for n in flow.nodes if any(source == INPUT for _, source in n.take)]
            raise InvalidArguments(
                f"step {names[0]!r} lacks its first argument: start the workflow with a value"
            )
        return flow

    def __repr__(self) -> str:
        return f"<Workflow {' '.join(self._numbers)}>"


def _list(names: str | Iterable[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _takes(element: Call | Group | Each | Flow) -> bool:
    return takes(element)
