"""One schedule: what is sent, and when."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypedDict

import msgspec

from taskline import options as check
from taskline.errors import ConfigurationError
from taskline.message import Message
from taskline.options import CallOptions, refuse_unknown
from taskline.schedule.times import Times, duration, local, times

if TYPE_CHECKING:
    from taskline.app import Taskline

LATE = 60.0
"""Seconds by which a slot may be late without counting as missed: longer than it takes
another worker to notice that the one that sends is gone."""

KEPT = 3600.0
"""Seconds for which outcomes of scheduled tasks are kept at least: a message that was sent
twice for its slot is known by the outcome of the first."""

_MOST_CAUGHT_UP = 1000


class ScheduleOptions(TypedDict, total=False):
    """What `app.periodic` and `app.schedules.add` take besides the name and the task.

    One of `cron`, `every` and `at` says when; the rest from `queue` on is for each
    message, as in `task.options`.
    """

    cron: str | None
    tz: str | None
    every: float | timedelta | None
    at: datetime | float | None
    args: Sequence[Any]
    kwargs: Mapping[str, Any] | None
    jitter: float | timedelta | None
    catch_up: int
    repeats: int | None
    start: datetime | float | None
    end: datetime | float | None
    pass_time: str | None
    queue: str | None
    priority: int | None
    expires: float | None
    timeout: float | None
    soft_timeout: float | None
    result_ttl: float | None
    serializer: str | None
    retry: Any
    headers: Mapping[str, Any] | None


_TIMES = ("cron", "tz", "every", "at", "start", "end")
_OWN = (*_TIMES, "args", "kwargs", "jitter", "catch_up", "repeats", "pass_time")
_OPTIONS = tuple(ScheduleOptions.__annotations__)


class Schedule(msgspec.Struct, kw_only=True, frozen=True):
    """A schedule as it was declared or stored. Durations are seconds, moments Unix seconds."""

    name: str
    task: str
    times: Times
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    jitter: float = 0.0
    """Each message is due up to so many seconds after its slot."""
    catch_up: int = 1
    """How many missed slots are sent afterwards, the newest ones."""
    repeats: int | None = None
    """After how many messages it ends."""
    pass_time: str | None = None
    """The argument that gets the slot."""
    options: dict[str, Any] = {}
    added: float | None = None
    """When it was stored; None for one that is declared in the code."""

    def check(self, app: Taskline) -> None:
        """Raise what sending would raise here, `InvalidArguments` for instance."""
        self._message(app, app.now(), "checked", 0.0)

    def message(self, app: Taskline, slot: float, since: float) -> Message:
        """The message of a slot: whoever makes it, it has the same id."""
        seed = f"{app.name}\n{self.name}\n{since!r}\n{slot!r}".encode()
        digest = hashlib.sha256(seed).hexdigest()
        spread = int(digest[-8:], 16) / 2**32
        key = f"{int(slot * 1000) & 2**48 - 1:012x}8{digest[:3]}8{digest[3:18]}"
        return self._message(app, slot, key, self.jitter * spread)

    def now(self, app: Taskline) -> Message:
        """A message for now, whatever the times say."""
        return self._message(app, app.now(), None, 0.0)

    def _message(self, app: Taskline, slot: float, task_id: str | None, delay: float) -> Message:
        kwargs = dict(self.kwargs)
        if self.pass_time is not None:
            kwargs[self.pass_time] = local(slot, self.times.tz)
        calls = app.by_name(self.task).options(task_id=task_id, **self.options)
        message = calls._message(tuple(self.args), kwargs)
        header, body = app.codec.open(message.frame)
        header.schedule, header.slot = self.name, slot
        if delay:
            header.eta = slot + delay
            if header.expires is not None:
                header.expires += delay
        ttl = app.settings.result_ttl if header.result_ttl is None else header.result_ttl
        header.result_ttl = max(ttl, KEPT)
        return app.codec.reframe(header, body)


def schedule(name: str, task: str, given: Mapping[str, Any]) -> Schedule:
    """The schedule of these options, checked; raises `ConfigurationError`."""
    refuse_unknown(given, _OPTIONS)
    given = {option: value for option, value in given.items() if value is not None}
    repeats, pass_time = given.get("repeats"), given.get("pass_time")
    catch_up = given.get("catch_up", 1)
    if type(catch_up) is not int or not 0 <= catch_up <= _MOST_CAUGHT_UP:
        raise ConfigurationError(
            f"catch_up={catch_up!r}: must be a whole number, 0 to skip what was missed, "
            f"{_MOST_CAUGHT_UP} at most"
        )
    if repeats is not None and (type(repeats) is not int or repeats < 1):
        raise ConfigurationError(f"repeats={repeats!r}: must be a whole number, at least 1")
    options = {option: value for option, value in given.items() if option not in _OWN}
    # Checked, and kept as they were given: some depend on the moment of the call.
    CallOptions("default", 0, "json").changed(options)
    if "expires" in options and isinstance(options["expires"], datetime):
        raise ConfigurationError("expires= of a schedule is in seconds: end= is its last moment")
    found = Schedule(
        name=check.key_name("name", name),
        task=check.identifier("task", task),
        times=times(**{option: given.get(option) for option in _TIMES}),
        args=list(given.get("args", ())),
        kwargs=dict(given.get("kwargs", {})),
        jitter=duration("jitter", given["jitter"]) if given.get("jitter") else 0.0,
        catch_up=catch_up,
        repeats=repeats,
        pass_time=None if pass_time is None else check.text("pass_time", pass_time),
        options=options,
    )
    if pass_time in found.kwargs:
        raise ConfigurationError(f"pass_time={pass_time!r} is among kwargs: give one of them")
    return found
