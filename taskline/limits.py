"""Rates and concurrency limits as they are declared: by a task, or by a queue."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from taskline.errors import ConfigurationError

if TYPE_CHECKING:
    from inspect import Signature

Key: TypeAlias = "str | Callable[..., object]"
"""The name of an argument, or what makes a key of all arguments."""

SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
SHARE = 0.05
"""Of what a rate lets through in its time: the burst, unless it is told."""
BRIEF = 10.0
"""Seconds: a rate for less than this time makes good what its workers were too late for. In a
longer one the burst is what comes in half a second and more."""
MANY = 40
"""Runs in its time for which that pays: of fewer, each has its moment."""
LATE = 0.02
"""Seconds that a worker may be late to look for the next token without one being lost."""
NONE = "none"
"""What says that there is to be no rate."""

_RATE = re.compile(
    r"(\d{1,9})\s*/\s*(\d{0,6})\s*(s|sec|seconds?|m|min|minutes?|h|hours?|d|days?)"
    r"(?:\s+burst\s+(\d{1,9}))?"
)


class Rate(msgspec.Struct, frozen=True):
    """So many runs in so many seconds, of which `burst` may begin at once."""

    number: int
    seconds: float
    burst: float
    text: str
    span: float = 0.0
    """The seconds, where it is counted in each span of so many: see `Ask`."""

    @property
    def per_second(self) -> float:
        return self.number / self.seconds

    def __str__(self) -> str:
        return self.text


class Limits(msgspec.Struct, frozen=True):
    """What one task or one queue declares."""

    rates: tuple[Rate, ...] = ()
    concurrency: int | None = None
    key: Key | None = None


def rates(option: str, value: object) -> tuple[Rate, ...]:
    """The rates of `"100/s"`, of `"10/s, 1000/h"`, or of a list of such; `"none"` has none.

    Raises `ConfigurationError`.
    """
    if isinstance(value, str):
        texts: Sequence[object] = [] if value.strip() == NONE else value.split(",")
    elif isinstance(value, (list, tuple)):
        texts = value
    else:
        texts = [value]
    return tuple(_rate(option, each) for each in texts)


def _rate(option: str, value: object) -> Rate:
    text = value.strip() if isinstance(value, str) else ""
    match = _RATE.fullmatch(text)
    if match is None or not int(match[1]) or match[2].strip("0") == "" != match[2]:
        raise ConfigurationError(
            f'{option}={value!r}: a rate is written as "100/s", "10/m", "1000/h" or "5/10s",'
            ' where needed with a burst: "100/s burst 20"'
        )
    number, seconds = int(match[1]), int(match[2] or 1) * SECONDS[match[3][0]]
    burst = float(match[4]) if match[4] else number * SHARE
    if match[4] and burst < 1:
        raise ConfigurationError(f"{option}={value!r}: a burst of 0 would let nothing through")
    burst = max(burst, 1 + LATE * number / seconds)
    counted = not match[4] and seconds < BRIEF and number >= MANY
    return Rate(number, seconds, burst, text, seconds if counted else 0.0)


def concurrency(option: str, value: object) -> int:
    """How many may run at a time: a whole number of at least 1."""
    if type(value) is not int or value < 1:
        raise ConfigurationError(f"{option}={value!r}: must be a whole number of at least 1")
    return value


def limits(rate: object, concurrent: object, key: Any) -> Limits | None:
    """What is declared with `rate`, `concurrency` and `limit_key`; None when nothing is."""
    if key is not None and not (isinstance(key, str) and key) and not callable(key):
        raise ConfigurationError(
            f"limit_key={key!r}: must be the name of an argument, or a function of the arguments"
        )
    if rate is None and concurrent is None:
        if key is not None:
            raise ConfigurationError("limit_key= goes with rate= or concurrency=")
        return None
    return Limits(
        () if rate is None else rates("rate", rate),
        None if concurrent is None else concurrency("concurrency", concurrent),
        key,
    )


def check_key(limits: Limits, signature: Signature, batch: bool) -> None:
    """Raise `ConfigurationError` where calls of this signature cannot have the key."""
    if limits.key is not None and batch:
        raise ConfigurationError("limit_key= is not for batch=: one run has many keys")
    if not isinstance(limits.key, str):
        return
    parameters = signature.parameters
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    if limits.key not in parameters and not takes_any:
        raise ConfigurationError(
            f"limit_key={limits.key!r}: the task has no such parameter, only"
            f" {', '.join(parameters) or 'none at all'}"
        )
