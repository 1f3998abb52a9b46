"""Token buckets and semaphores: what they are asked, and how they answer.

The bucket is the generic cell rate algorithm (ITU-T I.371) read as a leaky bucket:
its whole state is one time, at which it was or will be empty of debt, so that a
bucket of which nothing is known is a full one.

A bucket with a `span` makes good what nobody came for in time, and still keeps to
the rate in every single span: it holds half a span's tokens, unless none was taken
for a whole one, and counts in `SLOTS` parts of the span how many were taken. So
whoever is held up for a moment, all workers of a busy machine for instance, loses
nothing, and does not crowd either.

A semaphore is a set of places, each under a lease of its own; what dies leaves no
count behind.
"""

from __future__ import annotations

import math
import struct
from typing import Any, NamedTuple

import msgspec

AHEAD = 1e9
"""Seconds: what lies further ahead is as far as any."""
_ROUNDING = 1e-6
"""Seconds that the sum of many times may be off."""
SLOTS = 100
"""Parts of a span in which what was taken is counted."""
KEPT = 103
"""So many of them are looked back on: the one that has just begun, and a span and 2 % of it. Who
takes tokens and begins within those 2 % begins no more in any span than may be taken here."""
OVER = 1.05
"""How many times as much as its rate a bucket may give in a span; rounded up."""
PACE, AT_ONCE = 1.5, 4
"""How many times as fast as the rate it makes good what was missed, from as many times the burst
at once."""
_COUNTED = struct.Struct(f">ddq{KEPT}I")
"""A bucket with a span: when it is empty, in the long run and at the pace at which it makes good
what was missed, the last part of the span, and what was taken in the parts."""

State = tuple[bytes | None, float | None]
"""What a key is to hold, and for how many seconds; nothing to hold is no key."""


class Ask(NamedTuple):
    """A wish for tokens of a bucket that fills with `rate` a second up to `burst`.

    `wanted` is how many; fewer than none gives some back. Those that will be there
    within `ahead` seconds may be taken too: their turns are then promised.

    With a `span`, seconds, the bucket gives at most 5 % more than what comes in that time in
    any of them. While it is in use it holds half of that. Tokens of it are given back as those
    that were taken `at` the time that the answer told.
    """

    bucket: str
    rate: float
    burst: float
    wanted: int
    ahead: float = 0.0
    span: float = 0.0
    at: float = 0.0


class Taken(NamedTuple):
    """How many tokens were taken, and how many are left: below zero for what is promised.

    `at` is when, Unix seconds by the store's clock, where the bucket has a span.
    """

    number: int
    left: float
    at: float = 0.0


class Holder(NamedTuple):
    """Who wants a place: an id, which has one place, and the run of it that holds it."""

    id: str
    run: str


class Claim(NamedTuple):
    """A wish for places of a semaphore of `limit` places.

    `wanted` get places in this order while there are any, after those of `freed` were
    given up. An id that has a place keeps it, whatever the limit: its lease begins
    anew, and its run is from then on the one that renews and frees it. Those of
    `renewed` hold on to the places that are still theirs.
    """

    name: str
    limit: int
    wanted: tuple[Holder, ...] = ()
    freed: tuple[Holder, ...] = ()
    renewed: tuple[Holder, ...] = ()


class Place(NamedTuple):
    """A place of a semaphore: who holds it, and for how many seconds more."""

    id: str
    run: str
    left: float


def take(state: bytes | None, now: float, ask: Ask) -> tuple[Taken, State]:
    """The answer of a bucket at `now`, seconds, and its next state."""
    if ask.span:
        return _take_in_span(state, now, ask)
    full = now - ask.burst / ask.rate
    empty = full if state is None else max(struct.unpack_from(">d", state)[0], full)
    left = (now - empty) * ask.rate
    there = math.floor(left + (min(ask.ahead, AHEAD) + _ROUNDING) * ask.rate + 1e-9)
    number = min(ask.wanted, max(there, 0))
    empty = max(empty + number / ask.rate, full)
    lasts = empty - full
    held = struct.pack(">d", empty) if lasts > 0 else None
    return Taken(number, (now - empty) * ask.rate), (held, lasts)


def _take_in_span(state: bytes | None, now: float, ask: Ask) -> tuple[Taken, State]:
    """As `take`, of a bucket with a span."""
    rate, pace = ask.rate, PACE * ask.rate
    empty = paced = 0.0
    part, counts = math.floor(now / ask.span * SLOTS), [0] * KEPT
    idle = True
    if state is not None and len(state) == _COUNTED.size:
        empty, paced, last, *before = _COUNTED.unpack(state)
        past = max(part - last, 0)
        if last - part < KEPT:  # else they are parts of another span
            part = last + past
            counts = (before + [0] * min(past, KEPT))[-KEPT:]
            idle = past >= SLOTS
    full = now - (ask.burst / rate if idle else ask.span / 2)
    empty = max(empty, full)
    full_pace = now - AT_ONCE * ask.burst / pace
    paced = max(paced, full_pace)
    most = math.ceil(rate * ask.span * OVER - 1e-9) - sum(counts)
    left = min((now - empty) * rate, (now - paced) * pace, most)
    number = min(ask.wanted, max(math.floor(left + _ROUNDING * rate + 1e-9), 0))
    if not number:
        return Taken(0, left, now), (state, 2 * ask.span)
    empty, paced = max(empty + number / rate, full), max(paced + number / pace, full_pace)
    back = 0 if number > 0 else max(part - math.floor(ask.at / ask.span * SLOTS), 0)
    most -= _count(counts, number, back)
    left = min((now - empty) * rate, (now - paced) * pace, most)
    return Taken(number, left, now), (_COUNTED.pack(empty, paced, part, *counts), 2 * ask.span)


def _count(counts: list[int], number: int, back: int) -> int:
    """Count tokens; fewer than none are those that were taken so many parts ago.

    Returns by how many there are more.
    """
    if back >= KEPT:
        return 0
    counted = max(number, -counts[-1 - back])
    counts[-1 - back] += counted
    return counted


def hold(state: bytes | None, now: float, wish: tuple[Claim, float]) -> tuple[list[str], State]:
    """Who of those that want or renew a place have one at `now`, and the next state.

    The wish is a claim, and the seconds for which places are then held.
    """
    claim, ttl = wish
    places = _alive(state, now)
    for holder in claim.freed:
        if places.get(holder.id, ("", 0.0))[0] == holder.run:
            del places[holder.id]
    held = []
    for holder in claim.renewed:
        if places.get(holder.id, ("", 0.0))[0] == holder.run:
            places[holder.id] = (holder.run, now + ttl)
            held.append(holder.id)
    for holder in claim.wanted:
        if holder.id in places or len(places) < claim.limit:
            places[holder.id] = (holder.run, now + ttl)
            held.append(holder.id)
    if not places:
        return held, (None, None)
    lasts = max(end for _, end in places.values()) - now
    return held, (msgspec.msgpack.encode(places), lasts)


def places(state: bytes | None, now: float) -> list[Place]:
    """Who holds a place at `now`; who has it for longest comes last."""
    found = [Place(key, run, end - now) for key, (run, end) in _alive(state, now).items()]
    return sorted(found, key=lambda place: place.left)


def _alive(state: bytes | None, now: float) -> dict[str, tuple[str, float]]:
    if state is None:
        return {}
    found: dict[str, Any] = msgspec.msgpack.decode(state)
    return {key: (run, end) for key, (run, end) in found.items() if end > now}
