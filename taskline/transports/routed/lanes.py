"""The lanes of a queue that is shared fairly: queues of its broker, which are asked in turn.

A message goes by the value of one of its headers, always to the same lane, so that order
is kept among those of one value, and one who sends many holds up but those of his lane.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, zip_longest
from zlib import crc32

import msgspec

from taskline.message import Header
from taskline.queueing import lane_names
from taskline.transports.base import QueueStats, StoredMessage

_STATES = ("ready", "delayed", "leased")


class Lanes:
    """Those of one queue, by their names at its broker. `receive` alone may turn them.

    Messages without the header go to the queue itself, which is one of them.
    """

    def __init__(self, name: str, header: str, count: int) -> None:
        self._header = header
        self.names = lane_names(name, count)
        """All of them."""
        self._keyed = self.names[1:]
        self._turn = list(self.names)

    def of(self, header: Header) -> str:
        """The lane of a message."""
        value = header.headers.get(self._header)
        if value is None:
            return self.names[0]
        return self._keyed[crc32(msgspec.json.encode(value, order="sorted")) % len(self._keyed)]

    def turn(self) -> list[str]:
        """The order in which to ask them: that first which has waited longest to be served."""
        return list(self._turn)

    def served(self, names: Iterable[str]) -> None:
        """Note that these have just handed something over: they come last now."""
        for name in dict.fromkeys(names):
            self._turn.remove(name)
            self._turn.append(name)


def in_turn(lanes: Iterable[Iterable[StoredMessage]]) -> list[StoredMessage]:
    """The messages of all lanes, about as they will be handed over: one of each, and again."""
    mixed = [each for each in chain.from_iterable(zip_longest(*lanes)) if each is not None]
    return sorted(mixed, key=lambda each: (_STATES.index(each.state), each.due or 0.0))


def together(stats: Iterable[QueueStats]) -> list[QueueStats]:
    """Those of one queue as one."""
    found: dict[str, QueueStats] = {}
    for each in stats:
        known = found.get(each.queue)
        if known is None:
            found[each.queue] = each
            continue
        ages = [age for age in (known.oldest, each.oldest) if age is not None]
        found[each.queue] = QueueStats(
            queue=each.queue,
            ready=_sum(known.ready, each.ready),
            delayed=_sum(known.delayed, each.delayed),
            leased=_sum(known.leased, each.leased),
            dead=_sum(known.dead, each.dead),
            oldest=max(ages, default=None),
        )
    return list(found.values())


def _sum(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other
