"""What will be broken and when, from a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import NamedTuple

STORM, CALM = 4.0, 5.0
"""Seconds of kills in quick succession, and of everything else, in turn."""
STORM_GAP, CALM_GAP = 0.1, 0.6
"""Mean seconds between two faults."""

CALM_FAULTS = {
    "kill child": 8,
    "kill children": 4,
    "kill supervisor": 3,
    "kill group": 4,
    "kill producer": 2,
    "pause child": 5,
    "pause child briefly": 3,
    "pause supervisor": 2,
    "pause group": 1,
    "terminate": 3,
    "terminate group": 2,
    "terminate twice": 2,
}
"""How often each is done, relative to the others."""


class Fault(NamedTuple):
    at: float
    """Seconds from the beginning."""
    what: str
    which: float
    """In [0, 1): picks the victim among those there are."""
    size: float
    """In [0, 1): how long a pause is, within its bounds."""


def plan(
    seed: int, seconds: float, calm: Mapping[str, int] = CALM_FAULTS, gap: float = 1.0
) -> list[Fault]:
    """The faults of a run, in order. The same arguments give the same plan.

    `calm` are the faults beside storms, `gap` how much longer than usual it is from one to the
    next. With gap 1 each kind occurs at least once in a run of a minute or more.
    """
    return list(_faults(random.Random(seed), seconds, calm, gap))


def _faults(
    rng: random.Random, seconds: float, calm: Mapping[str, int], gap: float
) -> Iterator[Fault]:
    now = 0.5
    due: list[str] = []
    while True:
        end = now + STORM
        while now < min(end, seconds):
            what = "kill child" if rng.random() < 0.9 else "kill children"
            yield Fault(now, what, rng.random(), rng.random())
            now += rng.expovariate(1 / STORM_GAP) * gap
        end = now + CALM
        while now < min(end, seconds):
            if not due:
                # Shuffled rounds rather than single draws: none stays out for long.
                due = [name for name, share in calm.items() for _ in range(share)]
                rng.shuffle(due)
                due = list(dict.fromkeys(due)) + due
            yield Fault(now, due.pop(0), rng.random(), rng.random())
            now += rng.expovariate(1 / CALM_GAP) * gap
        if now >= seconds:
            return
