"""A task's typed signature: what callers may give, and what the function gets."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from inspect import Parameter, Signature
from typing import TYPE_CHECKING, Any, NoReturn, Optional, get_args

from taskline.depends import Dependency, dependencies
from taskline.errors import ConfigurationError, InvalidArguments
from taskline.functions import POSITIONAL, hints_of
from taskline.secret import HIDDEN, as_written, is_secret

if TYPE_CHECKING:
    from taskline.conversion import Conversion


class TaskSignature:
    """The parameters of a function and their types; with `bind`, without the first.

    Annotations are resolved at the first use, so they may name what is defined
    later. Where one cannot be resolved, or asks for what cannot be converted, values
    pass as they come, and a warning in the log says so once.

    `doc` is the first line of the function's docstring. Raises `ConfigurationError`
    when `bind` is given and there is no first parameter.
    """

    def __init__(self, function: Callable[..., Any], bind: bool = False) -> None:
        self.function = function
        self.name: str = getattr(function, "__name__", type(function).__name__)
        self.doc = (inspect.getdoc(function) or "").partition("\n")[0]
        self.signature = _signature(function, bind)
        self.depends: dict[str, Dependency] = dependencies(function, self.signature)
        """The parameters that callers do not give; they are no part of the signature."""
        if self.depends:
            self.signature = _without(self.signature, self.depends)
        parameters = self.signature.parameters.values()
        positional = [p for p in parameters if p.kind in POSITIONAL]
        keyword_only = [p for p in parameters if p.kind is Parameter.KEYWORD_ONLY]
        self._names = [p.name for p in positional]
        self._most = len(positional)
        self._shapes = [
            _shape(positional[:count], positional[count:] + keyword_only, self.depends)
            for count in range(self._most + 1)
        ]
        # With at least so many positional arguments, keyword arguments are not needed.
        self._enough: float = next(
            (count for count, shape in enumerate(self._shapes) if not shape[0]), float("inf")
        )
        self._takes_more = any(p.kind is Parameter.VAR_POSITIONAL for p in parameters)
        self._takes_any = any(p.kind is Parameter.VAR_KEYWORD for p in parameters)
        self._resolved = False
        self._positional: list[Conversion | None] = []
        self._by_name: dict[str, Conversion | None] = {}
        self._star: Conversion | None = None
        self._star_name = ""
        self._star_star: Conversion | None = None
        self._star_star_name = ""
        self._returns: Conversion | None = None
        self.is_generator = False
        self._yields: Conversion | None = None
        """Of the items of a generator."""
        self._secrets: frozenset[str] = frozenset()

    def __str__(self) -> str:
        """`(order_id: int, to: str, *, copy: bool = False) -> str`"""
        return str(
            self.signature.replace(
                parameters=[
                    p.replace(annotation=as_written(p.annotation))
                    for p in self.signature.parameters.values()
                ],
                return_annotation=as_written(self.signature.return_annotation),
            )
        )

    def check(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """The caller's side: raise `InvalidArguments` unless a call with these would work.

        Values fit that are, or on arrival will be, what is declared: instances and
        their subclasses, an int for a float, a tuple for a list, a dict for a model.
        """
        if not self._resolved:
            self._resolve()
        if kwargs or not self._enough <= len(args) <= self._most:
            self._match(args, kwargs)
        for value, asked in zip(args, self._positional):  # noqa: B905
            if asked is not None and type(value) not in asked.accepts:
                self._check_slowly(args, kwargs)
                return
        if kwargs:
            for name, value in kwargs.items():
                asked = self._by_name.get(name, self._star_star)
                if asked is not None and type(value) not in asked.accepts:
                    self._check_slowly(args, kwargs)
                    return
        if self._star is not None and len(args) > self._most:
            self._check_slowly(args, kwargs)

    def check_partial(
        self,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        missing: int,
        later: Collection[str] = (),
    ) -> None:
        """As `check`, where the first `missing` arguments and those of the names `later` will
        be given when the task runs."""
        if not self._resolved:
            self._resolve()
        every = (None,) * missing + tuple(args)
        self._match(every, {**kwargs, **dict.fromkeys(later)})
        for name, asked, value in self._pairs(every, kwargs)[missing:]:
            if asked is not None and type(value) not in asked.accepts:
                try:
                    asked.check(value)
                except Exception as error:
                    self._refuse(name, value, error)

    def convert(
        self, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> tuple[Sequence[Any], dict[str, Any]]:
        """The worker's side: the arguments as the annotations declare them.

        Raises `InvalidArguments` when they do not fit the parameters or cannot be converted.
        """
        if not self._resolved:
            self._resolve()
        if kwargs or not self._enough <= len(args) <= self._most:
            self._match(args, kwargs)
        for value, asked in zip(args, self._positional):  # noqa: B905
            if asked is not None and type(value) not in asked.exact:
                return self._convert_slowly(args, kwargs)
        for name, value in kwargs.items():
            asked = self._by_name.get(name, self._star_star)
            if asked is not None and type(value) not in asked.exact:
                return self._convert_slowly(args, kwargs)
        if len(args) > self._most and self._star is not None:
            return self._convert_slowly(args, kwargs)
        return args, kwargs

    def redacted(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        """The arguments of a call as people may see them: without those marked as `Secret`."""
        if not self._resolved:
            self._resolve()
        if not self._secrets:
            return list(args), dict(kwargs)
        names = [*self._names, *[self._star_name] * (len(args) - self._most)]
        return (
            [
                HIDDEN if name in self._secrets else value
                for name, value in zip(names, args)  # noqa: B905
            ],
            {name: HIDDEN if self._is_secret(name) else value for name, value in kwargs.items()},
        )

    def shown(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        """The arguments of a call in one line of a log, redacted: `42, to='ann'`."""
        args, kwargs = self.redacted(args, kwargs)
        parts = [_line(repr(value), 80) for value in args]
        parts += [f"{name}={_line(repr(value), 80)}" for name, value in kwargs.items()]
        return _line(", ".join(parts), 300)

    def _is_secret(self, name: str) -> bool:
        """Whether the values of this name, as `_pairs` gives it, are secret."""
        return name in self._secrets or (
            name not in self._by_name
            and not name.startswith("*")
            and self._star_star_name in self._secrets
        )

    def convert_result(self, value: Any) -> Any:
        """A result off the wire as the return annotation declares it.

        One that cannot be converted is returned as it came: that the function does
        not return what it says is not the reader's mistake.
        """
        if not self._resolved:
            self._resolve()
        if self._returns is None or type(value) in self._returns.exact:
            return value
        try:
            return self._returns.convert(value)
        except Exception:
            return value

    def convert_item(self, value: Any) -> Any:
        """An item of a generator as its annotation declares it; otherwise as `convert_result`."""
        if not self._resolved:
            self._resolve()
        try:
            return value if self._yields is None else self._yields.convert(value)
        except Exception:
            return value

    def _match(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Raise `InvalidArguments` unless number and names of the arguments fit."""
        given = kwargs.keys()
        count = min(len(args), self._most)
        needed, allowed, again = self._shapes[count]
        if (
            (len(args) == count or self._takes_more)
            and needed <= given
            and (given.isdisjoint(again) if self._takes_any else given <= allowed)
        ):
            return
        try:
            self.signature.bind(*args, **kwargs)
        except TypeError as error:
            reason = str(error)
        else:
            # inspect is more lenient than Python with **keywords that repeat a positional-only.
            reason = "the arguments do not fit"
        raise InvalidArguments(f"{self.name}{self}: {reason}")

    def _check_slowly(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        for name, asked, value in self._pairs(args, kwargs):
            if asked is not None and type(value) not in asked.accepts:
                try:
                    asked.check(value)
                except Exception as error:
                    self._refuse(name, value, error)

    def _convert_slowly(
        self, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> tuple[Sequence[Any], dict[str, Any]]:
        values = []
        for name, asked, value in self._pairs(args, kwargs):
            if asked is not None and type(value) not in asked.exact:
                try:
                    value = asked.convert(value)
                except Exception as error:
                    self._refuse(name, value, error)
            values.append(value)
        count = len(args)
        return values[:count], dict(zip(kwargs, values[count:], strict=True))

    def _pairs(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> list[tuple[str, Conversion | None, Any]]:
        """Name, conversion and value of each argument, the positional ones first."""
        found = list(zip(self._names, self._positional, args))  # noqa: B905
        found += [(self._star_name, self._star, value) for value in args[self._most :]]
        found += [
            (name, self._by_name.get(name, self._star_star), value)
            for name, value in kwargs.items()
        ]
        return found

    def _refuse(self, name: str, value: Any, error: Exception) -> NoReturn:
        if self._is_secret(name):
            raise InvalidArguments(
                f"{self.name}{self}: {name} = {HIDDEN}: it does not fit"
            ) from None
        try:
            shown = _line(repr(value), 80)
        except Exception:
            # Nested too deeply, or with a repr of its own that fails.
            shown = f"({type(value).__name__})"
        reason = _line(str(error), 300)
        raise InvalidArguments(f"{self.name}{self}: {name} = {shown}: {reason}") from None

    def _resolve(self) -> None:
        """Work out the conversions. Two threads may do so at once; they find the same."""
        from taskline.conversion import conversion

        hints, problems = self._hints()
        if self.is_generator and "return" in hints:
            hints["yield"], hints["return"] = _of_generator(hints["return"])
        parameters = self.signature.parameters
        found: dict[str, Conversion | None] = {}
        self._secrets = frozenset(
            _as_in_call(parameter)
            for name, parameter in parameters.items()
            if is_secret(hints.get(name, parameter.annotation))
        )
        for name in [*parameters, "return", "yield"]:  # which no parameter can be called
            hint = hints.get(name, Any)
            if name in parameters and parameters[name].default is None:
                hint = Optional[hint]  # noqa: UP045
            try:
                found[name] = conversion(hint)
            except Exception as error:
                found[name] = None
                problems[name] = error
        self._returns, self._yields = found.pop("return"), found.pop("yield")
        for name, parameter in parameters.items():
            if parameter.kind is Parameter.VAR_POSITIONAL:
                self._star, self._star_name = found[name], f"*{name}"
            elif parameter.kind is Parameter.VAR_KEYWORD:
                self._star_star, self._star_star_name = found[name], f"**{name}"
            elif parameter.kind is not Parameter.POSITIONAL_ONLY:
                self._by_name[name] = found[name]
        self._positional = [found[name] for name in self._names]
        self._resolved = True
        for name, problem in problems.items():
            if name in parameters or name == "return":
                self._warn(name, problem)

    def _hints(self) -> tuple[dict[str, Any], dict[str, Exception]]:
        """The type hints, and why others could not be resolved; a batch task has its items'."""
        return hints_of(self.function)

    def _warn(self, name: str, error: Exception) -> None:
        import logging

        logging.getLogger("taskline").warning(
            "%s%s: the annotation of %s cannot be used, its values pass as they come: %s",
            self.name,
            self,
            name if name == "return" else f"parameter {name}",
            _line(str(error), 300),
        )


def _signature(function: Callable[..., Any], bind: bool) -> Signature:
    try:
        signature = inspect.signature(function)
    except ValueError:
        # Some built-in functions do not tell; they check their arguments themselves.
        anything = [
            Parameter("args", Parameter.VAR_POSITIONAL),
            Parameter("kwargs", Parameter.VAR_KEYWORD),
        ]
        return Signature(anything)
    if not bind:
        return signature
    parameters = list(signature.parameters.values())
    if parameters and parameters[0].kind in POSITIONAL:
        return signature.replace(parameters=parameters[1:])
    if parameters and parameters[0].kind is Parameter.VAR_POSITIONAL:
        return signature
    raise ConfigurationError(
        f"bind=True gives the task as first argument, but {signature} has none for it"
    )


def _without(signature: Signature, names: Collection[str]) -> Signature:
    """The signature without these parameters. Where others follow one with a default, as one
    with `Depends` has, their own order holds."""
    kept = [p for name, p in signature.parameters.items() if name not in names]
    return signature.replace(parameters=kept)


def _shape(
    taken: list[Parameter], rest: list[Parameter], never_given: Collection[str] = ()
) -> tuple[frozenset[Any], frozenset[str], frozenset[str]]:
    """Which of the rest must be given by keyword, which may be, and which names may not be at all.

    A positional-only one that must be given stands for itself: no keyword equals it.
    """
    by_name = {p.name: p for p in rest if p.kind is not Parameter.POSITIONAL_ONLY}
    needed = {name for name, p in by_name.items() if p.default is Parameter.empty}
    never = {p for p in rest if p.name not in by_name and p.default is Parameter.empty}
    again = {p.name for p in taken if p.kind is not Parameter.POSITIONAL_ONLY} | {*never_given}
    return frozenset(needed | never), frozenset(by_name), frozenset(again)


def _of_generator(hint: Any) -> tuple[Any, Any]:
    """What is yielded and what is returned in the end, of a generator's annotation."""
    parts = get_args(hint)
    return parts[0] if parts else Any, parts[2] if len(parts) == 3 else None


def _as_in_call(parameter: Parameter) -> str:
    """The parameter's name with its stars."""
    stars: dict[Any, str] = {Parameter.VAR_POSITIONAL: "*", Parameter.VAR_KEYWORD: "**"}
    return stars.get(parameter.kind, "") + parameter.name


def _line(text: str, limit: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 3] + "..."
