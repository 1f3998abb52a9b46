"""Does what the plan says to processes and stores, and writes down what was done."""

from __future__ import annotations

import heapq
import itertools
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any

from integration.chaos.history import History
from integration.chaos.plan import Fault
from integration.chaos.processes import Group, signal_one
from integration.chaos.stores.base import Store, Trouble

AGAIN = 0.05
"""Seconds until a fault that has not ended is asked again."""


class Breaker:
    """Breaks the sites and producers that there are, and the store."""

    def __init__(
        self,
        store: Store,
        history: History,
        sites: Mapping[str, Group],
        producers: Mapping[str, Group],
    ) -> None:
        self._store = store
        self._history = history
        self._sites = sites
        self._producers = producers
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def _at(self, moment: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._later, (moment, next(self._numbers), action))

    def do_what_is_due(self) -> None:
        """End the pauses, and mend what was broken for long enough."""
        while self._later and self._later[0][0] <= time.monotonic():
            heapq.heappop(self._later)[2]()

    @property
    def busy_until(self) -> float | None:
        """When the next fault ends, while there is one."""
        return self._later[0][0] if self._later else None

    def do(self, fault: Fault) -> None:
        """One fault. Nothing is done where there is nobody that it could hit now."""
        what, lease = fault.what, self._store.lease
        site = _pick(list(self._sites.values()), fault.which)
        longer = lease * (1.25 + fault.size)
        if what == "kill child":
            victims = [(pid, each) for each in self._sites.values() for pid in each.children()]
            if victims:
                pid, site = _pick(victims, fault.which)
                self._kill(what, [pid], site)
        elif what == "kill children":
            self._kill(what, site.children(), site)
        elif what == "kill supervisor":
            site.killed = True
            self._kill(what, [site.id], site)
        elif what == "kill group":
            site.killed = True
            self._record("kill", what, lambda: site.signal_all(signal.SIGKILL), group=site.id)
        elif what == "kill producer":
            producer = _pick(list(self._producers.values()), fault.which)
            self._kill(what, [producer.id], producer)
        elif what == "pause child":
            self._pause(what, site.children()[:1], site, longer)
        elif what == "pause child briefly":
            self._pause(what, site.children()[:1], site, lease * (0.05 + fault.size / 4))
        elif what == "pause supervisor":
            self._pause(what, [site.id], site, 0.2 + fault.size)
        elif what == "pause group":
            self._pause(what, [site.id, *site.children()], site, longer)
        elif what == "terminate":
            self._terminate(what, site, lambda: site.signal_leader(signal.SIGTERM))
        elif what == "terminate group":
            self._terminate(what, site, lambda: site.signal_all(signal.SIGTERM))
        elif what == "terminate twice":
            self._terminate_twice(what, site, 0.05 + fault.size / 4)
        else:
            self._strike(fault)

    def _record(self, kind: str, what: str, act: Callable[[], object], **fields: Any) -> None:
        since = time.monotonic()
        act()
        self._history.write(kind, what=what, since=since, until=time.monotonic(), **fields)

    def _kill(self, what: str, pids: list[int], group: Group) -> None:
        # What is killed together is one fault: a task cannot be held to its second worker.
        def act() -> None:
            for pid in pids:
                signal_one(pid, group.id, signal.SIGKILL)

        if pids:
            self._record("kill", what, act, pids=pids)

    def _pause(self, what: str, pids: list[int], group: Group, seconds: float) -> None:
        since = time.monotonic()
        stopped = [pid for pid in pids if signal_one(pid, group.id, signal.SIGSTOP)]

        def resume() -> None:
            locked = self._store.held()
            for pid in stopped:
                signal_one(pid, group.id, signal.SIGCONT)
            until = time.monotonic()
            self._history.write(
                "pause", what=what, pids=stopped, since=since, until=until, locked=locked
            )

        if stopped:
            self._at(since + seconds, resume)

    def _terminate(self, what: str, site: Group, act: Callable[[], None]) -> None:
        site.note_termination()
        self._record("terminate", what, act, group=site.id, again=site.terminated > 1)

    def _terminate_twice(self, what: str, site: Group, gap: float) -> None:
        def again() -> None:
            if site.process.poll() is None:
                self._terminate(what, site, lambda: site.signal_leader(signal.SIGTERM))

        again()
        self._at(time.monotonic() + gap, again)

    def _strike(self, fault: Fault) -> None:
        """Break the store, or somebody's way to it."""
        since = time.monotonic()
        trouble = self._store.strike(fault.what, fault.which, fault.size)
        if trouble is None:
            return

        def end() -> None:
            if trouble.end():
                self._write(fault.what, trouble, since)
            else:
                self._at(time.monotonic() + AGAIN, end)

        self._at(since + trouble.seconds, end)

    def _write(self, what: str, trouble: Trouble, since: float) -> None:
        until = time.monotonic()
        if trouble.kind == "pause":
            self._history.write("pause", what=what, pids=[], since=since, until=until, locked=True)
        else:
            self._history.write(trouble.kind, what=what, who=trouble.link, since=since, until=until)


def _pick(things: list[Any], which: float) -> Any:
    return things[int(which * len(things))]
