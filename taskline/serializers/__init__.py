"""Serializers: values to bytes and back, found by name.

`json` and `msgpack` are safe to read from anyone. All others may run code when
they read, unless their `Serializer` says that they do not, and are only
accepted from who holds a key.
"""

from __future__ import annotations

from taskline.errors import ConfigurationError
from taskline.serializers.base import Serializer
from taskline.serializers.structured import JSON, MSGPACK

__all__ = ["Serializer", "get", "register"]

ENTRY_POINTS = "taskline.serializers"

_registered: dict[str, Serializer] = {JSON.name: JSON, MSGPACK.name: MSGPACK}


def register(serializer: Serializer) -> None:
    """Make a serializer known by its name in this process, in place of one of the same name."""
    _registered[serializer.name] = serializer


def get(name: str) -> Serializer:
    """The serializer of this name.

    Looked for among the registered ones, the entry points of the group
    `taskline.serializers`, and kombu's registry, in this order; a name with a colon,
    `package.module:ATTRIBUTE`, says where it is. Raises `ConfigurationError` for a
    name that none of them knows.
    """
    found = (
        _registered.get(name)
        or _builtin(name)
        or _from_path(name)
        or _from_entry_point(name)
        or _from_kombu(name)
    )
    if found is None:
        raise ConfigurationError(f"unknown serializer {name!r}: known are {', '.join(_names())}")
    _registered[name] = found
    return found


def _builtin(name: str) -> Serializer | None:
    if name == "pickle":
        from taskline.serializers.pickled import PICKLE

        return PICKLE
    if name == "cloudpickle":
        from taskline.serializers.pickled import cloudpickle_serializer

        return cloudpickle_serializer()
    return None


def _from_path(name: str) -> Serializer | None:
    module, colon, attribute = name.partition(":")
    if not colon:
        return None
    from importlib import import_module

    try:
        found = getattr(import_module(module), attribute)
    except Exception as error:
        raise ConfigurationError(f"serializer {name!r} cannot be loaded: {error}") from error
    if not isinstance(found, Serializer):
        raise ConfigurationError(f"serializer {name!r} is no Serializer: {type(found).__name__}")
    return found


def _from_entry_point(name: str) -> Serializer | None:
    from importlib.metadata import entry_points

    for point in entry_points(group=ENTRY_POINTS, name=name):
        try:
            found = point.load()
        except Exception as error:
            raise ConfigurationError(
                f"serializer {name!r}: its entry point {point.value} cannot be loaded: {error!r}"
            ) from error
        if not isinstance(found, Serializer):
            raise ConfigurationError(
                f"serializer {name!r}: its entry point {point.value} is no Serializer, "
                f"but {type(found).__name__}"
            )
        return found
    return None


def _from_kombu(name: str) -> Serializer | None:
    from taskline.serializers.kombu_registry import find

    return find(name)


def _names() -> list[str]:
    from importlib.metadata import entry_points

    from taskline.serializers.kombu_registry import names

    plugged = {point.name for point in entry_points(group=ENTRY_POINTS)}
    return sorted({*_registered, "pickle", "cloudpickle", *plugged, *names()})
