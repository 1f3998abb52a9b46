"""Keys that all processes of an app share: small values, and counters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, overload

from taskline.backends.keys import KeyStore
from taskline.conversion import conversion
from taskline.errors import ConfigurationError, SerializationError
from taskline.options import duration, key_name
from taskline.serializers.structured import JSON

T = TypeVar("T")
D = TypeVar("D")


class KeyValues:
    """Values by key, in the result backend. Also `app.kv`.

        app.kv.set("rate", 7, ttl=60)
        app.kv.get("rate", type=int)
        if app.kv.increment(f"mails:{customer}", ttl=3600) > 100: ...

    A value is written as JSON: plain data, and what `type=` makes of it again
    (datetimes, bytes, structs, pydantic models, …). Values are neither signed nor
    compressed. All apps on one backend see the same keys.
    """

    __slots__ = ("_keys", "_limit")

    def __init__(self, keys: Callable[[], KeyStore], limit: int) -> None:
        self._keys = keys
        self._limit = limit

    @overload
    def get(self, key: str, default: Any = None) -> Any: ...
    @overload
    def get(self, key: str, default: None = None, *, type: type[T]) -> T | None: ...
    @overload
    def get(self, key: str, default: D, *, type: type[T]) -> T | D: ...
    def get(self, key: str, default: Any = None, *, type: Any = Any) -> Any:
        """The value of the key, as `type`; `default` when there is no such key, or it has ended.

        Raises `SerializationError` when the value is not of that type.
        """
        body = self._keys().get(key_name("key", key))
        if body is None:
            return default
        try:
            wanted = conversion(type)
        except (TypeError, NameError) as error:
            raise ConfigurationError(f"type={type!r}: {error}") from error
        try:
            value = JSON.loads(body)
            return value if wanted is None else wanted.convert(value)
        except Exception as error:
            raise SerializationError(f"the key {key!r} cannot be read: {error}") from error

    def set(
        self, key: str, value: Any, *, ttl: float | None = None, if_absent: bool = False
    ) -> bool:
        """Let the key have this value, for `ttl` seconds; None is without an end.

        With `if_absent` only when there is no such key. Returns whether it was set.
        Raises `SerializationError` for a value that JSON cannot hold, or one larger
        than the setting `max_message_size`.
        """
        key = key_name("key", key)
        try:
            body = JSON.dumps(value)
        except Exception as error:
            raise SerializationError(f"the key {key!r}: not to be written: {error}") from error
        if len(body) > self._limit:
            raise SerializationError(
                f"the key {key!r}: its {len(body)} bytes are more than max_message_size = "
                f"{self._limit}"
            )
        return self._keys().set(key, body, _ttl(ttl), if_absent=if_absent)

    def delete(self, key: str) -> bool:
        """Delete the key; returns whether there was one."""
        return self._keys().delete(key_name("key", key))

    def increment(self, key: str, by: int = 1, *, ttl: float | None = None) -> int:
        """Add to a counter, which begins at 0; returns what it then holds.

        A counter that begins ends `ttl` seconds later, None is without an end; one
        that is there keeps its end. So it counts within a window of time, for a rate.
        Raises `BackendError` when the key holds something else than a whole number.
        """
        if not isinstance(by, int) or isinstance(by, bool):
            raise ConfigurationError(f"by={by!r}: must be a whole number")
        return self._keys().increment(key_name("key", key), by, _ttl(ttl))

    def get_ttl(self, key: str) -> float | None:
        """Seconds that the key has left, `math.inf` for ever; None when there is no such key."""
        return self._keys().ttl(key_name("key", key))

    def set_ttl(self, key: str, ttl: float | None) -> bool:
        """Let the key end `ttl` seconds from now, or never; returns whether there is one."""
        return self._keys().expire(key_name("key", key), _ttl(ttl))


def _ttl(value: float | None) -> float | None:
    return None if value is None else duration("ttl", value)
