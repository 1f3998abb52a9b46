"""The key stores of several servers as one: each name has its own."""

from __future__ import annotations

from binascii import crc32
from collections.abc import Sequence

from taskline.backends.keys import KeyStore, Lease, Watch
from taskline.backends.permits import Ask, Claim, Place, Taken


def key_store(stores: Sequence[KeyStore]) -> KeyStore:
    """One of these, or all as one."""
    return stores[0] if len(stores) == 1 else _SpreadKeys(stores)


class _SpreadKeys(KeyStore):
    """Each name has its store, whether that answers or not."""

    def __init__(self, stores: Sequence[KeyStore]) -> None:
        self._stores = stores

    def _at(self, name: str) -> int:
        return crc32(name.encode()) % len(self._stores)

    def _of(self, name: str) -> KeyStore:
        return self._stores[self._at(name)]

    def time(self) -> float:
        return self._stores[0].time()

    def get(self, key: str) -> bytes | None:
        return self._of(key).get(key)

    def set(self, key: str, value: bytes, ttl: float | None, *, if_absent: bool = False) -> bool:
        return self._of(key).set(key, value, ttl, if_absent=if_absent)

    def swap(
        self, key: str, expected: bytes | None, value: bytes | None, ttl: float | None
    ) -> bool:
        return self._of(key).swap(key, expected, value, ttl)

    def delete(self, key: str) -> bool:
        return self._of(key).delete(key)

    def increment(self, key: str, by: int, ttl: float | None) -> int:
        return self._of(key).increment(key, by, ttl)

    def ttl(self, key: str) -> float | None:
        return self._of(key).ttl(key)

    def expire(self, key: str, ttl: float | None) -> bool:
        return self._of(key).expire(key, ttl)

    def take(self, asks: Sequence[Ask]) -> list[Taken]:
        answers: dict[int, Taken] = {}
        for at, some in self._shares([ask.bucket for ask in asks]).items():
            taken = self._stores[at].take([asks[index] for index in some])
            answers.update(zip(some, taken, strict=True))
        return [answers[index] for index in range(len(asks))]

    def hold(self, claims: Sequence[Claim], ttl: float) -> list[list[str]]:
        answers: dict[int, list[str]] = {}
        for at, some in self._shares([claim.name for claim in claims]).items():
            held = self._stores[at].hold([claims[index] for index in some], ttl)
            answers.update(zip(some, held, strict=True))
        return [answers[index] for index in range(len(claims))]

    def places(self, name: str) -> list[Place]:
        return self._of(name).places(name)

    def _shares(self, names: Sequence[str]) -> dict[int, list[int]]:
        """The indices of the names that each store has."""
        shares: dict[int, list[int]] = {}
        for index, name in enumerate(names):
            shares.setdefault(self._at(name), []).append(index)
        return shares

    def acquire(self, name: str, token: str, ttl: float) -> Lease:
        return self._of(name).acquire(name, token, ttl)

    def renew(self, name: str, token: str, ttl: float) -> bool:
        return self._of(name).renew(name, token, ttl)

    def release(self, name: str, token: str) -> bool:
        return self._of(name).release(name, token)

    def holder(self, name: str) -> Lease | None:
        return self._of(name).holder(name)

    def watch(self, name: str) -> Watch:
        return self._of(name).watch(name)
