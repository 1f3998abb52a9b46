"""When a schedule is due: its slots, as Unix seconds.

A slot is a moment for which one message is sent. `after` gives the first one later
than a moment, so the slots of a schedule are the same to whoever computes them.
"""

from __future__ import annotations

import math
from datetime import datetime, timedelta, timezone, tzinfo
from typing import TYPE_CHECKING, Any

import msgspec

from taskline import options as check
from taskline.errors import ConfigurationError

if TYPE_CHECKING:
    from cronsim import CronSim

SHORTEST = 1.0
"""The least seconds between two slots."""

_ALIASES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}

_FIRST_WINDOW = 3600.0
_WIDER = 8.0
_SETBACK = 3 * 3600.0
"""Seconds; clocks are never set back by more."""


class Times(msgspec.Struct, frozen=True, omit_defaults=True):
    """One of `cron`, `every` and `at`. Moments are Unix seconds, durations seconds."""

    cron: str | None = None
    tz: str = "UTC"
    every: float | None = None
    at: float | None = None
    start: float | None = None
    """No slot is before it; that of `every` begins with it."""
    end: float | None = None
    """No slot is after it."""

    def after(self, moment: float, since: float) -> float | None:
        """The first slot later than `moment`; None when there is none any more.

        `since` is when the schedule began to be known: without a `start`, the slots of
        `every` are counted from it.
        """
        if self.start is not None and self.every is None:
            moment = max(moment, self.start - 0.001)
        if self.at is not None:
            slot = self.at if self.at > moment else None
        elif self.every is not None:
            slot = self._multiple(moment, since)
        else:
            slot = self._by_cron(moment)
        return None if slot is None or (self.end is not None and slot > self.end) else slot

    def _multiple(self, moment: float, since: float) -> float:
        assert self.every is not None
        first = since + self.every if self.start is None else self.start
        if moment < first:
            return first
        count = math.floor((moment - first) / self.every) + 1
        while (slot := first + count * self.every) <= moment:  # as floats are
            count += 1
        return slot

    def _by_cron(self, moment: float) -> float | None:
        """The cron expression is matched against wall clocks without a zone; what such a clock
        shows may then be one moment, or two where clocks are set back, or none.

        As Debian's cron does it: a job at fixed hours and minutes runs once in each of these
        cases, in the hour that is left out at its end; others run whenever the clock shows so.
        """
        assert self.cron is not None
        tz = zone(self.tz)
        before, wall, after = (
            datetime.fromtimestamp(math.floor(moment) + distance, tz)
            for distance in (-_SETBACK, 0, _SETBACK)
        )
        first, fixed = wall.replace(tzinfo=None), _is_fixed(self.cron)
        if before.utcoffset() != after.utcoffset():
            first -= timedelta(seconds=_SETBACK)  # what was shown then may be shown again
        again = math.inf
        for shown in _cron(self.cron, first):
            slots = _moments(shown, tz, fixed)
            again = min(again, *(slot for slot in slots if slot > moment), math.inf)
            if slots and slots[0] > moment:
                break
        return None if again == math.inf else again

    def due(self, last: float, now: float, since: float, late: float, catch_up: int) -> list[float]:
        """The slots after `last` until `now` that are to be sent, in order.

        All of the last `late` seconds, and the newest `catch_up` of those before.
        """
        edge = now - late
        recent = self._between(max(last, edge), now, since)
        if last >= edge or not catch_up:
            return recent
        window, older = _FIRST_WINDOW, list[float]()
        while True:
            begin = max(last, edge - window)
            older = self._between(begin, edge, since)
            if len(older) >= catch_up or begin <= last:
                return older[-catch_up:] + recent
            window *= _WIDER

    def _between(self, begin: float, end: float, since: float) -> list[float]:
        slots = []
        slot = self.after(begin, since)
        while slot is not None and slot <= end:
            slots.append(slot)
            slot = self.after(slot, since)
        return slots

    def __str__(self) -> str:
        if self.cron is not None:
            return f"{self.cron} {self.tz}"
        if self.every is not None:
            return f"every {self.every:g} s"
        assert self.at is not None
        return f"at {local(self.at, self.tz).isoformat(sep=' ', timespec='seconds')}"


