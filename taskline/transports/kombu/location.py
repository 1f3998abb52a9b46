"""Where the broker is and how its queues are made: a kombu URL with Taskline's options."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode

import msgspec

from taskline.errors import ConfigurationError
from taskline.registry import Spec, hide_password

if TYPE_CHECKING:
    from kombu.connection import Connection

PREFIX = "kombu+"
HEARTBEAT = 10.0
"""Seconds between heartbeats, at most."""
_NUMBERS = ("priorities", "heartbeat", "timeout")
_OWN = ("prefix", "queue_type", *_NUMBERS)
_EXTRAS = {
    "kafka": "confluentkafka",
    "rediss": "redis",
    "sentinel": "redis",
    "sqla": "sqlalchemy",
}
"""kombu's extras that have other names than the scheme."""


class Location(msgspec.Struct, frozen=True):
    """One broker. Durations are seconds."""

    url: str
    """kombu's, with the password."""
    transport_options: dict[str, Any] = {}
    prefix: str = ""
    """Begins the names of all queues at the broker."""
    queue_type: str = "classic"
    """RabbitMQ's: `classic` or `quorum`."""
    priorities: int | None = None
    """`x-max-priority` of RabbitMQ's classic queues; 0 makes queues without priorities. None is
    10, or 0 where Celery's protocol is spoken: so Celery declares its queues."""
    heartbeat: float = HEARTBEAT
    timeout: float = 5.0
    """For a connection, for an answer, and for all tries of one send."""
    bare: frozenset[str] = frozenset()
    """Queues, by their names at the broker, that are made without priorities."""

    def connection(self, heartbeat: float = 0.0, **options: Any) -> Connection:
        """A connection of kombu's, not opened yet. Raises `ConfigurationError`."""
        from kombu.connection import Connection

        try:
            made = Connection(
                self.url,
                heartbeat=heartbeat,
                connect_timeout=self.timeout,
                transport_options={**options, **self.transport_options},
            )
            made.transport  # noqa: B018  kombu imports the driver here
        except Exception as error:
            raise ConfigurationError(f"kombu cannot open {self}: {self._why(error)}") from None
        return made

    def _why(self, error: Exception) -> str:
        """What is wrong and what to do, on one line."""
        told = " ".join(str(error).replace(self.url, str(self)).split()) or type(error).__name__
        scheme = self.url.partition("://")[0].partition("+")[0].lower()
        if isinstance(error, ImportError):
            from importlib.metadata import metadata

            extra = _EXTRAS.get(scheme, scheme)
            if extra in (metadata("kombu").get_all("Provides-Extra") or ()):
                return f"{told}; install its driver: pip install 'kombu[{extra}]'"
        elif isinstance(error, KeyError) and "No such transport" in told:
            from kombu.transport import TRANSPORT_ALIASES

            there = sorted({name.lower() for name in TRANSPORT_ALIASES})
            return f"it has no transport {scheme!r}; it has: {', '.join(there)}"
        elif unknown := re.search(r"unexpected keyword argument '(\w+)'", told):
            own = ", ".join(_OWN)
            return f"it has no option {unknown[1]!r}; Taskline's are: {own}"
        return told

    def __str__(self) -> str:
        return ";".join(hide_password(each) for each in self.url.partition("?")[0].split(";"))


def locate(spec: Spec) -> Location:
    """The location in `kombu+<kombu URL>?option=…`, or in a mapping with `url`.

    kombu's own URL parameters stay in the URL. Raises `ConfigurationError`.
    """
    options: dict[str, Any]
    if isinstance(spec, str):
        broker, _, query = spec.partition("?")
        pairs = parse_qsl(query, keep_blank_values=True)
        options = {name: value for name, value in pairs if name in _OWN}
        rest = [(name, value) for name, value in pairs if name not in _OWN]
        options["url"] = broker + ("?" + urlencode(rest) if rest else "")
    elif isinstance(spec, Mapping):
        options = {key: value for key, value in spec.items() if key not in ("type", "params")}
        options.update(spec.get("params") or {})
    else:
        raise ConfigurationError(f"one URL or mapping is needed, not {type(spec).__name__}")
    url: Any = options.get("url")
    if not isinstance(url, str) or "://" not in url:
        raise ConfigurationError("a kombu broker needs a 'url', such as amqp://localhost//")
    # kombu has URLs with a plus too (sqla+postgresql://): only the first one is ours.
    options["url"] = ";".join(each.removeprefix(PREFIX) for each in url.split(";"))
    for name in _NUMBERS:
        value = options.get(name)
        if isinstance(value, str):
            try:
                options[name] = int(value) if name == "priorities" else float(value)
            except ValueError:
                raise ConfigurationError(f"kombu option {name}={value!r}: not a number") from None
    try:
        found = msgspec.convert(options, Location)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"kombu broker: {error}") from None
    names = [name for name in Location.__struct_fields__ if name != "bare"]
    unknown = [name for name in options if name not in names]
    if unknown:
        known = ", ".join(names)
        raise ConfigurationError(f"kombu has no option {unknown[0]!r}; it has: {known}")
    return _checked(found)


def _checked(found: Location) -> Location:
    if found.queue_type not in ("classic", "quorum"):
        raise ConfigurationError(
            f"kombu option queue_type={found.queue_type!r}: choose classic or quorum"
        )
    if found.priorities is not None and not 0 <= found.priorities <= 255:
        raise ConfigurationError(f"kombu option priorities={found.priorities}: 0 to 255")
    if found.timeout <= 0 or found.heartbeat < 0:
        raise ConfigurationError("kombu options timeout and heartbeat are seconds, more than 0")
    if not re.fullmatch(r"[\w.:-]*", found.prefix):
        raise ConfigurationError(
            f"kombu option prefix={found.prefix!r}: letters, digits and . : _ - only"
        )
    return found
