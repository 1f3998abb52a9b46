"""When a failed task is tried again, and after how long.

A policy is evaluated across deliveries, by whoever ran the attempt, from what the
message tells of the attempts before: no worker sleeps for it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from datetime import timedelta
from math import isfinite
from typing import Any, TypeAlias

import msgspec

from taskline.config import nearest
from taskline.errors import ConfigurationError, Ignore, Reject, Retry

DEFAULT_MAX = 3
"""Retries where a policy says nothing of when to stop."""

_KEYS = ("for", "max", "never", "retry", "stop", "wait", "within")

Kind: TypeAlias = "type[BaseException] | str"
"""An exception class, or the dotted name of one that this process may not have loaded."""


class Exponential(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Waits that grow from `first` by `factor` to at most `max` seconds.

    Each is shortened by a random part of up to `jitter` (0.1 is a tenth), so that
    what failed together does not come back together.
    """

    first: float = 1.0
    factor: float = 2.0
    max: float = 600.0
    jitter: float = 0.1

    def seconds(self, attempt: int) -> float:
        """The wait after this attempt, the first being 1."""
        import random

        try:
            wait = min(self.max, self.first * self.factor ** (attempt - 1))
        except OverflowError:
            wait = self.max
        return wait * (1.0 - self.jitter * random.random())


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Whether and when a further attempt is made. Build it with `RetryPolicy.of`."""

    max: int | None = None
    """The most retries after the first attempt; None for no such limit."""
    within: float | None = None
    """A further attempt starts at most so many seconds after the first started."""
    wait: Any = Exponential()
    """Seconds, a tuple of them (the last repeats), an `Exponential`, or a tenacity wait."""
    only: tuple[Kind, ...] | None = None
    """The exceptions that are retried; None for every `Exception`, or what `retry` says."""
    never: tuple[Kind, ...] = ()
    """The exceptions that are not retried, whatever else is said."""
    stop: Any = None
    """A tenacity stop, or a function like one."""
    retry: Any = None
    """A tenacity retry, or a function like one."""

    @classmethod
    def of(cls, value: Any) -> RetryPolicy | None:
        """The policy that a `retry` option stands for.

        `value` is None (no policy); a number of retries; a mapping with some of `max`,
        `within`, `wait`, `for`, `never`, `stop` and `retry`; a tenacity stop, wait or
        retry, a tuple of these, or a `tenacity.Retrying`. Where it says nothing of when
        to stop there are 3 retries; where it says nothing of the wait, it grows from a
        second to ten minutes. Raises `ConfigurationError`.
        """
        if value is None or isinstance(value, RetryPolicy):
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            return cls(max=_retries(value))
        if isinstance(value, Mapping):
            return cls._parse(value, _named_exception)
        if isinstance(value, (bool, str, float)):
            raise wrong(f"{value!r} is not a policy: give a number of retries, or a mapping")
        from taskline.strategies import parts

        return cls._parse(parts(value), _named_exception)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> RetryPolicy:
        """The policy that `to_dict` wrote, from a message.

        Nothing is imported for it: an exception class that this process has not
        loaded cannot have been raised here. Raises `ConfigurationError`.
        """
        try:
            return cls._parse(value, _loaded_exception)
        except RecursionError:
            raise wrong("it is nested too deeply") from None

    def to_dict(self) -> dict[str, Any]:
        """The policy as plain data that a message carries.

        Raises `ConfigurationError` for what has no name elsewhere, such as a function
        of the caller's own.
        """
        found: dict[str, Any] = {"max": self.max}
        if self.within is not None:
            found["within"] = self.within
        if isinstance(self.wait, Exponential):
            if self.wait != Exponential():
                found["wait"] = {"exponential": msgspec.to_builtins(self.wait)}
        elif isinstance(self.wait, tuple):
            found["wait"] = list(self.wait)
        else:
            found["wait"] = _plain(self.wait)
        if self.only is not None:
            found["for"] = [exception_name(kind) for kind in self.only]
        if self.never:
            found["never"] = [exception_name(kind) for kind in self.never]
        if self.stop is not None:
            found["stop"] = _plain(self.stop)
        if self.retry is not None:
            found["retry"] = _plain(self.retry)
        return found

    @property
    def judges_results(self) -> bool:
        """Whether it may ask for a further attempt after a success."""
        return self.retry is not None

    def decide(
        self,
        *,
        attempt: int,
        error: BaseException | None,
        result: Any = None,
        first_run: float,
        waited: float,
        now: float,
    ) -> float | None:
        """Seconds until the next attempt, or None when there is none.

        `attempt` is the number of the one that ended, the first being 1, with `error`
        or with `result`. `first_run` is when the first started and `now` when this
        ended, in Unix seconds; `waited` are the seconds between attempts so far.
        A raised `Retry` is granted unless it is time to stop, and may name its own wait.
        Raises `ConfigurationError` when a function of the policy fails.
        """
        if isinstance(error, (Reject, Ignore)):
            return None
        state: Any = None
        if self.stop is not None or self.retry is not None or callable(self.wait):
            from taskline.strategies import call_state

            state = call_state(self, attempt, error, result, first_run, waited, now)
        asked = error if isinstance(error, Retry) else None
        if asked is None and not self._again(error, state):
            return None
        wait = self._wait(attempt, state) if asked is None or asked.after is None else asked.after
        if state is not None:
            state.upcoming_sleep = wait
        if not (asked and asked.always) and self._stops(attempt, wait, now - first_run, state):
            return None
        return wait

    def _again(self, error: BaseException | None, state: Any) -> bool:
        """Whether this end of an attempt is of a kind that is retried."""
        if error is not None and _is_one(error, self.never):
            return False
        if self.only is not None and not (error is not None and _is_one(error, self.only)):
            return False
        if self.retry is not None:
            return bool(_call(self.retry, state))
        return self.only is not None or isinstance(error, Exception)

    def _wait(self, attempt: int, state: Any) -> float:
        wait = self.wait
        if isinstance(wait, Exponential):
            return wait.seconds(attempt)
        if isinstance(wait, tuple):
            seconds: float = wait[min(attempt, len(wait)) - 1]
            return seconds
        if callable(wait):
            wait = _call(wait, state)
        return _seconds("wait", wait)

    def _stops(self, attempt: int, wait: float, passed: float, state: Any) -> bool:
        if self.max is not None and attempt > self.max:
            return True
        if self.within is not None and passed + wait > self.within:
            return True
        return self.stop is not None and bool(_call(self.stop, state))

    @classmethod
    def _parse(cls, given: Mapping[str, Any], find: Callable[[str], Kind]) -> RetryPolicy:
        for key in given:
            if key not in _KEYS:
                raise wrong(f"unknown key {key!r}{nearest(str(key), _KEYS)}")
        bounded = any(key in given for key in ("max", "within", "stop"))
        fields: dict[str, Any] = {} if bounded else {"max": DEFAULT_MAX}
        for key, value in given.items():
            if value is None:
                continue
            if key == "max":
                fields["max"] = _retries(value)
            elif key == "within":
                fields["within"] = _seconds("within", value)
            elif key == "wait":
                fields["wait"] = _parse_wait(value, find)
            elif key in ("for", "never"):
                fields["only" if key == "for" else "never"] = _kinds(key, value, find)
            else:
                fields[key] = _strategy(key, value, find)
        return cls(**fields)


def exception_name(kind: Kind) -> str:
    """The dotted name of an exception class; raises `ConfigurationError` for a local one."""
    if isinstance(kind, str):
        return kind
    if "<locals>" in kind.__qualname__:
        raise _cannot_travel(kind.__qualname__)
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


def _plain(value: Any) -> Any:
    if isinstance(value, (int, float)):
        return value
    from taskline.strategies import dump

    found = dump(value)
    if found is None:
        raise _cannot_travel(repr(value))
    return found


def _strategy(role: str, value: Any, find: Callable[[str], Kind]) -> Any:
    from taskline.strategies import checked, restore

    if isinstance(value, (str, Mapping)):
        return restore(role, value, find)
    return checked(role, value)


def _parse_wait(value: Any, find: Callable[[str], Kind]) -> Any:
    if isinstance(value, (int, float, timedelta)):
        return _seconds("wait", value)
    if isinstance(value, (list, tuple)) and value:
        return tuple(_seconds("wait", item) for item in value)
    if isinstance(value, Mapping) and list(value) == ["exponential"]:
        try:
            found = msgspec.convert(value["exponential"], Exponential)
        except msgspec.ValidationError as error:
            raise wrong(f"wait: exponential = {value['exponential']!r}: {error}") from None
        if min(found.first, found.factor, found.max, found.jitter) < 0 or found.jitter > 1:
            raise wrong(f"wait: {found}: numbers from 0, and jitter up to 1")
        return found
    return value if isinstance(value, Exponential) else _strategy("wait", value, find)


def _kinds(key: str, value: Any, find: Callable[[str], Kind]) -> tuple[Kind, ...]:
    items = value if isinstance(value, (list, tuple, set, frozenset)) else [value]
    found: list[Kind] = []
    for item in items:
        if isinstance(item, str):
            found.append(find(item))
        elif isinstance(item, type) and issubclass(item, BaseException):
            found.append(item)
        else:
            raise wrong(f"{key}: {item!r} is not an exception class or the dotted name of one")
    return tuple(found)


def _is_one(error: BaseException, kinds: tuple[Kind, ...]) -> bool:
    for kind in kinds:
        known = _loaded_exception(kind) if isinstance(kind, str) else kind
        if not isinstance(known, str) and isinstance(error, known):
            return True
    return False


def _loaded_exception(name: str) -> Kind:
    """The class of this dotted name if its module is loaded, else the name."""
    module, _, path = name.rpartition(".")
    found: Any = None
    while True:
        if (module or "builtins") in sys.modules:
            found = sys.modules[module or "builtins"]
            break
        if not module:
            return name
        module, _, outer = module.rpartition(".")
        path = f"{outer}.{path}"
    for part in path.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) and issubclass(found, BaseException) else name


def _named_exception(name: str) -> Kind:
    """The class of this dotted name, imported; raises `ConfigurationError` when there is none."""
    from importlib import import_module

    found = _loaded_exception(name)
    module = name
    if not all(part.isidentifier() for part in name.split(".")):
        module = ""
    while isinstance(found, str) and "." in module:
        module = module.rpartition(".")[0]
        try:
            import_module(module)
        except ImportError:
            continue
        found = _loaded_exception(name)
        break
    if isinstance(found, str):
        raise wrong(f"there is no exception {name!r}")
    return found


def _retries(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise wrong(f"max = {value!r}: it is a number of retries, from 0")


def _seconds(what: str, value: Any) -> float:
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = float(value)
        if isfinite(seconds) and seconds >= 0:
            return seconds
    raise wrong(f"{what} = {value!r}: it is a number of seconds, from 0")


def _call(function: Callable[[Any], Any], state: Any) -> Any:
    try:
        return function(state)
    except Exception as error:
        raise wrong(f"{function!r} failed: {error!r}") from error


def wrong(what: str) -> ConfigurationError:
    """An error that says on one line what is wrong with a policy."""
    text = " ".join(what.split())
    return ConfigurationError(f"retry policy: {text if len(text) <= 300 else text[:297] + '...'}")


def _cannot_travel(what: str) -> ConfigurationError:
    return wrong(f"{what} cannot travel in a message: declare it on the task")
