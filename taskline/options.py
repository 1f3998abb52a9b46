"""The options of tasks and of single calls: checked where they are given."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import msgspec

from taskline.config import nearest
from taskline.errors import ConfigurationError
from taskline.policy import RetryPolicy

if TYPE_CHECKING:
    from taskline.hooks import Middleware

_NAME_LENGTH = 200
_KEY_LENGTH = 512


class TaskOptions(TypedDict, total=False):
    """What `@app.task` takes besides `bind`; None is as good as nothing. Durations are seconds."""

    name: str | None
    queue: str | None
    priority: int | None
    retry: Any
    timeout: float | None
    soft_timeout: float | None
    expires: float | None
    result_ttl: float | None
    serializer: str | None
    ack: Literal["late", "early"]
    durable: bool
    fair_key: str | Callable[..., Any] | None
    unique: Literal["until_start", "until_end"] | float | None
    unique_by: str | Sequence[str] | Callable[..., Any] | None
    unique_for: float | None
    on_duplicate: Literal["join", "drop", "replace"] | None
    throttle: float | None
    debounce: float | None
    max_wait: float | None
    rate: str | Sequence[str] | None
    concurrency: int | None
    limit_key: str | Callable[..., object] | None
    middleware: Sequence[Middleware]


class SendOptions(TypedDict, total=False):
    """What `options()`, `apply_async()` and `send_task()` take, in the same way."""

    queue: str | None
    priority: int | None
    countdown: float | None
    eta: datetime | float | None
    expires: datetime | float | None
    timeout: float | None
    soft_timeout: float | None
    result_ttl: float | None
    serializer: str | None
    retry: Any
    headers: Mapping[str, Any] | None
    task_id: str | None
    idempotency_key: str | None
    unique: Literal["until_start", "until_end", False] | float | None
    unique_key: str | None
    unique_for: float | None
    on_duplicate: Literal["join", "drop", "replace"] | None
    throttle: float | None
    debounce: float | None
    max_wait: float | None


TASK_OPTIONS = (*TaskOptions.__annotations__, "bind")
SEND_OPTIONS = tuple(SendOptions.__annotations__)
UNIQUE_OPTIONS = SEND_OPTIONS[SEND_OPTIONS.index("idempotency_key") :]
"""Those that `taskline.unique` understands."""


class CallOptions(msgspec.Struct, frozen=True, omit_defaults=True):
    """How one task is sent. Durations are seconds, times Unix seconds."""

    queue: str
    priority: int
    serializer: str
    expires: float | None = None
    """From now; `expires_at` is a time."""
    expires_at: float | None = None
    countdown: float | None = None
    eta: float | None = None
    timeout: float | None = None
    soft_timeout: float | None = None
    result_ttl: float | None = None
    retry: dict[str, Any] | None = None
    headers: dict[str, Any] = {}
    task_id: str | None = None
    rule: Any = None
    """Which other calls it is not to meet, a `taskline.unique.Rule`; steps of workflows, which
    travel, have none."""
    fair: Any = None
    """What says whose message it is, a `taskline.fairness.FairKey`; steps have none either."""
    plain: bool = True
    """Nothing but queue, priority and serializer is set: the usual case."""

    def changed(self, given: Mapping[str, Any]) -> CallOptions:
        """These options with others over them, those that are None left out.

        Raises `ConfigurationError` for an unknown or wrong one.
        """
        refuse_unknown(given, SEND_OPTIONS)
        given = {option: value for option, value in given.items() if value is not None}
        changes: dict[str, Any] = {}
        for option, value in given.items():
            if option in _CHECKS:
                changes[option] = _CHECKS[option](option, value)
        rules = {option: given[option] for option in UNIQUE_OPTIONS if option in given}
        if rules:
            from taskline.unique import changed

            changes["rule"] = changed(self.rule, rules)
        if "countdown" in given and "eta" in given:
            raise ConfigurationError("countdown and eta are both given: give one of them")
        if "countdown" in given:
            changes["eta"] = None
        if "eta" in given:
            changes["countdown"] = None
        if isinstance(given.get("expires"), datetime):
            changes["expires_at"], changes["expires"] = moment("expires", given["expires"]), None
        elif "expires" in given:
            changes["expires_at"] = None
        found = msgspec.structs.replace(self, **changes, plain=False)
        _check_times(found)
        usual = CallOptions(found.queue, found.priority, found.serializer, plain=False)
        return msgspec.structs.replace(found, plain=found == usual)

    def under(self, rule: Any) -> CallOptions:
        """These options with a rule of `taskline.unique`; raises as `changed`."""
        found = msgspec.structs.replace(self, rule=rule, plain=self.plain and rule is None)
        _check_times(found)
        return found

    def shared_by(self, key: Any) -> CallOptions:
        """These options with a `taskline.fairness.FairKey`, or with None."""
        return msgspec.structs.replace(self, fair=key, plain=False)


def refuse_unknown(given: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Raise `ConfigurationError` for a name that is no option, with the nearest that is."""
    for option in given:
        if option not in known:
            raise ConfigurationError(f"unknown option {option!r}{nearest(option, known)}")


