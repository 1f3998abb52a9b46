"""`Task`: a registered function."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from taskline import limits
from taskline import options as check
from taskline.calls import Calls
from taskline.context import Request, require
from taskline.errors import ConfigurationError
from taskline.functions import is_async, is_generator
from taskline.hooks import Hooks, Middleware, checked
from taskline.limits import Limits
from taskline.options import CallOptions
from taskline.policy import RetryPolicy
from taskline.signature import TaskSignature

if TYPE_CHECKING:
    from taskline.app import Taskline

P = ParamSpec("P")
R = TypeVar("R", covariant=True)

BATCH_WAIT = 0.1
"""Seconds for which the first message of a batch waits for more, unless told otherwise."""


class Task(Calls[P, R]):
    """A registered function. Calling it runs it here; `delay` sends it to a worker.

    Made by `@app.task`, never directly. `queue, priority, timeout, soft_timeout, expires,
    result_ttl` (seconds), `serializer, ack, bind, policy` are what was declared, or
    the app's settings.
    """

    is_async = False

    def __init__(
        self,
        app: Taskline,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        queue: str | None = None,
        priority: int | None = None,
        retry: Any = None,
        timeout: float | None = None,
        soft_timeout: float | None = None,
        expires: float | None = None,
        result_ttl: float | None = None,
        serializer: str | None = None,
        ack: str = "late",
        bind: bool = False,
        durable: bool = False,
        batch: int | None = None,
        batch_wait: float | None = None,
        fair_key: Any = None,
        rate: str | Sequence[str] | None = None,
        concurrency: int | None = None,
        limit_key: str | Callable[..., object] | None = None,
        middleware: Sequence[Middleware] = (),
        **rules: Any,
    ) -> None:
        settings = app.settings
        self.function = function
        self.spec = getattr(sys.modules.get(function.__module__), "__spec__", None)
        self.bind = check.flag("bind", bind)
        self.queue = settings.queue if queue is None else check.queue_name("queue", queue)
        self.priority = (
            settings.priority if priority is None else check.priority_number("priority", priority)
        )
        self.serializer = app.queues.serializer(self.queue) or serializer or settings.serializer
        if self.serializer not in settings.accept:
            raise ConfigurationError(
                f"serializer={serializer!r}: accept has only {', '.join(settings.accept)}: add it"
            )
        self.timeout = _own("timeout", timeout, settings.timeout)
        self.soft_timeout = _own("soft_timeout", soft_timeout, settings.soft_timeout)
        check.check_timeouts(self.timeout, self.soft_timeout)
        self.expires = _own("expires", expires, settings.expires)
        self.result_ttl = (
            settings.result_ttl if result_ttl is None else check.seconds("result_ttl", result_ttl)
        )
        self.ack = check.one_of("ack", ack, ("late", "early"))
        self.limits: Limits | None = None
        """Its rates and its concurrency, of which most tasks have none."""
        if rate is not None or concurrency is not None or limit_key is not None:
            self.limits = limits.limits(rate, concurrency, limit_key)
        self.middleware = tuple(map(checked, middleware))
        self.hooks: Hooks | None = None
        """What is called around its runs, the app's middleware and its own; None if nothing is."""
        self.policy = RetryPolicy.of(settings.retry if retry is None else retry)
        self.batch, self.batch_wait = 0, 0.0
        """How many messages one run gets at most; 0 for tasks that are no batches."""
        self.signature = TaskSignature(function, bind)
        self.body = function
        """What a run calls: the function, or what stands around it."""
        self._call = function
        """The function, given what it depends on."""
        if batch is not None:
            self._be_batch(batch, batch_wait, durable)
        self._surround(app, check.flag("durable", durable))
        if self.limits is not None:
            limits.check_key(self.limits, self.signature.signature, bool(self.batch))
        own = _name(app, function) if name is None else check.identifier("name", name)
        defaults = CallOptions(self.queue, self.priority, self.serializer)
        options = defaults.changed({"expires": self.expires, "result_ttl": result_ttl})
        if rules:
            options = options.under(_rule(rules, self.signature))
        if fair_key is not None:
            from taskline.fairness import fair_key as checked_key

            options = options.shared_by(checked_key(app, self.queue, fair_key, self.signature))
        super().__init__(app, own, self.signature, options)
        update_wrapper(cast(Any, self), function, updated=())

    def _surround(self, app: Taskline, durable: bool) -> None:
        """Put around the function what its signature, its kind and its options ask for."""
        if self.signature.depends:
            from taskline.resources import injecting

            self._call = injecting(app, self.function, self.signature.depends)
            self.body = self.body if self.batch else self._call
        if is_generator(self.function):
            from taskline.streaming import storing_items

            self.signature.is_generator = True
            self.body = storing_items(app, self._call, is_async(self.function))
        if durable:
            from taskline.durable import keeping_steps

            self.body = keeping_steps(app, self.body)

    def _be_batch(self, batch: int, wait: float | None, durable: bool) -> None:
        from taskline import batching

        if is_generator(self.function) or durable:
            raise ConfigurationError("batch= is neither for generators nor for durable tasks")
        batching.check(batch, self.ack)
        self.batch = batch
        self.batch_wait = BATCH_WAIT if wait is None else check.seconds("batch_wait", wait)
        self.signature = batching.ItemSignature(self.function, self.bind)
        self.body = batching.one_by_one(self)

    def call_batch(self, items: list[Any]) -> Any:
        """The function's value, or its coroutine, for the items of many calls."""
        return self._call(self, items) if self.bind else self._call(items)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function here and now. What it depends on may be given by keyword."""
        call = self.body if self.batch else self._call
        result: R = call(*((self, *args) if self.bind else args), **kwargs)
        return result

    def hook_up(self) -> None:
        """Take over the app's middleware, around the task's own."""
        hooks = Hooks([*self.app.hooks.middleware, *self.middleware])
        self.hooks = hooks if hooks.of_runs else None

    def run(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The function's value, or its coroutine: what a worker calls."""
        if self.bind:
            return self.body(self, *args, **kwargs)
        return self.body(*args, **kwargs)

    @property
    def request(self) -> Request:
        """The run of this moment. Raises `TasklineError` when the task does not run here."""
        return require()

    def __reduce__(self) -> str:
        return self.__qualname__  # pickled by name, as functions are

    if TYPE_CHECKING:
        __name__: str
        __qualname__: str
        __wrapped__: Callable[..., Any]


