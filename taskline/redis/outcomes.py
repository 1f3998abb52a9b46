"""Outcomes on one Redis server: one key each, which the server lets expire."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from taskline.chunking import chunks
from taskline.message import Outcome
from taskline.redis.connection import Reply, Word
from taskline.redis.node import Node
from taskline.redis.packing import milliseconds, pack_id, pack_outcome, unpack_outcome
from taskline.redis.script import Script

STORE = Script("store", "outcome")
EXPIRE = Script("expire", when_full=True)
COUNT = Script("count")

BATCH = 1000


class Outcomes:
    """Any thread may use it. A call that fails is tried again for `patience` seconds."""

    def __init__(self, node: Node, patience: float) -> None:
        self.node = node
        self._patience = patience
        self.check = node.check
        self.close = node.close

    def store(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Store these, trying once; returns those that were refused."""
        refused = []
        for batch in chunks(outcomes, BATCH):
            args: list[Word] = []
            for outcome in batch:
                args += pack_outcome(outcome)
            refused += [batch[number] for number in self.node.run(STORE, *args)]
        return refused

    def fetch(self, ids: Collection[str]) -> dict[str, Outcome]:
        """What is stored of these."""
        found = {}
        for batch in chunks(list(ids), BATCH):
            keys = map(self.key, batch)
            values = self.node.command("MGET", *keys, patience=self._patience)
            for key, value in zip(batch, values, strict=True):
                if value is not None:
                    found[key] = unpack_outcome(key, value)
        return found

    def forget(self, ids: Sequence[str]) -> None:
        """Delete what is stored of these."""
        for batch in chunks(ids, BATCH):
            self.node.command("UNLINK", *map(self.key, batch), patience=self._patience)

    def expire(self, ids: Sequence[str], ttl: float | None) -> None:
        """Keep what is stored of these for `ttl` seconds from now on; None for ever."""
        for batch in chunks(ids, BATCH):
            self.run(EXPIRE, milliseconds(ttl), *map(pack_id, batch))

    def count(self, key: str, members: Sequence[str], ttl: float) -> int:
        """Add these to a set that lasts `ttl` seconds; returns how many it has then."""
        size = 0
        for batch in chunks(members, BATCH):
            size = self.run(COUNT, key, milliseconds(ttl), *batch)
        return size

    def run(self, script: Script, *args: Word) -> Reply:
        """The answer of a script."""
        return self.node.run(script, *args, patience=self._patience)

    def about(self) -> dict[str, Any]:
        """See `Node.about`."""
        return self.node.about()

    def key(self, id: str) -> bytes:
        """The key of an outcome, and the channel on which it is published."""
        return b"%bo:%b" % (self.node.tag, pack_id(id))
