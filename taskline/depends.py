"""What a function asks to be given beside its arguments: `Depends`, and where it says so."""

from __future__ import annotations

import builtins
import contextlib
import inspect
from collections.abc import Callable
from functools import lru_cache
from inspect import Parameter, Signature
from typing import Any, Literal

from taskline import functions
from taskline.errors import ConfigurationError
from taskline.functions import name_of, within_partial


class Dependency:
    """What `Depends` gives: who opens the value, and for how long."""

    __slots__ = ("opener", "scope")

    def __init__(self, opener: Callable[..., Any] | None, scope: str) -> None:
        self.opener = opener
        self.scope = scope

    def __repr__(self) -> str:
        return f"Depends({'' if self.opener is None else name_of(self.opener)})"


def Depends(  # noqa: N802
    opener: Callable[..., Any] | None = None, *, scope: Literal["process", "task"] = "process"
) -> Any:
    """Marks a parameter that callers do not give: `session: Annotated[Session, Depends(connect)]`.

    `opener` is called, at the first use in a process, and its value given to all runs
    there. With `scope="task"` each run has its own. It may be a function, a generator function
    that yields the value once and closes it afterwards, a function that returns a context
    manager which inherits `contextlib.AbstractContextManager` (as `@contextmanager` makes
    them), or any of these as `async`, for coroutines. Its own parameters may be marked
    in the same way.

    As a default, `session: Session = Depends(connect)`, it means the same, and a type
    checker sees that callers leave it out; with an annotation too, `= Depends()` is enough.
    Raises `ConfigurationError`.
    """
    if type(opener) is _Unknown or not (opener is None or callable(opener)):
        raise ConfigurationError(
            f"Depends({opener!r}): give the function that opens it, not what it returns"
        )
    try:
        hash(opener)
    except TypeError:
        raise ConfigurationError(f"Depends({opener!r}): it has no hash: give a function") from None
    if scope not in ("process", "task"):
        raise ConfigurationError(f"Depends(scope={scope!r}): choose 'process' or 'task'")
    return Dependency(opener, scope)


def dependencies(function: Callable[..., Any], signature: Signature) -> dict[str, Dependency]:
    """The parameters that are marked with `Depends`, by name; raises `ConfigurationError`."""
    found: dict[str, Dependency] = {}
    for name, parameter in signature.parameters.items():
        default = parameter.default
        need: Any = default if type(default) is Dependency else None
        noted = _noted(function, name, parameter.annotation)
        if need is None and noted is None:
            continue
        if need is None or (need.opener is None and noted is not None):
            need = noted
        elif noted is not None and noted.opener is not need.opener:
            raise ConfigurationError(
                f"{name_of(function)}: {name} has two openers, {noted!r} and {need!r}: leave "
                "one out, `= Depends()` is enough beside an annotation"
            )
        if need.opener is None:
            raise ConfigurationError(
                f"{name_of(function)}: Depends() of {name} does not say who opens it: "
                "give it a function"
            )
        if parameter.kind not in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY):
            raise ConfigurationError(
                f"{name_of(function)}: {name} is given by keyword, since it has Depends: "
                "it can be neither positional-only nor *args or **kwargs"
            )
        found[name] = need
    return found


def check(function: Callable[..., Any], needs: dict[str, Dependency], is_async: bool) -> None:
    """Raise `ConfigurationError` for what cannot be opened for this task."""
    for need in needs.values():
        assert need.opener is not None
        _check(name_of(function), need, is_async, ())


@lru_cache(maxsize=1024)
def needs_of(opener: Callable[..., Any]) -> dict[str, Dependency]:
    """What an opener needs itself; raises `ConfigurationError` where nobody gives it that."""
    try:
        signature = inspect.signature(opener)
    except ValueError:  # a built-in function that does not tell
        return {}
    needs = dependencies(opener, signature)
    for name, parameter in signature.parameters.items():
        given = parameter.default is not Parameter.empty or name in needs
        if not given and parameter.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD):
            raise ConfigurationError(
                f"{name_of(opener)} opens a dependency, and nobody gives it {name}: "
                "give that a default, or mark it with Depends too"
            )
    return needs


def is_async(opener: Callable[..., Any]) -> bool:
    """Whether it takes an event loop to open and close this."""
    if isinstance(opener, type):
        return contextlib.AbstractAsyncContextManager in opener.__mro__
    return functions.is_async(opener) or functions.is_async(inspect.unwrap(opener))


def _check(
    user: str, need: Dependency, in_loop: bool, path: tuple[Callable[..., Any], ...]
) -> None:
    opener = need.opener
    assert opener is not None
    if opener in path:
        ring = " needs ".join(map(name_of, (*path[path.index(opener) :], opener)))
        raise ConfigurationError(f"{ring}: dependencies in a ring can never be opened")
    if is_async(opener) and not in_loop:
        raise ConfigurationError(
            f"{user} is a def, and {name_of(opener)}, which it depends on, is async: "
            "make both of them async def, or neither"
        )
    for name, inner in needs_of(opener).items():
        if inner.scope == "task" and need.scope == "process":
            raise ConfigurationError(
                f"{name_of(opener)} is opened once in a process, and its {name} for each task: "
                'give both scope="task", or neither'
            )
        _check(name_of(opener), inner, is_async(opener), (*path, opener))


def _noted(function: Callable[..., Any], name: str, annotation: Any) -> Dependency | None:
    """The `Depends` in a parameter's annotation, which is read only if it may have one."""
    if isinstance(annotation, str):
        text = annotation.strip("'\" ")
        names = _Names(function)
        if "Annotated[" in text or "Depends(" in text:
            try:
                annotation = eval(text, {}, names)
            except ConfigurationError:
                raise
            except Exception as error:
                if "Depends(" not in text:
                    return None
                raise ConfigurationError(
                    f"{name_of(function)}: the annotation of {name} cannot be read: {text}: {error}"
                ) from error
        elif text.replace(".", "").replace("_", "").isalnum():
            first, *rest = text.split(".")
            annotation = names[first]
            for each in rest:
                annotation = getattr(annotation, each, None)
    while type(annotation).__name__ == "TypeAliasType":
        annotation = annotation.__value__
    notes = getattr(annotation, "__metadata__", ())
    return next((note for note in notes if type(note) is Dependency), None)


class _Names(dict[str, Any]):
    """The names that a function's annotations can use. Any that is not known stands for a type,
    since types may be imported for the type checker alone."""

    def __init__(self, function: Callable[..., Any]) -> None:
        function = inspect.unwrap(within_partial(function))
        if isinstance(function, type):
            function = vars(function).get("__init__", function)
        elif not hasattr(function, "__code__"):
            function = type(function).__call__
        super().__init__()
        self._scopes = [getattr(function, "__globals__", {}), vars(builtins)]
        names = getattr(getattr(function, "__code__", None), "co_freevars", ())
        for name, cell in zip(names, getattr(function, "__closure__", None) or (), strict=False):
            with contextlib.suppress(ValueError):  # not assigned yet
                self[name] = cell.cell_contents

    def __missing__(self, name: str) -> Any:
        for scope in self._scopes:
            if name in scope:
                return scope[name]
        return _Unknown(name)


class _Unknown:
    """A name that is not known here."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Unknown(f"{self._name}.{name}")

    def __getitem__(self, key: object) -> _Unknown:
        return self

    def __or__(self, other: object) -> _Unknown:
        return self

    __ror__ = __or__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Only there because Python 3.10 takes nothing for a type that cannot be called."""
        raise TypeError(f"{self!r}: it cannot be called")

    def __repr__(self) -> str:
        return f"{self._name}, which is not known here"
