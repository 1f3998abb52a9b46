"""What the metadata of a commit says about a partition beyond its first unfinished offset.

Kafka keeps one offset for a partition and group, and a short text beside it. The text
tells which messages beyond that offset are unfinished, how often each was handed over
and lost, and up to where messages may have been handed over since. It is a "1", then
base 64 of numbers in LEB128: `reach` less the offset, then runs: twice the length, plus
one when unfinished; an unfinished run goes on with its deliveries and losses. Text that
begins with "2" is the same, compressed with zlib.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from typing import NamedTuple

METADATA_BYTES = 4096
"""The broker's default for offset.metadata.max.bytes."""
LONGEST_RUN = 1 << 20
"""A longer one was not written by us."""


class Counts(NamedTuple):
    """How often a message was handed over before, and how often that was lost."""

    deliveries: int = 0
    lost: int = 0


NEVER = Counts()


class Marks(NamedTuple):
    """The state of one partition."""

    offset: int
    """The first unfinished one; Kafka's own committed offset."""
    reach: int
    """Messages below may be in somebody's hands; `offset` when nothing is."""
    upper: int
    """Below it, all that is not in `unfinished` is finished; from it on nothing is."""
    unfinished: dict[int, Counts]
    """The unfinished messages below `upper`."""


def encode(marks: Marks, limit: int = METADATA_BYTES) -> tuple[str, int]:
    """The text, and the `upper` that it really tells: less where the text would be too long.

    What is finished beyond that would be repeated after a crash.
    """
    upper = max(marks.upper, marks.offset)
    text = _write(marks, upper)
    while len(text) > limit:
        upper = marks.offset + (upper - marks.offset) * 7 // 8
        text = _write(marks, upper)
    return text, upper


def decode(offset: int, text: str | None) -> Marks:
    """The marks of a committed offset; those of nobody where the text is not ours."""
    nothing = Marks(offset, offset, offset, {})
    if not text:
        return nothing
    try:
        raw = base64.b64decode(text[1:], validate=True)
        if text[0] == "2":
            raw = zlib.decompress(raw)
        elif text[0] != "1":
            return nothing
        return _read(offset, raw)
    except (binascii.Error, zlib.error, IndexError, ValueError):
        return nothing


def _write(marks: Marks, upper: int) -> str:
    raw = bytearray()
    _put(raw, marks.reach - marks.offset)
    at = marks.offset
    run, run_start = NEVER, 0
    run_end = 0
    for offset, counts in sorted(marks.unfinished.items()):
        if offset >= upper:
            break
        if run_end == offset and run == counts and run_end:
            run_end += 1
            continue
        at = _put_run(raw, at, run_start, run_end, run)
        run, run_start, run_end = counts, offset, offset + 1
    at = _put_run(raw, at, run_start, run_end, run)
    if at < upper:
        _put(raw, (upper - at) << 1)
    if len(raw) == 1 and raw[0] == 0:
        return ""
    kind, packed = "1", bytes(raw)
    if len(raw) > 64 and len(smaller := zlib.compress(packed, 6)) < len(packed):
        kind, packed = "2", smaller
    return kind + base64.b64encode(packed).decode()


def _put_run(raw: bytearray, at: int, start: int, end: int, counts: Counts) -> int:
    """Append what is finished up to `start`, and the unfinished run; returns where it ends."""
    if not end:
        return at
    if start > at:
        _put(raw, (start - at) << 1)
    _put(raw, (end - start) << 1 | 1)
    _put(raw, counts.deliveries)
    _put(raw, counts.lost)
    return end


def _put(raw: bytearray, number: int) -> None:
    while number > 0x7F:
        raw.append(number & 0x7F | 0x80)
        number >>= 7
    raw.append(number)


def _read(offset: int, raw: bytes) -> Marks:
    place = 0

    def take() -> int:
        nonlocal place
        number = shift = 0
        while True:
            byte = raw[place]
            place += 1
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
            shift += 7

    reach, at = offset + take(), offset
    unfinished: dict[int, Counts] = {}
    while place < len(raw):
        length = take()
        if length >> 1 > LONGEST_RUN:
            raise ValueError(length)
        if length & 1:
            counts = Counts(take(), take())
            for each in range(at, at + (length >> 1)):
                unfinished[each] = counts
        at += length >> 1
    return Marks(offset, reach, at, unfinished)
