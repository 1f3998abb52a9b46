"""The kinds of values that options take: functions from a word to a value, as click wants them."""

from __future__ import annotations

import datetime
import re

import click

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)", re.ASCII)


def duration(text: str) -> float:
    """Seconds, from seconds or from a text such as `30s`, `5m`, `1h30m`, `2d`."""
    word = text.strip().lower()
    if re.fullmatch(r"\d+(\.\d+)?", word, re.ASCII):
        return float(word)
    if re.fullmatch(f"({_PART.pattern})+", word, re.ASCII):
        return sum(float(count) * _UNITS[unit] for count, unit in _PART.findall(word))
    raise click.BadParameter(f"{text!r} is not a duration: write seconds, or 30s, 5m, 1h30m, 2d")


def lasting(text: str) -> float:
    """Seconds, as `duration`, but more than none."""
    seconds = duration(text)
    if not seconds:
        raise click.BadParameter(f"{text!r} is no time at all: give more than 0 seconds")
    return seconds


def seconds(text: str) -> float:
    """Seconds, as `duration`, but at least one."""
    found = duration(text)
    if found < 1:
        raise click.BadParameter(f"{text!r} is too short: give 1s or more")
    return found


def processes(text: str) -> tuple[int, int | None]:
    """A number of processes, or the least and the most of them, from `4` or `2..8`."""
    least, dots, most = text.strip().partition("..")
    if not (least.isdecimal() and int(least) and (most.isdecimal() or not dots)):
        raise click.BadParameter(f"{text!r} is no number of processes: write 4, or 2..8")
    if dots and int(most) < int(least):
        raise click.BadParameter(f"{text!r}: the most is less than the least")
    return int(least), int(most) if dots else None


_SIZE = re.compile(r"(\d+(?:\.\d+)?)([kmgt]?)(?:i?b)?", re.ASCII)


def size(text: str) -> int:
    """Bytes, from a text such as `500M`, `1.5GiB`; K, M, G and T are powers of 1024."""
    found = _SIZE.fullmatch(text.strip().lower())
    if found is None or not float(found[1]):
        raise click.BadParameter(f"{text!r} is not a size: write bytes, or 500M, 1.5G")
    return int(float(found[1]) * 1024 ** " kmgt".index(found[2] or " "))


def cpus(text: str) -> list[int]:
    """Numbers of processors, from a text such as `0-3,6`."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        numbers = (first, last) if dash else (first, first)
        if not all(re.fullmatch(r"\d{1,4}", number, re.ASCII) for number in numbers):
            raise click.BadParameter(f"{text!r} names no processors: write 0,1 or 0-3")
        named = range(int(numbers[0]), int(numbers[1]) + 1)
        if not named:
            raise click.BadParameter(f"{text!r} names no processors: {part} runs backwards")
        found.extend(named)
    return found


def moment(text: str) -> float:
    """Unix seconds, from a date and time in ISO 8601 (local, unless it has a zone)."""
    try:
        # Python 3.10 reads no Z.
        iso = re.sub("[zZ]$", "+00:00", text.strip())
        return datetime.datetime.fromisoformat(iso).timestamp()
    except (ValueError, OverflowError, OSError):
        raise click.BadParameter(
            f"{text!r} is not a time: write it like 2030-01-31T12:00"
        ) from None


def positive(text: str) -> int:
    """A whole number of at least 1."""
    return _whole(text, least=1)


def natural(text: str) -> int:
    """A whole number of at least 0."""
    return _whole(text, least=0)


def _whole(text: str, least: int) -> int:
    # int() also reads 1_000 and the digits of other scripts.
    if re.fullmatch(r"\d{1,9}", str(text), re.ASCII) and int(text) >= least:
        return int(text)
    raise click.BadParameter(f"{text!r} is not a whole number of at least {least}")
