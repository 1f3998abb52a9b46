"""tenacity's stop, wait and retry objects: what they are, how they are asked, how they travel."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import tenacity
from tenacity.retry import retry_base
from tenacity.stop import stop_base
from tenacity.wait import wait_base

from taskline.policy import exception_name, wrong

if TYPE_CHECKING:
    from taskline.policy import Kind, RetryPolicy

_ROLES: dict[str, type] = {"stop": stop_base, "wait": wait_base, "retry": retry_base}

_EXPONENTIAL = {"multiplier": "multiplier", "max": "max", "exp_base": "exp_base", "min": "min"}
_TYPES = {"exception_types": "exception_types"}

# What travels: the parameters of each class, and the attributes that hold them.
_FORMS: dict[str, dict[str, str]] = {
    "stop_after_attempt": {"max_attempt_number": "max_attempt_number"},
    "stop_after_delay": {"max_delay": "max_delay"},
    "stop_before_delay": {"max_delay": "max_delay"},
    "wait_none": {},
    "wait_fixed": {"wait": "wait_fixed"},
    "wait_random": {"min": "wait_random_min", "max": "wait_random_max"},
    "wait_incrementing": {"start": "start", "increment": "increment", "max": "max"},
    "wait_exponential": _EXPONENTIAL,
    "wait_random_exponential": _EXPONENTIAL,
    "wait_exponential_jitter": {**_EXPONENTIAL, "jitter": "jitter"},
    "retry_if_exception_type": _TYPES,
    "retry_if_not_exception_type": _TYPES,
    "retry_unless_exception_type": _TYPES,
    "retry_if_exception_cause_type": {"exception_types": "exception_cause_types"},
}
_COMBINATIONS = {
    "stop_any": "stops",
    "stop_all": "stops",
    "wait_combine": "wait_funcs",
    "wait_chain": "strategies",
    "retry_any": "retries",
    "retry_all": "retries",
}
_CONSTANTS = ("stop_never", "retry_never", "retry_always")


def parts(value: Any) -> dict[str, Any]:
    """The parts of a policy by their role: of a Retrying, a strategy, or several.

    Raises `ConfigurationError` for anything else.
    """
    if isinstance(value, tenacity.BaseRetrying):
        return {"stop": value.stop, "wait": value.wait, "retry": value.retry}
    found: dict[str, Any] = {}
    for item in value if isinstance(value, (tuple, list)) else (value,):
        role = next((role for role, base in _ROLES.items() if isinstance(item, base)), None)
        if role is None:
            raise wrong(
                f"{item!r} is not a number, a mapping, or a stop, wait or retry of tenacity's; "
                "a function is given by its role, as {'wait': function}"
            )
        if role in found:
            raise wrong(f"there are two of {role}: combine them with |, & or +")
        found[role] = item
    if not found:
        raise wrong("it is empty: None is no policy, and 0 no retries")
    return found


def checked(role: str, value: Any) -> Any:
    """A strategy for this role; raises `ConfigurationError` for what cannot be one."""
    for other, base in _ROLES.items():
        if isinstance(value, base) and other != role:
            raise wrong(f"{role} = {value!r}: this is a {other}")
    if not callable(value):
        raise wrong(f"{role} = {value!r}: neither one of tenacity's nor a function")
    if inspect.iscoroutinefunction(value) or inspect.iscoroutinefunction(type(value).__call__):
        raise wrong(f"{role} = {value!r}: it is async, and a policy is evaluated without a loop")
    return value


def call_state(
    policy: RetryPolicy,
    attempt: int,
    error: BaseException | None,
    result: Any,
    first_run: float,
    waited: float,
    now: float,
) -> tenacity.RetryCallState:
    """The state in which tenacity's objects see the attempt that ended; see `decide`."""
    given = {"stop": policy.stop, "retry": policy.retry}
    if callable(policy.wait):
        given["wait"] = policy.wait
    retrying = tenacity.Retrying(**{role: one for role, one in given.items() if one is not None})
    state = tenacity.RetryCallState(retrying, None, (), {})
    state.start_time = first_run
    state.attempt_number = attempt
    state.idle_for = waited
    outcome = tenacity.Future(attempt)
    if error is None:
        outcome.set_result(result)
    else:
        outcome.set_exception(error)
    state.outcome, state.outcome_timestamp = outcome, now
    return state


def dump(value: Any) -> Any:
    """A strategy as plain data, or None when it is not one that can travel."""
    for name in _CONSTANTS:
        if value is getattr(tenacity, name):
            return name
    name = type(value).__name__
    if type(value) is not getattr(tenacity, name, None):
        return None
    if name in _COMBINATIONS:
        items = [dump(item) for item in getattr(value, _COMBINATIONS[name])]
        return None if None in items else {name: items}
    if name not in _FORMS:
        return None
    arguments: dict[str, Any] = {}
    for parameter, attribute in _FORMS[name].items():
        held = getattr(value, attribute)
        if parameter == "exception_types":
            held = [exception_name(kind) for kind in (held if isinstance(held, tuple) else [held])]
        arguments[parameter] = held
    return {name: arguments}


def restore(role: str, data: Any, find: Callable[[str], Kind]) -> Any:
    """The strategy that `dump` wrote, for this role; `find` gives exceptions by their names.

    Makes only what this module lists. Raises `ConfigurationError` for anything else.
    """
    name: Any = data
    arguments: Any = {}
    if isinstance(data, Mapping) and len(data) == 1:
        ((name, arguments),) = data.items()
    if isinstance(name, str) and name.partition("_")[0] == role:
        if name in _CONSTANTS and data is name:
            return getattr(tenacity, name)
        if name in _COMBINATIONS and isinstance(arguments, (list, tuple)) and arguments:
            items = [restore(role, item, find) for item in arguments]
            return getattr(tenacity, name)(*items)
        if name in _FORMS and isinstance(arguments, Mapping):
            form = _FORMS[name]
            if all(
                parameter in form and _fits(parameter, value)
                for parameter, value in arguments.items()
            ):
                return _make(name, arguments, find)
    raise wrong(f"{role} = {data!r}: no strategy of tenacity's that Taskline knows")


def _make(name: str, arguments: Mapping[str, Any], find: Callable[[str], Kind]) -> Any:
    given = dict(arguments)
    if "exception_types" in given:
        kinds = [find(kind) for kind in given["exception_types"]]
        # A name without a class here matches nothing: it cannot have been raised here.
        given["exception_types"] = tuple(kind for kind in kinds if not isinstance(kind, str))
    try:
        return getattr(tenacity, name)(**given)
    except (TypeError, ValueError) as error:
        raise wrong(f"{name}: {error}") from None


def _fits(parameter: str, value: Any) -> bool:
    if parameter == "exception_types":
        return isinstance(value, (list, tuple)) and all(isinstance(kind, str) for kind in value)
    return isinstance(value, (int, float)) and not isinstance(value, bool)
