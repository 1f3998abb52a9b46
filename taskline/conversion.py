"""One annotation: which values fit it, and how a value off the wire becomes what it declares."""

from __future__ import annotations

import os
import sys
import typing
from collections import deque
from collections.abc import Callable
from datetime import date
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, NewType, TypeVar, Union, get_args, get_origin

import msgspec

from taskline.serializers.structured import plain

_NO_TYPES: frozenset[type] = frozenset()
_SCALARS = (str, int, float, bytes)
_BYTES = (bytes, bytearray, memoryview)


class Conversion:
    """What an annotation asks of a value.

    A value whose type is in `accepts` fits, and one whose type is in `exact` is
    already what is declared: both are shortcuts for `check` and `convert`.
    """

    __slots__ = ("_adapter", "_class", "_hint", "accepts", "exact")

    def __init__(self, hint: Any) -> None:
        """Raises `TypeError` or `NameError` for an annotation that cannot be worked with."""
        if _holds(hint, _is_bare_protocol):
            raise TypeError("a protocol within it is not runtime_checkable")
        self._hint = hint
        self._class = hint if _is_class(hint) and hint is not date else None
        self._adapter = None
        self.exact, self.accepts = _shortcuts(hint)
        try:
            # The decoder is not used: making one is how msgspec tells what it can handle.
            msgspec.json.Decoder(hint, dec_hook=revive)
        except TypeError:
            if "pydantic" not in sys.modules or not _holds(hint, _is_model):
                raise
            from pydantic import TypeAdapter

            self._adapter = TypeAdapter(hint)

    def check(self, value: Any) -> None:
        """Raise an exception, a `ValueError` or such, if a caller may not give this value."""
        hint = self._hint
        if self._class is not None:
            if isinstance(value, self._class):
                return
            if _is_model(hint):
                revive(hint, value)
                return
        if self._adapter is not None:
            self._adapter.validate_python(value, **_names())
            return
        try:
            msgspec.convert(value, hint, builtin_types=_BYTES, dec_hook=revive)
        except Exception as error:
            # What is within may still be a subclass, or a set for a list, that arrives well.
            try:
                reduced = msgspec.to_builtins(value, builtin_types=_BYTES, enc_hook=plain)
                msgspec.convert(reduced, hint, builtin_types=_BYTES, dec_hook=revive)
            except Exception:
                raise error from None

    def convert(self, value: Any) -> Any:
        """The value as declared; raises an exception, a `ValueError` or such, if it cannot be."""
        hint = self._hint
        if self._class is not None:
            if isinstance(value, self._class):
                return value
            if _is_model(hint):
                # pydantic's dataclasses too, which msgspec would fill without validation.
                return revive(hint, value)
        if self._adapter is not None:
            data = msgspec.json.encode(value, enc_hook=plain)
            return self._adapter.validate_json(data, **_names())
        return msgspec.convert(value, hint, str_keys=True, dec_hook=revive)


def conversion(hint: Any) -> Conversion | None:
    """What the annotation asks of a value; None when anything will do.

    Raises as `Conversion` does.
    """
    hint = _unwrapped(hint)
    if hint is Any or hint is object or isinstance(hint, (TypeVar, typing.ParamSpecArgs)):
        return None
    if isinstance(hint, typing.ParamSpecKwargs) or _is_bare_protocol(hint):
        return None
    return Conversion(hint)


def revive(hint: Any, value: Any) -> Any:
    """A value as an instance of a type that msgspec does not know; its `dec_hook`.

    Raises `TypeError` or `ValueError` when that cannot be.
    """
    kind: Any = get_origin(hint) or hint
    if kind is hint and isinstance(value, kind):
        return value
    validator = getattr(kind, "__pydantic_validator__", None)
    if validator is not None:
        # As JSON, so that strict models read their dates from text too.
        return validator.validate_json(msgspec.json.encode(value, enc_hook=plain), **_names())
    if not isinstance(kind, type):
        raise TypeError(f"Expected `{hint}`, got `{type(value).__name__}`")
    if issubclass(kind, (deque, dict)):
        plain_kind: Any = list if issubclass(kind, deque) else dict
        inner = plain_kind[get_args(hint)] if get_args(hint) else plain_kind
        if isinstance(value, deque):
            value = list(value)
        found: Any = msgspec.convert(value, inner, str_keys=True, dec_hook=revive)
        if issubclass(kind, deque):
            return kind(found)
        # Not kind(found): a defaultdict takes its factory there.
        made = kind()
        made.update(found)
        return made
    if isinstance(value, str) and issubclass(kind, os.PathLike):
        from pathlib import Path

        return Path(value) if kind is os.PathLike else hint(value)
    if type(value) in _SCALARS and issubclass(kind, type(value)):
        return hint(value)
    if isinstance(value, kind):
        return value
    raise TypeError(f"Expected `{kind.__qualname__}`, got `{type(value).__name__}`")


@cache
def _names() -> dict[str, Any]:
    """What makes pydantic take fields by name, as we write them, and by alias, as others may."""
    import pydantic

    version = tuple(int(part) for part in pydantic.VERSION.split(".")[:2])
    return {"by_alias": True, "by_name": True} if version >= (2, 11) else {}


def _unwrapped(hint: Any) -> Any:
    """The hint without the wrappings that say nothing of the values."""
    while True:
        if isinstance(hint, NewType):
            hint = hint.__supertype__
        elif get_origin(hint) is Annotated and not any(
            isinstance(note, msgspec.Meta) for note in hint.__metadata__
        ):
            hint = hint.__origin__
        elif type(hint).__name__ == "TypeAliasType":
            hint = hint.__value__
        elif hint is None:
            return NoneType
        else:
            return hint


def _shortcuts(hint: Any) -> tuple[frozenset[type], frozenset[type]]:
    """The types whose values are as declared, and those that fit, without a closer look."""
    hint = _unwrapped(hint)
    if get_origin(hint) in (Union, UnionType):
        exact, accepts = _NO_TYPES, _NO_TYPES
        for member in get_args(hint):
            more, fit = _shortcuts(member)
            exact |= more
            accepts |= fit
        return exact, accepts
    if hint is float:
        return frozenset({float}), frozenset({float, int})
    if hint is int:
        return frozenset({int, bool}), frozenset({int, bool})
    if _is_class(hint):
        return frozenset({hint}), frozenset({hint})
    return _NO_TYPES, _NO_TYPES


def _is_class(hint: Any) -> bool:
    """Whether it is a class that `isinstance` works with."""
    # On Python 3.10 list[int] passes for a type.
    if not isinstance(hint, type) or get_origin(hint) is not None:
        return False
    return not typing.is_typeddict(hint) and not _is_bare_protocol(hint)


def _is_bare_protocol(hint: Any) -> bool:
    """Whether it is a protocol whose instances cannot be told at run time."""
    return getattr(hint, "_is_protocol", False) and not getattr(hint, "_is_runtime_protocol", False)


def _is_model(hint: Any) -> bool:
    """Whether pydantic validates it."""
    return hasattr(hint, "__pydantic_validator__")


def _holds(hint: Any, is_one: Callable[[Any], bool]) -> bool:
    """Whether the annotation is, or has anywhere within it, what `is_one` says."""
    return is_one(hint) or any(_holds(part, is_one) for part in get_args(hint))
