"""Which calls of a task are not to meet: the options that say so, and the key of each call.

`taskline.claims` sees to it where calls are sent, `taskline.worker.claims` where they run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from taskline.control.documents import why_no_keys
from taskline.errors import ConfigurationError, SerializationError
from taskline.message import Header, Unique
from taskline.options import duration, key_name, one_of, text
from taskline.serializers.structured import plain

if TYPE_CHECKING:
    from taskline.app import Taskline
    from taskline.signature import TaskSignature

DAY = 86_400.0
"""Seconds for which a key is kept at most, unless `unique_for` says otherwise."""

KINDS = ("unique", "throttle", "debounce", "idempotency_key")

_UNTIL = {"until_start": "start", "until_end": "end"}


class Rule(msgspec.Struct, frozen=True):
    """What was asked for, checked. Durations are seconds."""

    given: dict[str, Any]
    """The options, so that those of a call can be laid over those of its task."""
    until: str
    """As in `Unique`."""
    ttl: float | None = None
    """None: as the settings say."""
    drop: bool = False
    wait: float | None = None
    max_wait: float | None = None
    by: Any = None
    """Names of arguments, or a function of the arguments; None is all of them."""

    def mark(
        self,
        app: Taskline,
        header: Header,
        signature: TaskSignature | None,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        now: float,
    ) -> None:
        """Write into the header of a call what its rule asks for.

        Raises `ConfigurationError` when the app has no place for keys, or the call no key, and
        `SerializationError` for arguments that give no key.
        """
        if not app.settings.eager:
            check_place(app, header.task, header.queue)
        given = self.given
        ttl, print_ = self.ttl, ""
        if "idempotency_key" in given:
            subject, key = "idempotency", given["idempotency_key"]
            ttl = app.settings.idempotency_ttl if ttl is None else ttl
            print_ = _digest(_canonical(header.task, [args, kwargs]))
        else:
            subject, key = "unique", given.get("unique_key")
            if key is None:
                key = _key(header.task, self.by, signature, args, kwargs)
        assert ttl is not None
        if self.until != "time" and header.eta is not None:
            ttl += max(0.0, header.eta - now)
        header.unique = Unique(
            f"taskline.{subject}:{header.task}:{_digest(key.encode())}",
            self.until,
            ttl,
            self.drop,
            print_,
            self.wait,
            self.max_wait,
        )


def changed(old: Rule | None, given: Mapping[str, Any]) -> Rule | None:
    """The rule of these options over those of `old`; None where there is none any more.

    Raises `ConfigurationError` for what is wrong or does not go together.
    """
    given = {option: value for option, value in given.items() if value is not None}
    if given.get("unique") is False:
        del given["unique"]
        old = None
        if not given:
            return None
    if "idempotency_key" in given and old is not None:
        raise ConfigurationError(
            "idempotency_key= for a task that is unique, throttled or debounced: a call has one "
            "key; add unique=False to use yours instead"
        )
    kinds = [kind for kind in KINDS if kind in given]
    if len(kinds) > 1:
        raise ConfigurationError(f"{kinds[0]}= and {kinds[1]}= exclude each other: give one")
    before = {} if old is None else old.given
    if kinds:
        before = {option: before[option] for option in ("unique_by",) if option in before}
    return _rule({**before, **given})


def _rule(given: dict[str, Any]) -> Rule:
    kind = next((each for each in KINDS if each in given), None)
    if kind is None:
        raise ConfigurationError(
            f"{next(iter(given))}= goes with unique=, throttle= or debounce=: give one of them"
        )
    by = _by(given["unique_by"]) if given.get("unique_by") is not None else None
    if "unique_key" in given:
        key_name("unique_key", given["unique_key"])
    if kind == "debounce":
        return _debounce(given, by)
    if kind == "throttle":
        return _throttle(given, by)
    if kind == "idempotency_key":
        return _idempotent(given)
    return _unique(given, by)


def _debounce(given: dict[str, Any], by: Any) -> Rule:
    _only(given, "debounce", "max_wait")
    wait, longest = duration("debounce", given["debounce"]), given.get("max_wait")
    if longest is not None and duration("max_wait", longest) < wait:
        raise ConfigurationError(f"max_wait={longest!r}: must not be less than debounce")
    return Rule(given, "newer", DAY + (longest or wait), wait=wait, max_wait=longest, by=by)


def _throttle(given: dict[str, Any], by: Any) -> Rule:
    _only(given, "throttle", "on_duplicate")
    drop = one_of("on_duplicate", given.get("on_duplicate", "drop"), ("drop", "join"))
    return Rule(given, "time", duration("throttle", given["throttle"]), drop == "drop", by=by)


def _idempotent(given: dict[str, Any]) -> Rule:
    if "unique_key" in given:
        raise ConfigurationError("idempotency_key= is a key itself: leave out unique_key=")
    _only(given, "idempotency_key", "unique_for")
    key_name("idempotency_key", given["idempotency_key"])
    return Rule(given, "time", _unique_for(given))


def _unique(given: dict[str, Any], by: Any) -> Rule:
    _only(given, "unique", "on_duplicate", "unique_for")
    asked = given.get("on_duplicate", "join")
    second = one_of("on_duplicate", asked, ("join", "drop", "replace"))
    until, lasts = given["unique"], _unique_for(given)
    if isinstance(until, str):
        if until not in _UNTIL:
            more = (
                ": runs that must not overlap are a matter of concurrency=1"
                if until in ("running", "while_running")
                else ""
            )
            raise ConfigurationError(
                f'unique={until!r}: must be "until_start", "until_end" or a number of seconds{more}'
            )
        until, lasts = _UNTIL[until], lasts or DAY
    elif lasts is not None:
        raise ConfigurationError('unique_for= goes with unique="until_start" or "until_end"')
    else:
        until, lasts = "time", duration("unique", until)
    if second == "replace":
        if until != "start":
            raise ConfigurationError(
                'on_duplicate="replace" goes with unique="until_start": what runs is not replaced'
            )
        until = "newer"
    return Rule(given, until, lasts, second == "drop", by=by)


def _unique_for(given: dict[str, Any]) -> float | None:
    return duration("unique_for", given["unique_for"]) if "unique_for" in given else None


def _only(given: Mapping[str, Any], kind: str, *allowed: str) -> None:
    for option in given:
        if option not in (kind, "unique_by", "unique_key", *allowed):
            raise ConfigurationError(f"{option}= does not go with {kind}=: leave it out")


def _by(value: Any) -> Any:
    if callable(value):
        return value
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, Sequence) or not names:
        raise ConfigurationError(
            f"unique_by={value!r}: must be the name of an argument, several, or a function of "
            "the arguments"
        )
    return [text("unique_by", name) for name in names]


def check_names(rule: Rule, signature: TaskSignature) -> None:
    """Raise `ConfigurationError` when `unique_by` names what is no argument of the task."""
    if isinstance(rule.by, list):
        for name in rule.by:
            if name not in signature.signature.parameters:
                raise ConfigurationError(
                    f"unique_by={name!r}: {signature.name}{signature} has no such argument"
                )


def check_place(app: Taskline, task: str, queue: str) -> None:
    """Raise `ConfigurationError` when this app can keep no keys for such a task in this queue."""
    why, route = why_no_keys(app), app.queues.routes.get(queue)
    if app.queues.protocol(queue) == "celery":
        hint = f"the queue {queue} has Celery's messages, which carry no keys: use another queue"
    elif route is not None and route.plain:
        hint = f"the queue {queue} has plain messages, which carry no keys: use another queue"
    elif why:
        hint = (
            f"the app {app.name} {why}: give it one that keeps keys, such as "
            'backend="sqlite:///shop.db"'
        )
    else:
        return
    raise ConfigurationError(
        f"{task} is unique, throttled or debounced, or called with an idempotency_key, and {hint}"
    )


def _key(
    task: str,
    by: Any,
    signature: TaskSignature | None,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> str:
    """The text by which calls are the same. One string stands for itself, the rest is JSON."""
    if signature is None:
        raise ConfigurationError(
            f"the task {task} is not known here, so what its calls are unique by is not either: "
            "give unique_key="
        )
    if callable(by):
        value = by(*args, **kwargs)
    else:
        call = signature.signature.bind(*args, **kwargs)
        call.apply_defaults()
        value = call.arguments if by is None else [call.arguments[name] for name in by]
        if by is not None and len(by) == 1:
            (value,) = value
    return value if isinstance(value, str) else _canonical(task, value).decode()


def _canonical(task: str, value: Any) -> bytes:
    """The same bytes for the same value in every process."""
    try:
        return msgspec.json.encode(value, enc_hook=plain, order="sorted")
    except Exception as error:
        raise SerializationError(
            f"{task}: its arguments give no key, as JSON does not carry them ({error}): say by "
            "which it is unique, with unique_by= of the task or unique_key= of the call"
        ) from None


def _digest(data: bytes) -> str:
    from hashlib import blake2b  # which loads OpenSSL

    return blake2b(data, digest_size=16).hexdigest()
