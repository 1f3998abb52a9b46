"""Durations and times as people write them."""

from __future__ import annotations

import datetime

import click
import pytest

from taskline.cli.params import cpus, duration, lasting, moment, natural, positive, seconds, size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("30", 30),
        ("1.5", 1.5),
        ("250ms", 0.25),
        ("30s", 30),
        ("5m", 300),
        ("1h30m", 5400),
        ("2d", 172_800),
        ("1W", 604_800),
        (" 10 ", 10),
    ],
)
def test_a_duration_becomes_seconds(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "-5", "two", "5 minutes", "5x", "m", "1e3", "nan", "inf"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a duration: write seconds, or 30s"):
        duration(text)


def test_a_duration_that_must_last() -> None:
    assert lasting("2m") == 120
    with pytest.raises(click.BadParameter, match="'0s' is no time at all"):
        lasting("0s")


def test_a_duration_of_a_second_at_least() -> None:
    assert seconds("1s") == 1
    with pytest.raises(click.BadParameter, match="'10ms' is too short: give 1s or more"):
        seconds("10ms")


def test_a_time_with_a_zone() -> None:
    assert moment("2030-01-31T12:00:00Z") == 1_896_091_200
    assert moment("2030-01-31T14:00+02:00") == 1_896_091_200


def test_a_time_without_a_zone_is_local() -> None:
    local = datetime.datetime(2030, 1, 31, 12, 0).timestamp()
    assert moment("2030-01-31 12:00") == local


@pytest.mark.parametrize("text", ["tomorrow", "", "12:00", "2030-13-01", "1896091200"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a time: write it like"):
        moment(text)


def test_whole_numbers() -> None:
    assert (positive("1"), positive("12"), natural("0")) == (1, 12, 0)


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "x", "", "1_000", "9" * 10, "\u0661"])
def test_what_is_no_positive_number_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a whole number of at least 1"):
        positive(text)


@pytest.mark.parametrize(
    ("text", "bytes"),
    [("1", 1), ("500M", 500 * 2**20), ("1.5G", 3 * 2**29), ("2 KiB".replace(" ", ""), 2048)],
)
def test_a_size_becomes_bytes(text: str, bytes: int) -> None:
    assert size(text) == bytes


@pytest.mark.parametrize("text", ["", "0", "0M", "-1", "M", "5X", "1e9", "5 M"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a size: write bytes, or 500M"):
        size(text)


@pytest.mark.parametrize(
    ("text", "numbers"), [("0", [0]), ("0,2", [0, 2]), ("0-2,5", [0, 1, 2, 5])]
)
def test_processors_are_numbers_and_ranges(text: str, numbers: list[int]) -> None:
    assert cpus(text) == numbers


@pytest.mark.parametrize("text", ["", "a", "0-", "-1", "1,,2", "3-1"])
def test_what_names_no_processors_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="names no processors"):
        cpus(text)
