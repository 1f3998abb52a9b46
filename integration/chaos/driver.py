"""Runs a load through real supervisors, and breaks it as the plan says."""

from __future__ import annotations

import heapq
import itertools
import json
import random
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from integration.chaos.history import History, Reader
from integration.chaos.plan import Fault, plan
from integration.chaos.processes import Group, signal_one
from integration.chaos.tasks import GRAVE, LOAD, Config, make_app
from integration.servers.redis import RedisServer
from taskline.message import FINAL_STATES, Outcome
from taskline.transports.redis.store import SEND_BATCH
from taskline.worker import WorkerOptions

POISON_DELIVERIES = 3
SITES = {
    "north": WorkerOptions(queues=[LOAD], processes=2, threads=3, max_deliveries=100_000),
    "south": WorkerOptions(queues=[LOAD], processes=2, threads=3, max_deliveries=100_000),
    "grave": WorkerOptions(queues=[GRAVE], processes=1, max_deliveries=POISON_DELIVERIES),
}
PRODUCERS = ("first", "second")
RATE = 60.0
"""Tasks a second from each producer."""
LOOK_EVERY = 0.5
"""Seconds between two looks at the outcomes."""
DRAIN = 60.0
"""Seconds after the last fault in which all must become final."""


class Driver:
    """One run. `run` leaves in the directory all that the checker reads."""

    def __init__(
        self, config: Config, seed: int, seconds: float, server: RedisServer | None = None
    ) -> None:
        """`server`: that of `config.redis`, to be broken as well."""
        self._config = config
        self._server = server
        self._seeds = random.Random(seed)
        self._plan = plan(seed, seconds)
        self._seconds = seconds
        config.history.mkdir(parents=True)
        self._faults = History(config.history, "faults")
        self._app = make_app(config)
        self._groups: list[Group] = []
        self._sites: dict[str, Group] = {}
        self._producers: dict[str, Group] = {}
        self._producing = True
        self._locks = False
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._reader = Reader(config.history)
        self._sending: dict[str, int] = {}
        self._open: set[str] = set()
        """Accepted tasks that were not seen final yet."""
        self._next_look = 0.0

    def run(self) -> None:
        """Run the plan, let the system come to rest, stop it, and write down its final state."""
        try:
            begin = time.monotonic()
            for name in SITES:
                self._start_site(name)
            for name in PRODUCERS:
                self._start_producer(name)
            for fault in self._plan:
                self._live(until=begin + fault.at)
                self._do(fault)
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
            while self._later and self._later[0][0] <= now:
                heapq.heappop(self._later)[2]()
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
            if overslept > self._config.lease / 4:
                # The machine stood still: leases may have ended without any fault of ours.
                self._faults.write("stall", since=now, until=time.monotonic())

    def _at(self, moment: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._later, (moment, next(self._numbers), action))

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
        options = msgspec.json.encode(SITES[name]).decode()
        site = self._start("site", [options], f"site-{name}.log")
        self._sites[name] = site
        self._faults.write("site", name=name, group=site.id)

    def _start_producer(self, name: str) -> None:
        seed = self._seeds.randrange(2**32)
        arguments = [f"{name}{next(self._numbers)}", str(seed), str(RATE)]
        self._producers[name] = self._start("producer", arguments, "producers.log")

    def _start(self, module: str, arguments: list[str], log: str) -> Group:
        group = Group(
            f"integration.chaos.{module}",
            [self._config.dumps(), *arguments],
            Path(self._config.directory) / log,
        )
        self._groups.append(group)
        return group

    # Faults

    def _do(self, fault: Fault) -> None:
        what, lease = fault.what, self._config.lease
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
        elif what == "lock file" and self._server is not None:
            self._stop_server(self._server, fault)
        elif what == "lock file":
            self._lock_file(lease * (0.25 + 1.25 * fault.size))
        elif what == "terminate":
            self._terminate(what, site, lambda: site.signal_leader(signal.SIGTERM))
        elif what == "terminate group":
            self._terminate(what, site, lambda: site.signal_all(signal.SIGTERM))
        elif what == "terminate twice":
            self._terminate_twice(what, site, 0.05 + fault.size / 4)
        else:
            raise ValueError(f"no fault is called {what!r}")

    def _record(self, kind: str, what: str, act: Callable[[], object], **fields: Any) -> None:
        since = time.monotonic()
        act()
        self._faults.write(kind, what=what, since=since, until=time.monotonic(), **fields)

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
            locked = self._file_is_locked()
            for pid in stopped:
                signal_one(pid, group.id, signal.SIGCONT)
            until = time.monotonic()
            self._faults.write(
                "pause", what=what, pids=stopped, since=since, until=until, locked=locked
            )

        if stopped:
            self._at(since + seconds, resume)

    def _lock_file(self, seconds: float) -> None:
        """Be another program that writes to the file, slowly."""
        if self._locks:
            return
        since = time.monotonic()
        connection = sqlite3.connect(self._config.database, timeout=30, isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        self._locks = True

        def release() -> None:
            connection.execute("ROLLBACK")
            connection.close()
            self._locks = False
            until = time.monotonic()
            self._faults.write(
                "pause", what="lock file", pids=[], since=since, until=until, locked=True
            )

        self._at(since + seconds, release)

    def _stop_server(self, server: RedisServer, fault: Fault) -> None:
        """Kill it and start it again, or have it answer nobody for a while."""
        since = time.monotonic()

        def record() -> None:
            until = time.monotonic()
            self._faults.write(
                "pause", what="stop server", pids=[], since=since, until=until, locked=True
            )

        if fault.which < 0.5:
            server.kill()
            server.start()
            record()
        else:
            seconds = self._config.lease * (0.25 + 1.25 * fault.size)
            server.do("CLIENT", "PAUSE", round(seconds * 1000), "ALL")
            self._at(since + seconds, record)

    def _terminate(self, what: str, site: Group, act: Callable[[], None]) -> None:
        site.note_termination()
        self._record("terminate", what, act, group=site.id, again=site.terminated > 1)

    def _terminate_twice(self, what: str, site: Group, gap: float) -> None:
        def again() -> None:
            if site.process.poll() is None:
                self._terminate(what, site, lambda: site.signal_leader(signal.SIGTERM))

        again()
        self._at(time.monotonic() + gap, again)

    def _file_is_locked(self) -> bool:
        """Whether a paused process keeps all others from writing."""
        if self._server is not None:
            return False
        connection = sqlite3.connect(self._config.database, timeout=0, isolation_level=None)
        try:
            for _ in range(10):
                try:
                    connection.execute("BEGIN IMMEDIATE")
                except sqlite3.OperationalError:
                    time.sleep(0.005)
                else:
                    connection.execute("ROLLBACK")
                    return False
            return True
        finally:
            connection.close()

    # Looking

    def _look(self) -> None:
        """Learn what was accepted, and write down each final outcome when it is first seen."""
        self._groups = [
            group for group in self._groups if group.process.poll() is None or group.members()
        ]
        for record in self._reader.new("producer"):
            if record["kind"] == "sending":
                self._sending[record["base"]] = len(record["kinds"])
            elif record["kind"] == "sent":
                base = record["base"]
                self._open.update(f"{base}-{i}" for i in range(self._sending[base]))
        for key, outcome in self._fetch(self._open).items():
            if outcome.state in FINAL_STATES:
                self._open.remove(key)
                self._faults.write("seen", id=key, **self._known(outcome))

    def _fetch(self, ids: set[str]) -> dict[str, Outcome]:
        if not ids:
            return {}
        backend = self._app.require_backend()
        wanted = sorted(ids)
        found: dict[str, Outcome] = {}
        for start in range(0, len(wanted), 1000):
            found.update(backend.fetch(wanted[start : start + 1000]))
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
        while self._later:
            self._live(until=self._later[0][0])
        self._producing = False
        for producer in self._producers.values():
            producer.signal_leader(signal.SIGTERM)
        began = time.monotonic()
        self._live(until=began + DRAIN, done=lambda: not self._producers and self._is_drained())
        self._faults.write("drained", seconds=time.monotonic() - began)
        for site in self._sites.values():
            site.note_termination()
            site.signal_leader(signal.SIGTERM)
        for name, site in self._sites.items():
            code = site.process.wait(timeout=self._config.grace + 10)
            self._faults.write("exit", who=name, code=code, expected=code == 0)

    def _is_drained(self) -> bool:
        if self._open:
            return False
        stats = self._app.transport.stats()
        return not any(
            (each.ready or 0) + (each.delayed or 0) + (each.leased or 0) for each in stats
        )

    def _write_final_state(self) -> None:
        for record in self._reader.new("producer"):
            if record["kind"] == "sending":
                self._sending[record["base"]] = len(record["kinds"])
        ids = {f"{base}-{i}" for base, size in self._sending.items() for i in range(size)}
        transport = self._app.transport
        waiting = {
            message.id: message.state
            for queue in (LOAD, GRAVE)
            for message in transport.peek(queue, limit=1_000_000)
        }
        dead = {
            letter.id: {"reason": letter.reason, "deliveries": letter.deliveries}
            for letter in transport.dead_letters(limit=1_000_000)
        }
        finals = {key: self._known(found) for key, found in self._fetch(ids).items()}
        final = {
            "lease": self._config.lease,
            "apart": self._config.apart,
            "together": SEND_BATCH if self._server is not None else 0,
            "outcomes": finals,
            "dead": dead,
            "waiting": waiting,
            "integrity": self._integrity(len(waiting)),
            "critical": self._critical(),
        }
        path = Path(self._config.directory) / "final.json"
        path.write_text(json.dumps(final))

    def _integrity(self, waiting: int) -> str:
        if self._server is not None:
            stored, begun = (
                int(self._server.do("HLEN", f"{{taskline}}{name}").strip(":\r\n")) for name in "mh"
            )
            if stored == waiting and begun <= stored:
                return "ok"
            return f"{stored} messages are stored, of {begun} a history; {waiting} are in line"
        connection = sqlite3.connect(self._config.database)
        try:
            return str(connection.execute("PRAGMA integrity_check").fetchone()[0])
        finally:
            connection.close()

    def _critical(self) -> list[str]:
        """Lines in the logs that no fault explains."""
        directory = Path(self._config.directory)
        lines = [
            line
            for log in directory.glob("site-*.log")
            for line in log.read_text(errors="replace").splitlines()
            if " CRITICAL " in line
        ]
        told = (directory / "producers.log").read_text(errors="replace").splitlines()
        if self._server is not None:  # We killed it, and they say so.
            told = [line for line in told if not line.startswith("the connection to ")]
        return lines + told


def _expected(site: Group, code: int) -> bool:
    """Whether our own signals explain this end of a supervisor."""
    if code == -signal.SIGKILL:
        return site.killed
    if code == -signal.SIGTERM:
        return site.terminated_young
    return code == 0 and site.terminated > 0


def _pick(things: list[Any], which: float) -> Any:
    return things[int(which * len(things))]