class AsyncTask(Task[P, R]):
    """A registered `async def`. Calling it gives its coroutine."""

    is_async = True

    # To call it differs, to send it does not; a caller that holds a Task sends it.
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:  # type: ignore[override]
        """The coroutine of the function, to be awaited here."""
        coroutine: Coroutine[Any, Any, R] = super().__call__(*args, **kwargs)  # type: ignore
        return coroutine


def make(app: Taskline, function: Any, options: dict[str, Any]) -> Task[..., Any]:
    """The task of a decorated function; raises `ConfigurationError` if it cannot be one."""
    if isinstance(function, staticmethod):
        function = function.__func__
    if isinstance(function, Task):
        raise ConfigurationError(f"{function.name} is a task already: decorate it once")
    if isinstance(function, (classmethod, property, type)) or not callable(function):
        raise ConfigurationError(f"{function!r} cannot be a task: decorate a def or an async def")
    _refuse_method(function, bool(options.get("bind")))
    kind = AsyncTask if is_async(function) else Task
    return kind(app, function, **options)


def replaces(new: Task[..., Any], old: Task[..., Any]) -> bool:
    """Whether `new` is `old` again: its module was reloaded, or it was redefined by hand."""
    for attribute in ("__module__", "__qualname__"):
        if getattr(new, attribute, None) != getattr(old, attribute, None):
            return False
    if _place(new.function) == _place(old.function):
        return True
    # A reload runs the module under a new spec; scripts and notebooks have none.
    reloaded = new.spec is None or new.spec is not old.spec
    return reloaded and not new.__qualname__.endswith("<lambda>")


def _place(function: Callable[..., Any]) -> tuple[str, int] | None:
    code = getattr(function, "__code__", None)
    return None if code is None else (code.co_filename, code.co_firstlineno)


def _rule(given: dict[str, Any], signature: TaskSignature) -> Any:
    """The rule by which calls of a task are unique; None when there is none."""
    from taskline.unique import changed, check_names

    given = {option: value for option, value in given.items() if value is not None}
    rule = changed(None, given) if given else None
    if rule is not None:
        check_names(rule, signature)
    return rule


def _own(option: str, value: float | None, default: float | None) -> float | None:
    return default if value is None else check.duration(option, value)


def _name(app: Taskline, function: Callable[..., Any]) -> str:
    qualname = _qualname(function)
    if qualname.endswith("<lambda>"):
        raise ConfigurationError("a lambda has no name: give the task one with name=")
    module = getattr(function, "__module__", None) or "__main__"
    # A script is `__main__` to itself but a module to its workers: the app's name serves both.
    return f"{app.name if module == '__main__' else module}.{qualname}"


def _qualname(function: Any) -> str:
    name = getattr(function, "__qualname__", None)
    if not isinstance(name, str):
        raise ConfigurationError(f"{function!r} has no name: give the task one with name=")
    return name


def _refuse_method(function: Any, bind: bool) -> None:
    scope, _, _ = getattr(function, "__qualname__", "").rpartition(".")
    code = getattr(function, "__code__", None)
    if bind or code is None or not scope or scope.endswith("<locals>"):
        return
    if code.co_argcount and code.co_varnames[0] in ("self", "cls"):
        raise ConfigurationError(
            f"{function.__qualname__} is a method, and its object does not travel: "
            f"decorate a function or a staticmethod"
        )
