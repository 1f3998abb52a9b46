"""What is known of one run of the driver: what its processes wrote down, and the final state."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from integration.chaos.history import Reader
from integration.chaos.tasks import KINDS, Kind
from taskline.transports.base import Capabilities

PRODUCERS = "producers"
TOLD = 0.5
"""Seconds until a line stands in a log, on a busy machine."""


class Sent(NamedTuple):
    """One task that a producer was about to send."""

    id: str
    base: str
    kind: Kind
    accepted: bool | None
    """None when the producer died before its send returned or raised."""
    since: float
    until: float
    """When its send was over; infinity if nobody knows. Of the monotonic clock."""
    eta: float | None
    expires: float | None
    key: int
    """Of the tasks of which one with each key may be there at a time."""
    joined: str
    """The task whose result this call got, which was sent before; empty if it was sent itself."""


class Run(NamedTuple):
    """One start of a task's code. Times are of the monotonic clock, `wall` of the other."""

    id: str
    attempt: int
    deliveries: int
    pid: int
    group: int
    start: float
    wall: float
    finish: float
    """Infinity when it never ended."""
    end: str
    """`ok`, `raised`, or empty."""
    token: str | None


class Trouble(NamedTuple):
    """What explains a repeat: processes ended, stood still or lost their way to the store."""

    kind: str
    what: str
    pids: frozenset[int]
    groups: frozenset[int]
    """Of the processes that it hit, beside those of `pids`."""
    everybody: bool
    since: float
    until: float

    @property
    def over(self) -> float:
        """Its end; of one that has none its beginning."""
        return self.since if self.until == math.inf else self.until

    def hits(self, run: Run) -> bool:
        return self.everybody or run.pid in self.pids or run.group in self.groups


class Evidence:
    """All that is known of one run of the driver."""

    def __init__(self, records: Iterable[dict[str, Any]], final: dict[str, Any]) -> None:
        kinds: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for record in records:
            kinds[record["kind"]].append(record)
        self.records = kinds
        self.store: str = final["store"]
        self.lease: float = final["lease"]
        self.capabilities = Capabilities(**final["capabilities"])
        self.together: bool = final["together"]
        """Receipts and outcomes are one step. Else outcomes are stored before the receipt is
        given back: a death in between costs a second run, whose outcome replaces the first's."""
        self.batch: int = final["batch"]
        """How many messages of a batch are stored in one step; 0 for all."""
        self.answers_lost: bool = final["answers_lost"]
        """Whether a send that raised may have been stored."""
        self.drain: float = final["drain"]
        self.moves = [
            Trouble("move", "partition", frozenset({pid}), NOBODY, False, at, at)
            for pid, at in final["moves"]
        ]
        """What a process had run for `drain` seconds it then handed back, as others were to have
        it."""
        self.outcomes: dict[str, dict[str, Any]] = final["outcomes"]
        self.dead: dict[str, dict[str, Any]] = final["dead"]
        self.waiting: dict[str, str] = final["waiting"]
        self.integrity: str = final["integrity"]
        self.critical: list[str] = final["critical"]
        self.sent = {task.id: task for task in _sent(kinds)}
        self.joined = {task.joined for task in self.sent.values() if task.joined}
        """Tasks whose result somebody was promised who asked for another one."""
        self.runs = _runs(kinds)
        self.groups: dict[str, set[int]] = defaultdict(set)
        """All process groups that a site had."""
        self.skews: dict[int, float] = {}
        """By how much the clock of a process group was wrong."""
        for record in kinds["site"]:
            self.groups[record["name"]].add(record["group"])
            self.skews[record["group"]] = record["skew"]
        self.deaths = list(_deaths(kinds))
        self.pauses = [*_pauses(kinds, self.lease), *self._cuts()]

    @classmethod
    def read(cls, directory: str | Path) -> Evidence:
        """The evidence that the driver left in a directory."""
        records = Reader(Path(directory) / "history").new()
        return cls(records, json.loads((Path(directory) / "final.json").read_text()))

    def there(self, id: str) -> bool:
        """Whether this task left any trace in the system."""
        return id in self.runs or id in self.outcomes or id in self.dead or id in self.waiting

    def _cuts(self) -> Iterator[Trouble]:
        """Connections of a site that were broken for so long that a lease may have ended.

        However shortly, where what is handed over belongs to the connection.
        """
        shortest = self.lease / 2 if self.capabilities.leases else 0.0
        for record in self.records["link"]:
            if record["until"] - record["since"] >= shortest and record["who"] != PRODUCERS:
                groups = frozenset(self.groups[record["who"]])
                times = record["since"], record["until"]
                yield Trouble("link", record["what"], frozenset(), groups, False, *times)

    def copied(self, task: Sent) -> bool:
        """Whether the store may have got several copies of this task's message.

        Only where it cannot tell the second send of an id: it may have been sent again when the
        answer was lost, or, where a message is moved by storing it anew before the old one is
        acknowledged, whoever moved it may have lost its connection in between.
        """
        if self.capabilities.idempotent:
            return False
        sends = [
            record
            for kind in ("link", "pause", "refuse")
            for record in self.records[kind]
            if record.get("who", PRODUCERS) in (PRODUCERS, "")
        ]
        if any(each["since"] <= task.until and each["until"] >= task.since for each in sends):
            return True
        runs = self.runs.get(task.id)
        if self.capabilities.leases or not runs:
            return False
        since, until = min(run.start for run in runs), max(run.start for run in runs)
        return any(
            each.since <= until and each.over >= since - 2 * self.lease
            for each in (*self.deaths, *self.pauses)
        )


