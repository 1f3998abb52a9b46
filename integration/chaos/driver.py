"""Runs a load through real supervisors, and breaks it as the plan says."""

from __future__ import annotations

import itertools
import json
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from integration.chaos.faults import Breaker
from integration.chaos.history import History, Reader
from integration.chaos.plan import CALM_FAULTS, Fault, plan
from integration.chaos.processes import Group
from integration.chaos.stores.base import PRODUCERS, Store
from integration.chaos.tasks import GRAVE, LOAD, make_app
from taskline.errors import TransportError
from taskline.message import FINAL_STATES, Outcome
from taskline.worker import WorkerOptions

POISON_DELIVERIES = 3
SITES = {
    "north": WorkerOptions(queues=[LOAD], processes=2, threads=3, max_deliveries=100_000),
    "south": WorkerOptions(queues=[LOAD], processes=2, threads=3, max_deliveries=100_000),
    "grave": WorkerOptions(queues=[GRAVE], processes=1, max_deliveries=POISON_DELIVERIES),
}
SKEWED = "south"
"""The site whose clock is wrong, each time by something else."""
LOOK_EVERY = 0.5
"""Seconds between two looks at the outcomes."""
DRAIN = 90.0
"""Seconds after the last fault, and after the last sign of work, in which all must become final."""
QUIET = 4.0
"""Seconds, beside two leases, without a run after which nothing more will come: longer than any
task is delayed. For stores that cannot tell how much they hold or delay."""


def plan_for(store: type[Store], seed: int, seconds: float, pace: float = 1.0) -> list[Fault]:
    """What is broken when, for this store."""
    return plan(seed, seconds, {**CALM_FAULTS, **store.faults}, store.gap / pace)


