"""A backend that is one server, or several that know nothing of each other.

Of several, each keeps the outcomes whose ids pick it, so that any process finds them.
While one does not answer, the next takes what would be its own.
"""

from __future__ import annotations

import logging
from binascii import crc32
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from taskline.backends.base import Backend
from taskline.clock import Clock
from taskline.errors import BackendError, TransportError
from taskline.message import FINAL_STATES, Outcome
from taskline.peer import Peer, ask_all


class Store(Protocol):
    """The outcomes on one server: verbs of a backend, of which each may raise `TransportError`,
    and `check` and `about`, of which `ping` and `info` are made."""

    def store(self, outcomes: Sequence[Outcome]) -> list[Outcome]: ...
    def fetch(self, ids: Collection[str]) -> dict[str, Outcome]: ...
    def forget(self, ids: Sequence[str]) -> None: ...
    def expire(self, ids: Sequence[str], ttl: float | None) -> None: ...
    def count(self, key: str, members: Sequence[str], ttl: float) -> int:
        """Add members to a counted set; returns its size."""

    def check(self) -> object: ...
    def about(self) -> dict[str, Any]: ...
    def close(self) -> None: ...


S = TypeVar("S", bound=Store)
T = TypeVar("T")


class Keeper(Peer, Generic[S]):
    """One of the servers, and whether it answers. Any thread may use it."""

    def __init__(self, store: S, address: str, name: str, clock: Clock, log: logging.Logger):
        super().__init__(name, clock, log)
        self.store = store
        self.address = address


class NodesBackend(Backend, Generic[S]):
    """A backend whose verbs are those of a store for each of its keepers."""

    distributes = True
    product: ClassVar[str]
    """What a server is called in errors."""

    def __init__(self, keepers: Sequence[Keeper[S]], clock: Clock) -> None:
        super().__init__(clock)
        self._keepers = list(keepers)
        self._alone = self._keepers[0] if len(self._keepers) == 1 else None

    # Which server

    def _ring(self, id: str) -> list[Keeper[S]]:
        """The servers in the order in which they would keep this outcome."""
        home = crc32(id.encode()) % len(self._keepers)
        return self._keepers[home:] + self._keepers[:home]

    def _by_keeper(self, items: Iterable[T], id: Callable[[T], str]) -> dict[Keeper[S], list[T]]:
        """The items of each server: the first of its ring that answers, else the first."""
        groups: dict[Keeper[S], list[T]] = {}
        for item in items:
            ring = self._ring(id(item))
            keeper = next((each for each in ring if each.usable()), ring[0])
            groups.setdefault(keeper, []).append(item)
        return groups

    def _everywhere(self, work: Callable[[S], T]) -> list[T]:
        """The answers of all servers that answer; raises when none does."""
        if self._alone is not None:
            return [work(self._alone.store)]
        usable = [keeper for keeper in self._keepers if keeper.usable()]
        if not usable:
            raise self._unreachable()
        return ask_all(usable, lambda keeper: work(keeper.store))

    def _unreachable(self) -> BackendError:
        return BackendError(f"none of the {self.product} nodes of the result backend answers")

    # Outcomes

    def store(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        refused = (
            self._store_by_keeper(outcomes)
            if self._alone is None
            else self._alone.store.store(outcomes)
        )
        outranked = {id(each) for each in refused}
        return [outcome for outcome in outcomes if id(outcome) in outranked]

    def _store_by_keeper(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        refused: list[Outcome] = []
        todo = outcomes
        for last in [False] * len(self._keepers) + [True]:
            failed: list[Outcome] = []
            for keeper, group in self._by_keeper(todo, _id).items():
                try:
                    refused += keeper.attempt(partial(keeper.store.store, group))
                except TransportError as error:
                    if last or not error.retryable:
                        raise
                    failed += group
            todo = failed
            if not todo:
                break
        return refused

    def fetch(self, ids: Collection[str]) -> dict[str, Outcome]:
        if self._alone is not None:
            return self._alone.store.fetch(ids)
        found: dict[str, Outcome] = {}
        for keeper, group in self._by_keeper(ids, str).items():
            _add(keeper, group, found)
        for keeper in self._keepers:
            # One that did not answer may have left its outcomes to another.
            missing = [
                each for each in ids if each not in found or found[each].state not in FINAL_STATES
            ]
            if missing and keeper.usable():
                _add(keeper, missing, found)
        if all(keeper.down for keeper in self._keepers):
            raise self._unreachable()
        return found

    def final(self, ids: Collection[str]) -> dict[str, Outcome]:
        """Those of these outcomes that are final."""
        found = self.fetch(ids) if ids else {}
        return {key: each for key, each in found.items() if each.state in FINAL_STATES}

    def forget(self, ids: Sequence[str]) -> None:
        self._everywhere(lambda store: store.forget(ids))

    def expire(self, ids: Sequence[str], ttl: float | None) -> None:
        self._everywhere(lambda store: store.expire(ids, ttl))

    # Counters

    def count(self, key: str, member: str, ttl: float) -> int:
        return self.count_all({key: [member]}, ttl)[key]

    def count_all(self, members: Mapping[str, Sequence[str]], ttl: float) -> dict[str, int]:
        """Each set is on the server that its key picks, whether that answers or not."""
        if self._alone is not None:
            store = self._alone.store
            return {key: store.count(key, group, ttl) for key, group in members.items()}
        sizes = {}
        for key, group in members.items():
            home = self._ring(key)[0]
            sizes[key] = home.attempt(partial(home.store.count, key, group, ttl))
        return sizes

    # Health

    def ping(self) -> None:
        """At least one server must answer; none may be one that would lose outcomes."""
        self._everywhere(lambda store: store.check())

    def info(self) -> dict[str, Any]:
        about = self._everywhere(lambda store: store.about())
        address = " ".join(keeper.address for keeper in self._keepers)
        known = {"backend": self.scheme, "address": address}
        if self._alone is not None:
            return {**known, **about[0]}
        version = ", ".join(sorted({str(each["version"]) for each in about}))
        return {**known, "version": version, "nodes": about}

    def close(self) -> None:
        for keeper in self._keepers:
            keeper.store.close()


def _id(outcome: Outcome) -> str:
    return outcome.id


def _add(keeper: Keeper[S], ids: Collection[str], found: dict[str, Outcome]) -> None:
    """Add what a server has of these, where it is newer than what was found."""
    try:
        more = keeper.attempt(lambda: keeper.store.fetch(ids))
    except TransportError as error:
        if not error.retryable:
            raise
        return
    for key, outcome in more.items():
        if key not in found or found[key].fence <= outcome.fence:
            found[key] = outcome
