"""Which worker processes there are: a record of each, which ends when it is not renewed, and an
index of them, since a key store lists no keys."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from taskline.backends.keys import KeyStore
from taskline.control.documents import Documents
from taskline.control.records import Answer, ProcessInfo

if TYPE_CHECKING:
    from taskline.app import Taskline

RECORD_TTL = 15.0
"""Seconds for which a record stands; it is renewed three times as often."""
ANSWER_TTL = 60.0
ATTEMPTS = 20
"""At changing the index, in a row."""

Index = dict[str, str]
"""The ids of processes, each with its worker's instance and its number there."""


class Presence:
    """Reads and writes the records of one app's workers."""

    def __init__(self, app: Taskline) -> None:
        self._documents = Documents(app)
        self._index = self._documents.key("workers")

    # For a process

    def join(self, keys: KeyStore, info: ProcessInfo) -> bool:
        """Have the index name this process; false when others changed it all the time.

        Drops one that it names and that is gone: that which had this number before, or
        any. So the index stays as small as there are processes, whoever is killed.
        """
        place = f"{info.instance}/{info.number}"

        def alter(index: Index) -> Index:
            others = [other for other in index if other != info.id]
            suspects = {other for other in others if index[other] == place}
            suspects.update(random.sample(others, min(1, len(others))))
            gone = {other for other in suspects if keys.ttl(self._key(other)) is None}
            kept = {other: at for other, at in index.items() if other not in gone}
            return {**kept, info.id: place}

        return self._change(keys, alter)

    def beat(self, keys: KeyStore, info: ProcessInfo) -> None:
        """Write the record."""
        key = self._key(info.id)
        keys.set(key, self._documents.frame(key, info), RECORD_TTL)

    def leave(self, keys: KeyStore, id: str) -> None:
        """Delete the record, and the name in the index."""
        keys.delete(self._key(id))
        self._drop(keys, {id})

    def answer(self, keys: KeyStore, order: str, id: str, answer: Answer) -> None:
        """Answer an order."""
        key = self._documents.key("answer", order, id)
        keys.set(key, self._documents.frame(key, answer), ANSWER_TTL)

    # For those who ask

    def processes(self) -> list[ProcessInfo]:
        """Those that live, or did some seconds ago; raises as `Documents.keys`.

        Raises `MessageRefused` for records that must not be trusted.
        """
        keys = self._documents.keys()
        found: list[ProcessInfo] = []
        gone: set[str] = set()
        for each in self._read_index(keys):
            key = self._key(each)
            raw, left = keys.get(key), keys.ttl(key)
            if raw is None or left is None:
                gone.add(each)
                continue
            info = self._documents.read(key, raw, ProcessInfo)
            info.beat = max(0.0, RECORD_TTL - left)
            info.up += info.beat
            found.append(info)
        if gone:
            self._drop(keys, gone)
        return found

    def answer_of(self, order: str, id: str) -> Answer | None:
        """What a process answered; None while it has not."""
        key = self._documents.key("answer", order, id)
        raw = self._documents.keys().get(key)
        return None if raw is None else self._documents.read(key, raw, Answer)

    def has(self, id: str) -> bool:
        """Whether there is a record of this process."""
        return self._documents.keys().get(self._key(id)) is not None

    def _key(self, id: str) -> str:
        return self._documents.key("worker", id)

    def _read_index(self, keys: KeyStore) -> Index:
        raw = keys.get(self._index)
        return {} if raw is None else self._documents.read(self._index, raw, Index)

    def _drop(self, keys: KeyStore, ids: set[str]) -> None:
        self._change(keys, lambda index: {it: at for it, at in index.items() if it not in ids})

    def _change(self, keys: KeyStore, alter: Callable[[Index], Index]) -> bool:
        """Change the index; false when others do so each time, and it must be tried later."""
        attempt = self._documents.attempt
        return any(
            attempt(keys, self._index, Index, alter, mend=True) is not None for _ in range(ATTEMPTS)
        )