class Driver:
    """One run on an open store. `run` leaves in its directory all that the checker reads."""

    def __init__(self, store: Store, seed: int, seconds: float) -> None:
        self._store = store
        self._config = store.config()
        self._seeds = random.Random(seed)
        self._skews = random.Random(seed + 1)
        self._plan = plan_for(type(store), seed, seconds, store.pace)
        self._seconds = seconds
        self._config.history.mkdir(parents=True)
        self._faults = History(self._config.history, "faults")
        self._app = make_app(self._config)
        self._groups: list[Group] = []
        self._sites: dict[str, Group] = {}
        self._producers: dict[str, Group] = {}
        self._breaker = Breaker(store, self._faults, self._sites, self._producers)
        self._producing = True
        self._numbers = itertools.count()
        self._reader = Reader(self._config.history)
        self._sending: dict[str, int] = {}
        self._open: set[str] = set()
        """Accepted tasks that were not seen final yet."""
        self._final: set[str] = set()
        self._next_look = 0.0
        self._last_change = 0.0
        self._size = 0

    def run(self) -> None:
        """Run the plan, let the system come to rest, stop it, and write down its final state."""
        try:
            begin = time.monotonic()
            for name in SITES:
                self._start_site(name)
            for name in ("first", "second"):
                self._start_producer(name)
            for fault in self._plan:
                self._live(until=begin + fault.at)
                if time.monotonic() > begin + self._seconds:
                    break  # a machine that is too busy to do all of it
                self._breaker.do(fault)
            self._live(until=begin + self._seconds)
            self._come_to_rest()
        finally:
            for group in self._groups:
                group.end()
        self._write_final_state()
        self._app.close()

    # Living on between faults

    def _live(self, until: float, done: Callable[[], bool] = lambda: False) -> bool:
        """Restart what has ended and do what is due, until a moment or until `done`."""
        while True:
            now = time.monotonic()
            self._breaker.do_what_is_due()
            self._tend()
            if now >= self._next_look:
                self._look()
                self._next_look = time.monotonic() + LOOK_EVERY
                if done():
                    return True
            now = time.monotonic()
            if now >= until:
                return False
            pause = min(until - now, 0.02)
            time.sleep(pause)
            overslept = time.monotonic() - now - pause
            if overslept > self._store.lease / 4:
                # The machine stood still: leases may have ended without any fault of ours.
                self._faults.write("stall", since=now, until=time.monotonic())

    def _tend(self) -> None:
        for name, site in list(self._sites.items()):
            code = site.process.poll()
            if code is not None:
                self._faults.write("exit", who=name, code=code, expected=_expected(site, code))
                self._start_site(name)
        for name, producer in list(self._producers.items()):
            code = producer.process.poll()
            if code is not None:
                expected = code in (-signal.SIGKILL, -signal.SIGALRM) or not self._producing
                self._faults.write("exit", who=name, code=code, expected=expected)
                del self._producers[name]
                if self._producing:
                    self._start_producer(name)

    def _start_site(self, name: str) -> None:
        skew = self._skews.uniform(-1, 1) * self._store.skew if name == SKEWED else 0.0
        config = self._store.config(name, skew=round(skew, 3))
        options = msgspec.json.encode(SITES[name]).decode()
        site = self._start("site", [config.dumps(), options], f"site-{name}.log")
        self._sites[name] = site
        self._faults.write("site", name=name, group=site.id, skew=config.skew)

    def _start_producer(self, name: str) -> None:
        seed = self._seeds.randrange(2**32)
        config = self._store.config(PRODUCERS)
        rate = self._store.rate * self._store.pace
        load = [str(seed), str(rate), str(self._store.largest)]
        arguments = [config.dumps(), f"{name}{next(self._numbers)}", *load]
        self._producers[name] = self._start("producer", arguments, "producers.log")

    def _start(self, module: str, arguments: list[str], log: str) -> Group:
        group = Group(f"integration.chaos.{module}", arguments, Path(self._config.directory) / log)
        self._groups.append(group)
        return group

    # Looking

    def _look(self) -> None:
        """Learn what was accepted, and write down each final outcome when it is first seen."""
        self._groups = [
            group for group in self._groups if group.process.poll() is None or group.members()
        ]
        self._read_sends()
        for key, outcome in self._fetch(self._open).items():
            if outcome.state in FINAL_STATES:
                self._open.remove(key)
                self._final.add(key)
                self._faults.write("seen", id=key, **self._known(outcome))

    def _read_sends(self) -> None:
        for record in self._reader.new("producer"):
            if record["kind"] == "sending":
                self._sending[record["base"]] = len(record["kinds"])
            elif record["kind"] == "sent":
                base, joined = record["base"], record["joined"]
                ids = [joined] if joined else [f"{base}-{i}" for i in range(self._sending[base])]
                self._open.update(each for each in ids if each not in self._final)

    def _fetch(self, ids: set[str], *, at_last: bool = False) -> dict[str, Outcome]:
        """The outcomes of these tasks; of none while the store is broken, unless `at_last`."""
        found: dict[str, Outcome] = {}
        if not ids or not (self._store.answers or at_last):
            return found
        backend = self._app.require_backend()
        wanted = sorted(ids)
        try:
            for start in range(0, len(wanted), 1000):
                found.update(backend.fetch(wanted[start : start + 1000]))
        except TransportError:
            if at_last:
                raise
        return found

    def _known(self, outcome: Outcome) -> dict[str, Any]:
        header, body = self._app.codec.open_outcome(outcome.frame)
        value = self._app.codec.loads(header, body) if header.state == "SUCCESS" else None
        return {
            "state": outcome.state,
            "token": value,
            "attempt": header.attempt,
            "deliveries": outcome.deliveries,
        }

    # The end

    def _come_to_rest(self) -> None:
        while (until := self._breaker.busy_until) is not None:
            self._live(until=until)
        self._producing = False
        for producer in self._producers.values():
            producer.signal_leader(signal.SIGTERM)
        began = self._last_change = time.monotonic()
        while not self._live(
            until=time.monotonic() + DRAIN / 10,
            done=lambda: not self._producers and self._is_drained(),
        ):
            self._look_for_work()
            if time.monotonic() - self._last_change > DRAIN:
                break
        self._faults.write("drained", seconds=time.monotonic() - began)
        for site in self._sites.values():
            site.note_termination()
            site.signal_leader(signal.SIGTERM)
        for name, site in self._sites.items():
            code = site.process.wait(timeout=self._config.grace + 10)
            self._faults.write("exit", who=name, code=code, expected=_expected(site, code))

    def _is_drained(self) -> bool:
        if self._open or not self._quiet():
            return False
        stats = self._app.transport.stats([LOAD, GRAVE])
        return not any(
            (each.ready or 0) + (each.delayed or 0) + (each.leased or 0) for each in stats
        )

    def _quiet(self) -> bool:
        """Whether no task began or ended for so long that none is delayed, retried or leased."""
        capabilities = self._app.transport.capabilities
        if capabilities.leases and capabilities.random_access:
            return True  # its counts tell
        self._look_for_work()
        return time.monotonic() - self._last_change > QUIET + 2 * self._store.lease

    def _look_for_work(self) -> None:
        """Notice when a task began or ended last."""
        size = sum(file.stat().st_size for file in self._config.history.glob("worker-*"))
        if size != self._size:
            self._size, self._last_change = size, time.monotonic()

    def _write_final_state(self) -> None:
        self._read_sends()
        ids = {f"{base}-{i}" for base, size in self._sending.items() for i in range(size)}
        transport = self._app.transport
        waiting = self._store.waiting(self._app)
        dead = {
            letter.id: {"reason": letter.reason, "deliveries": letter.deliveries}
            for letter in transport.dead_letters(limit=1_000_000)
        }
        outcomes = self._fetch(ids, at_last=True)
        ahead = time.time() - time.monotonic()
        final = {
            "store": self._store.name,
            "lease": self._store.lease,
            "capabilities": msgspec.to_builtins(transport.capabilities),
            "together": self._store.together,
            "batch": self._store.batch,
            "answers_lost": self._store.answers_lost,
            "drain": self._store.drain,
            "moves": [(pid, at - ahead) for pid, at in self._store.moves()],
            "outcomes": {key: self._known(found) for key, found in outcomes.items()},
            "dead": dead,
            "waiting": waiting,
            "integrity": self._store.integrity(self._app, len(waiting)),
            "critical": self._critical(),
        }
        path = Path(self._config.directory) / "final.json"
        path.write_text(json.dumps(final))

    def _critical(self) -> list[str]:
        """Lines in the logs that no fault explains."""
        directory = Path(self._config.directory)
        lines = [
            line
            for log in directory.glob("site-*.log")
            for line in log.read_text(errors="replace").splitlines()
            if " CRITICAL " in line or line.startswith("Exception in ")
        ]
        told = (directory / "producers.log").read_text(errors="replace").splitlines()
        return lines + [line for line in told if not self._store.excuses(line)]


def _expected(site: Group, code: int) -> bool:
    """Whether our own signals explain this end of a supervisor."""
    if code == -signal.SIGKILL:
        return site.killed
    if code == -signal.SIGTERM:
        return site.terminated_young
    return code == 0 and site.terminated > 0
