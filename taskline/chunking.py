"""Many at a time, but not all: what is stored or sent goes in calls of bounded size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The items in their order, `size` at a time; the last ones may be fewer."""
    for first in range(0, len(items), size):
        yield items[first : first + size]