def _sent(kinds: dict[str, list[dict[str, Any]]]) -> Iterator[Sent]:
    ends = {record["base"]: record for kind in ("sent", "raised") for record in kinds[kind]}
    for record in kinds["sending"]:
        base = record["base"]
        end = ends.get(base)
        for index, letter in enumerate(record["kinds"]):
            yield Sent(
                f"{base}-{index}",
                base,
                KINDS[letter],
                None if end is None else end["kind"] == "sent",
                record["t"],
                math.inf if end is None else end["t"],
                record["etas"].get(str(index)),
                record["expiries"].get(str(index)),
                record.get("key", 0),
                end.get("joined", "") if end else "",
            )


def _runs(kinds: dict[str, list[dict[str, Any]]]) -> dict[str, list[Run]]:
    """The runs of each task in the order of its deliveries."""
    ends = {record["run"]: record for record in kinds["finish"]}
    found: dict[str, list[Run]] = defaultdict(list)
    for record in kinds["start"]:
        end = ends.get(record["run"])
        found[record["id"]].append(
            Run(
                record["id"],
                record["attempt"],
                record["deliveries"],
                record["pid"],
                record["group"],
                record["t"],
                record["wall"],
                end["t"] if end else math.inf,
                end["end"] if end else "",
                record["run"] if end and end["end"] == "ok" else None,
            )
        )
    for runs in found.values():
        runs.sort(key=lambda run: (run.deliveries, run.start))
    return dict(found)


NOBODY: frozenset[int] = frozenset()


def _deaths(kinds: dict[str, list[dict[str, Any]]]) -> Iterator[Trouble]:
    for record in kinds["kill"]:
        pids = frozenset(record.get("pids", ()))
        group = record.get("group")
        groups = NOBODY if group is None else frozenset({group})
        times = record["since"], record["until"]
        yield Trouble("kill", record["what"], pids, groups, False, *times)
    for record in kinds["terminate"]:
        if record["again"]:
            # From the second signal on running tasks are handed back.
            groups = frozenset({record["group"]})
            times = record["since"], math.inf
            yield Trouble("stop", record["what"], NOBODY, groups, False, *times)
    for record in kinds["crash"]:
        pids = frozenset({record["pid"]})
        # It was written just before the process ended, which may begin another task meanwhile.
        yield Trouble("crash", "task", pids, NOBODY, False, record["t"], math.inf)


def _pauses(kinds: dict[str, list[dict[str, Any]]], lease: float) -> Iterator[Trouble]:
    """Those long enough for a lease to end, which is renewed each third of its time."""
    for record in kinds["pause"]:
        if record["until"] - record["since"] >= lease / 2:
            pids = NOBODY if record["locked"] else frozenset(record["pids"])
            times = record["since"], record["until"]
            yield Trouble("pause", record["what"], pids, NOBODY, record["locked"], *times)
    for record in kinds["stall"]:
        times = record["since"], record["until"]
        yield Trouble("stall", "machine", NOBODY, NOBODY, True, *times)


def explanation(evidence: Evidence, run: Run, successor: Run) -> Trouble | None:
    """What took this run's delivery away from it before its successor had it."""
    lease = evidence.lease
    mine = [pause for pause in evidence.pauses if pause.hits(run)]
    still = sum(
        max(0.0, min(pause.until, successor.start) - max(pause.since, run.finish)) for pause in mine
    )
    settled = run.finish + lease + still
    for death in evidence.deaths:
        if (
            death.hits(run)
            and death.until >= run.start
            and death.since <= min(settled, successor.start)
        ):
            return death
    for pause in mine:
        # It may also have received the task, been paused, and begun it afterwards.
        if pause.until >= run.start - lease and pause.since <= min(
            run.finish + lease, max(run.start, successor.start)
        ):
            return pause
    for move in evidence.moves:
        began, soon = run.start + evidence.drain, move.since + TOLD
        if move.hits(run) and began <= soon and run.finish >= move.since <= successor.start + TOLD:
            return move
    return None