def times(
    *,
    cron: Any = None,
    tz: Any = None,
    every: Any = None,
    at: Any = None,
    start: Any = None,
    end: Any = None,
) -> Times:
    """The times that these options ask for; raises `ConfigurationError`."""
    given = [
        name for name, value in (("cron", cron), ("every", every), ("at", at)) if value is not None
    ]
    if len(given) != 1:
        what = f"{' and '.join(given)} are both given" if given else "it has no time"
        raise ConfigurationError(f"{what}: a schedule needs one of cron=, every= and at=")
    if tz is not None:
        zone(check.text("tz", tz))
    found = Times(
        cron=None if cron is None else check.text("cron", cron),
        tz=tz or "UTC",
        every=None if every is None else duration("every", every),
        at=_moment("at", at, tz),
        start=_moment("start", start, tz),
        end=_moment("end", end, tz),
    )
    if found.every is not None and found.every < SHORTEST:
        raise ConfigurationError(f"every={every!r}: must be {SHORTEST:g} seconds or more")
    if found.end is not None and found.start is not None and found.end < found.start:
        raise ConfigurationError(f"end={end!r} is before start={start!r}: it would never be due")
    if found.cron is not None and found.after(0.0, 0.0) is None and found.end is None:
        raise ConfigurationError(f"cron={cron!r}: there is no such day in 50 years")
    return found


def duration(option: str, value: Any) -> float:
    """Seconds, more than 0, of a number or a timedelta."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    return check.duration(option, value)


def zone(name: str) -> tzinfo:
    """The time zone of this name in the IANA database; raises `ConfigurationError`."""
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    if name == "UTC":
        return timezone.utc  # known on every system
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ConfigurationError(
            f"tz={name!r}: no such time zone here: write it as Europe/Berlin or UTC "
            "(a system without zones needs: pip install tzdata)"
        ) from None


def local(moment: float, tz: str) -> datetime:
    """The moment in its time zone."""
    return datetime.fromtimestamp(moment, zone(tz))


def _moment(option: str, value: Any, tz: str | None) -> float | None:
    """Unix seconds; a datetime without a zone is in `tz`, by default this machine's own."""
    if value is None:
        return None
    if isinstance(value, datetime) and value.tzinfo is None and tz is not None:
        value = value.replace(tzinfo=zone(tz))
    return check.moment(option, value)


def _is_fixed(expression: str) -> bool:
    minute, hour, *others = _ALIASES.get(expression, expression).split()
    return len(others) == 3 and not minute.startswith("*") and not hour.startswith("*")


def _moments(shown: datetime, tz: tzinfo, fixed: bool) -> list[float]:
    """When clocks of this zone show this: Unix seconds, in order."""
    once = shown.replace(tzinfo=tz).timestamp()
    if datetime.fromtimestamp(once, tz).replace(tzinfo=None) != shown:  # clocks leave it out
        return _moments(shown + timedelta(minutes=1), tz, fixed) if fixed else []
    again = shown.replace(tzinfo=tz, fold=1).timestamp()
    return [once] if fixed or again == once else [once, again]


def _cron(expression: str, moment: datetime) -> CronSim:
    from cronsim import CronSim, CronSimError

    try:
        return CronSim(_ALIASES.get(expression, expression), moment)
    except CronSimError as error:
        reason = str(error)
        raise ConfigurationError(
            f"cron={expression!r}: {reason[:1].lower()}{reason[1:]}: write it as "
            "'minute hour day month weekday', such as '*/5 8-18 * * mon-fri'"
        ) from None
