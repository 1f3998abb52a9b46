"""Arguments of a task, from the words of a command line."""

from __future__ import annotations

import typing
from typing import TYPE_CHECKING, Any

import click
import msgspec

if TYPE_CHECKING:
    from taskline.task import Task


def parse(text: str) -> Any:
    """The value of a word: JSON where it is JSON, else the text itself."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return text


def positional(option: str, text: str) -> list[Any]:
    """The JSON array given to `--args`."""
    value = _decode(option, text)
    if not isinstance(value, list):
        raise click.BadParameter(f"{text!r} is not a JSON array: write '[1, 2]'", param_hint=option)
    return value


def keywords(option: str, text: str) -> dict[str, Any]:
    """The JSON object given to `--kwargs`."""
    value = _decode(option, text)
    if not isinstance(value, dict):
        raise click.BadParameter(
            f"""{text!r} is not a JSON object: write '{{"name": 1}}'""", param_hint=option
        )
    return value


def _decode(option: str, text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise click.BadParameter(f"{text!r} is not JSON: {error}", param_hint=option) from None


def pairs(option: str, words: tuple[str, ...]) -> dict[str, str]:
    """The names and words given as `--kw NAME=VALUE`."""
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name.isidentifier():
            raise click.BadParameter(f"{word!r} is not NAME=VALUE", param_hint=option)
        if name in found:
            raise click.BadParameter(f"{name!r} is given twice", param_hint=option)
        found[name] = value
    return found


class Types:
    """What a task's parameters are annotated with."""

    def __init__(self, task: Task[..., Any]) -> None:
        parameters = task.signature.signature.parameters.values()
        try:
            hints = typing.get_type_hints(task.function)
        except Exception:
            # An annotation that cannot be resolved: the words are read as JSON or text.
            hints = {}
        self._positional: list[Any] = []
        self._named: dict[str, Any] = {}
        self._rest = self._others = Any
        for each in parameters:
            kind = hints.get(each.name, Any)
            if each.kind is each.VAR_POSITIONAL:
                self._rest = kind
            elif each.kind is each.VAR_KEYWORD:
                self._others = kind
            else:
                self._named[each.name] = kind
                if each.kind is not each.KEYWORD_ONLY:
                    self._positional.append(kind)

    def at(self, index: int) -> Any:
        """The type of a positional argument."""
        return self._positional[index] if index < len(self._positional) else self._rest

    def of(self, name: str) -> Any:
        """The type of a keyword argument."""
        return self._named.get(name, self._others)


def fit(text: str, kind: Any) -> Any:
    """The value of a word for a parameter of this type: `1` is text where text is declared."""
    value = parse(text)
    if isinstance(value, str) or _fits(value, kind) or not _fits(text, kind):
        return value
    return text


def _fits(value: Any, kind: Any) -> bool:
    try:
        msgspec.convert(value, kind)
    except (msgspec.ValidationError, TypeError):
        return False
    return True
