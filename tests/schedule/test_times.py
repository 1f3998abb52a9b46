"""Slots against an oracle that walks through every minute, over both edges of summer time."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskline import ConfigurationError
from taskline.schedule.times import Times, times

EDGES = {
    "Europe/Berlin": [(2026, 3, 29), (2026, 10, 25)],
    "America/New_York": [(2026, 3, 8), (2026, 11, 1)],
    "Australia/Lord_Howe": [(2026, 4, 5), (2026, 10, 4)],  # by half an hour
    "America/Havana": [(2026, 3, 8), (2026, 11, 1)],  # at midnight
}

some_minutes = st.sets(st.integers(0, 59), min_size=1, max_size=4)
some_hours = st.sets(st.sampled_from([0, 1, 2, 3, 4, 12, 23]), min_size=1, max_size=4)


def listed(numbers: set[int]) -> str:
    return ",".join(map(str, sorted(numbers)))


def shown(begin: float, end: float, zone: ZoneInfo) -> list[tuple[float, datetime]]:
    """Every minute, and what clocks show then."""
    minutes = range(int(begin), int(end) + 1, 60)
    return [(float(minute), datetime.fromtimestamp(minute, zone)) for minute in minutes]


def as_clocks_show(
    minutes: set[int], hours: set[int], begin: float, end: float, zone: ZoneInfo
) -> list[float]:
    return [
        at for at, wall in shown(begin, end, zone) if wall.minute in minutes and wall.hour in hours
    ]


def once_a_day(
    minutes: set[int], hours: set[int], begin: float, end: float, zone: ZoneInfo
) -> list[float]:
    """At the first moment at which clocks show this much or more, on that day."""
    walls = shown(begin - 86400, end + 86400, zone)
    found = set()
    day = walls[0][1].date() + timedelta(days=1)
    while day < walls[-1][1].date():
        for hour in hours:
            for minute in minutes:
                wanted = datetime(day.year, day.month, day.day, hour, minute)
                found.add(next(at for at, wall in walls if wall.replace(tzinfo=None) >= wanted))
        day += timedelta(days=1)
    return sorted(at for at in found if begin <= at <= end)


@pytest.mark.parametrize("name", EDGES)
@given(
    edge=st.integers(0, 1),
    kind=st.sampled_from(["any hour", "any minute", "fixed"]),
    minutes=some_minutes,
    hours=some_hours,
    start=st.floats(0, 1),
)
@settings(max_examples=30, deadline=None)
def test_slots_are_those_of_the_oracle(
    name: str, edge: int, kind: str, minutes: set[int], hours: set[int], start: float
) -> None:
    zone = ZoneInfo(name)
    midnight = datetime(*EDGES[name][edge], tzinfo=timezone.utc).timestamp()
    begin, end = midnight - 86400, midnight + 2 * 86400
    if kind == "any hour":
        cron = f"{listed(minutes)} * * * *"
        expected = as_clocks_show(minutes, set(range(24)), begin, end, zone)
    elif kind == "any minute":
        cron = f"*/7 {listed(hours)} * * *"
        expected = as_clocks_show(set(range(0, 60, 7)), hours, begin, end, zone)
    else:
        cron = f"{listed(minutes)} {listed(hours)} * * *"
        expected = once_a_day(minutes, hours, begin, end, zone)
    found = times(cron=cron, tz=name)
    assert found.due(begin - 1, end, 0.0, 10 * 86400, 0) == expected
    # Whoever begins anywhere finds the same.
    middle = begin + start * 86400 * 2
    assert found.after(middle, 0.0) == next((at for at in expected if at > middle), None) or (
        middle >= expected[-1]
    )


def utc(*parts: int) -> float:
    return datetime(*parts, tzinfo=timezone.utc).timestamp()  # type: ignore[misc,arg-type]


def test_the_usual_expressions() -> None:
    hours = times(cron="*/5 8-18 * * mon-fri", tz="Europe/Berlin")
    friday = utc(2026, 7, 3, 16, 55)  # 18:55 in Berlin
    assert hours.after(friday, 0) == utc(2026, 7, 6, 6, 0)
    assert times(cron="@daily").after(utc(2026, 1, 1), 0) == utc(2026, 1, 2)
    assert times(cron="0 12 L * *").after(utc(2026, 2, 1), 0) == utc(2026, 2, 28, 12)
    assert times(cron="*/10 * * * * *").after(utc(2026, 1, 1), 0) == utc(2026, 1, 1, 0, 0, 10)
    assert times(cron="0 0 29 2 *").after(utc(2026, 1, 1), 0) == utc(2028, 2, 29)


def test_every_counts_from_its_start_or_from_when_it_was_known() -> None:
    minute = times(every=timedelta(minutes=1))
    assert minute.after(100.0, since=100.0) == 160.0
    assert minute.after(160.0, since=100.0) == 220.0
    assert minute.after(159.9, since=100.0) == 160.0
    anchored = times(every=60, start=1000.0, end=1100.0)
    assert anchored.after(0.0, since=5.0) == 1000.0
    assert anchored.after(1000.0, since=5.0) == 1060.0
    assert anchored.after(1060.0, since=5.0) is None


@given(
    every=st.floats(1, 1e6),
    since=st.floats(1e9, 2e9),
    distance=st.floats(0, 1e8),
)
def test_slots_of_every_only_go_forward(every: float, since: float, distance: float) -> None:
    found = Times(every=every)
    moment = since + distance
    slot = found.after(moment, since)
    assert slot is not None
    assert moment < slot <= moment + every * 1.0001 + 1e-6
    following = found.after(slot, since)
    assert following is not None
    assert following > slot


def test_at_is_once_and_bounds_hold() -> None:
    once = times(at=datetime(2026, 7, 1, 12), tz="Europe/Berlin")
    assert once.after(0, 0) == utc(2026, 7, 1, 10)
    assert once.after(utc(2026, 7, 1, 10), 0) is None
    bounded = times(cron="0 * * * *", start=utc(2026, 1, 1, 5), end=utc(2026, 1, 1, 6))
    assert bounded.after(0, 0) == utc(2026, 1, 1, 5)
    assert bounded.after(utc(2026, 1, 1, 5), 0) == utc(2026, 1, 1, 6)
    assert bounded.after(utc(2026, 1, 1, 6), 0) is None


def test_what_was_missed() -> None:
    minute = times(every=60, start=0.0)
    assert minute.due(0, 200, 0, late=60, catch_up=0) == [180]
    assert minute.due(0, 200, 0, late=60, catch_up=1) == [120, 180]
    assert minute.due(0, 200, 0, late=60, catch_up=9) == [60, 120, 180]
    assert minute.due(150, 200, 0, late=60, catch_up=9) == [180]
    assert minute.due(180, 200, 0, late=60, catch_up=9) == []
    rare = times(cron="0 0 29 2 *")
    assert rare.due(0, utc(2026, 1, 1), 0, late=60, catch_up=2) == [
        utc(2020, 2, 29),
        utc(2024, 2, 29),
    ]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "it has no time: a schedule needs one of cron=, every= and at="),
        ({"cron": "* * * * *", "every": 5}, "cron and every are both given"),
        ({"cron": "61 * * * *"}, "cron='61 * * * *': bad minute: write it as"),
        ({"cron": "* * *"}, "wrong number of fields"),
        ({"cron": "0 0 30 2 *"}, "cron='0 0 30 2 *'"),
        ({"cron": "@hourly", "tz": "Europe/Nowhere"}, "tz='Europe/Nowhere': no such time zone"),
        ({"every": 0.5}, "every=0.5: must be 1 seconds or more"),
        ({"every": 0}, "every=0: must be more than 0 seconds"),
        ({"every": 9, "start": 10, "end": 5}, "end=5 is before start=10"),
        ({"at": "tomorrow"}, "at='tomorrow': must be a datetime or Unix seconds"),
    ],
)
def test_what_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        times(**options)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)