def queue_name(option: str, value: object) -> str:
    """A queue's name, if it is one."""
    name = identifier(option, value)
    if "," in name or ":" in name:
        raise ConfigurationError(f"{option}={name!r}: a queue's name has no comma and no colon")
    return name


def identifier(option: str, value: object) -> str:
    """A name of 1 to 200 characters, without blanks."""
    name = text(option, value)
    if len(name) > _NAME_LENGTH or not name.isprintable() or any(map(str.isspace, name)):
        raise ConfigurationError(
            f"{option}={name[:_NAME_LENGTH]!r}: must be 1 to {_NAME_LENGTH} characters, no blanks"
        )
    return name


def key_name(option: str, value: object) -> str:
    """A name of a lock or a key: any text of 1 to 512 bytes in UTF-8."""
    name = text(option, value)
    try:
        fits = len(name.encode()) <= _KEY_LENGTH
    except UnicodeEncodeError:
        fits = False
    if not fits:
        raise ConfigurationError(
            f"{option}={name[:_NAME_LENGTH]!r}: must be 1 to {_KEY_LENGTH} bytes of UTF-8"
        )
    return name


def text(option: str, value: object) -> str:
    """A string that is not empty."""
    if not isinstance(value, str) or not value:
        raise ConfigurationError(f"{option}={value!r}: must be a string that is not empty")
    return value


def priority_number(option: str, value: object) -> int:
    """A priority, 0 to 9."""
    if type(value) is not int or not 0 <= value <= 9:
        raise ConfigurationError(f"{option}={value!r}: must be a whole number from 0 (last) to 9")
    return value


def seconds(option: str, value: object) -> float:
    """A number of seconds that is finite and not negative."""
    found = _number(option, value, "a number of seconds")
    if found < 0:
        raise ConfigurationError(f"{option}={value!r}: must be 0 or more seconds")
    return found


def duration(option: str, value: object) -> float:
    """A number of seconds that is finite and more than 0."""
    found = _number(option, value, "a number of seconds")
    if found <= 0:
        raise ConfigurationError(f"{option}={value!r}: must be more than 0 seconds")
    return found


def moment(option: str, value: object) -> float:
    """A time as Unix seconds. A datetime without a time zone is this machine's local time."""
    if isinstance(value, datetime):
        return value.timestamp()
    return _number(option, value, "a datetime or Unix seconds")


def _number(option: str, value: object, what: str) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise ConfigurationError(f"{option}={value!r}: must be {what}")


def one_of(option: str, value: object, allowed: tuple[str, ...]) -> str:
    """One of a few words."""
    if value not in allowed:
        raise ConfigurationError(f"{option}={value!r}: must be {' or '.join(map(repr, allowed))}")
    return str(value)


def flag(option: str, value: object) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise ConfigurationError(f"{option}={value!r}: must be True or False")
    return value


def headers(option: str, value: object) -> dict[str, Any]:
    """A mapping of names to JSON values."""
    if not isinstance(value, Mapping) or not all(type(key) is str for key in value):
        raise ConfigurationError(f"{option}={value!r}: must map names to JSON values")
    return dict(value)


def _expiry(option: str, value: object) -> float:
    return moment(option, value) if isinstance(value, datetime) else duration(option, value)


def _policy(option: str, value: object) -> dict[str, Any]:
    """The policy of one call, as a message carries it."""
    policy = RetryPolicy.of(value)
    return policy.to_dict() if policy is not None else {}


def _check_times(options: CallOptions) -> None:
    for end, begin in (
        (options.expires_at, options.eta),
        (options.expires, options.countdown),
    ):
        if end is not None and begin is not None and end <= begin:
            raise ConfigurationError("expires is not after eta or countdown: it would never run")
    wait = None if options.rule is None else options.rule.wait
    if wait is not None and (options.eta is not None or options.countdown is not None):
        raise ConfigurationError("debounce says when it runs: leave out eta and countdown")
    if wait is not None and options.expires is not None and options.expires <= wait:
        raise ConfigurationError(
            f"expires={options.expires!r} is not more than debounce={wait!r}: it would never run"
        )
    if options.timeout is not None and options.soft_timeout is not None:
        check_timeouts(options.timeout, options.soft_timeout)


def check_timeouts(timeout: float | None, soft_timeout: float | None) -> None:
    """Raise `ConfigurationError` when the soft timeout would never come."""
    if timeout is not None and soft_timeout is not None and soft_timeout >= timeout:
        raise ConfigurationError(
            f"soft_timeout={soft_timeout!r}: must be less than timeout={timeout!r}"
        )


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "queue": queue_name,
    "priority": priority_number,
    "countdown": seconds,
    "eta": moment,
    "expires": _expiry,
    "timeout": duration,
    "soft_timeout": duration,
    "result_ttl": seconds,
    "serializer": text,
    "retry": _policy,
    "headers": headers,
    "task_id": identifier,
}
