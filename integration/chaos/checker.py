"""Judges a run by what its processes wrote down and by the final state.

It knows the promises and nothing of how they are kept. Each rule that is broken
is told with the task and what speaks against it.

Two runs of one attempt need an explanation: the process of every run but the last
was killed, or told to stop at once, while it ran the task or before the result can
have been stored; or it was paused (it, or who held the file's lock, or the whole
machine) for so long that its lease may have ended.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from integration.chaos.history import Reader
from integration.chaos.tasks import EXHAUSTING_ATTEMPTS, FLAKY_ATTEMPTS, KINDS, Kind

EARLY = 0.002
"""Seconds by which two readings of the wall clock may differ."""


class Violation(NamedTuple):
    rule: str
    id: str
    text: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.id}: {self.text}"


class Sent(NamedTuple):
    """One task that a producer was about to send."""

    id: str
    base: str
    kind: Kind
    accepted: bool | None
    """None when the producer died before its send returned or raised."""
    eta: float | None
    expires: float | None


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
    """What explains a repeat: processes ended or stood still. No pids: every process did."""

    kind: str
    what: str
    pids: frozenset[int]
    group: int | None
    since: float
    until: float

    def hits(self, run: Run) -> bool:
        if self.group is not None:
            return run.group == self.group
        return not self.pids or run.pid in self.pids


class Evidence:
    """All that is known of one run of the driver."""

    def __init__(self, records: Iterable[dict[str, Any]], final: dict[str, Any]) -> None:
        kinds: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for record in records:
            kinds[record["kind"]].append(record)
        self.records = kinds
        self.lease: float = final["lease"]
        self.apart: bool = final["apart"]
        """Outcomes are stored before the receipt is given back: a death in between costs a second
        run, whose outcome replaces that of the first."""
        self.together: int = final["together"]
        """How many messages of a batch are stored in one step; 0 for all."""
        self.outcomes: dict[str, dict[str, Any]] = final["outcomes"]
        self.dead: dict[str, dict[str, Any]] = final["dead"]
        self.waiting: dict[str, str] = final["waiting"]
        self.integrity: str = final["integrity"]
        self.critical: list[str] = final["critical"]
        self.sent = {task.id: task for task in _sent(kinds)}
        self.runs = _runs(kinds)
        self.deaths = list(_deaths(kinds))
        self.pauses = list(_pauses(kinds, self.lease))
        self.standstills = [pause for pause in self.pauses if not pause.pids]

    @classmethod
    def read(cls, directory: str | Path) -> Evidence:
        """The evidence that the driver left in a directory."""
        records = Reader(Path(directory) / "history").new()
        return cls(records, json.loads((Path(directory) / "final.json").read_text()))

    def there(self, id: str) -> bool:
        """Whether this task left any trace in the system."""
        return id in self.runs or id in self.outcomes or id in self.dead or id in self.waiting


def _sent(kinds: dict[str, list[dict[str, Any]]]) -> Iterator[Sent]:
    accepted = {record["base"]: True for record in kinds["sent"]}
    accepted.update({record["base"]: False for record in kinds["raised"]})
    for record in kinds["sending"]:
        base = record["base"]
        for index, letter in enumerate(record["kinds"]):
            yield Sent(
                f"{base}-{index}",
                base,
                KINDS[letter],
                accepted.get(base),
                record["etas"].get(str(index)),
                record["expiries"].get(str(index)),
            )


def _runs(kinds: dict[str, list[dict[str, Any]]]) -> dict[str, list[Run]]:
    """The runs of each task in the order of its deliveries."""
    ends = {
        (record["id"], record["deliveries"], record["pid"]): record for record in kinds["finish"]
    }
    found: dict[str, list[Run]] = defaultdict(list)
    for record in kinds["start"]:
        end = ends.get((record["id"], record["deliveries"], record["pid"]))
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
                end.get("token") if end else None,
            )
        )
    for runs in found.values():
        runs.sort(key=lambda run: (run.deliveries, run.start))
    return dict(found)


def _deaths(kinds: dict[str, list[dict[str, Any]]]) -> Iterator[Trouble]:
    for record in kinds["kill"]:
        pids = frozenset(record.get("pids", ()))
        yield Trouble(
            "kill", record["what"], pids, record.get("group"), record["since"], record["until"]
        )
    for record in kinds["terminate"]:
        if record["again"]:
            # From the second signal on running tasks are handed back.
            yield Trouble(
                "stop", record["what"], frozenset(), record["group"], record["since"], math.inf
            )
    for record in kinds["crash"]:
        pids = frozenset({record["pid"]})
        yield Trouble("crash", "task", pids, None, record["t"], record["t"])


def _pauses(kinds: dict[str, list[dict[str, Any]]], lease: float) -> Iterator[Trouble]:
    """Those long enough for a lease to end, which is renewed each third of its time."""
    for record in kinds["pause"]:
        if record["until"] - record["since"] >= lease / 2:
            pids = frozenset() if record["locked"] else frozenset(record["pids"])
            yield Trouble("pause", record["what"], pids, None, record["since"], record["until"])
    for record in kinds["stall"]:
        yield Trouble("stall", "machine", frozenset(), None, record["since"], record["until"])


def explanation(evidence: Evidence, run: Run, successor: Run) -> Trouble | None:
    """What took this run's delivery away from it before its successor had it."""
    lease = evidence.lease
    still = sum(
        max(0.0, min(pause.until, successor.start) - max(pause.since, run.finish))
        for pause in evidence.standstills
    )
    settled = run.finish + lease + still
    for death in evidence.deaths:
        if (
            death.hits(run)
            and death.until >= run.start
            and death.since <= min(settled, successor.start)
        ):
            return death
    for pause in evidence.pauses:
        # It may also have received the task, been paused, and begun it afterwards.
        if (
            pause.hits(run)
            and pause.until >= run.start - lease
            and pause.since <= min(run.finish + lease, max(run.start, successor.start))
        ):
            return pause
    return None


def check(evidence: Evidence) -> list[Violation]:
    """Every promise that this run broke."""
    return [
        *_whole_batches(evidence),
        *_one_end_each(evidence),
        *_nothing_invented(evidence),
        *_repeats(evidence),
        *_attempts(evidence),
        *_results(evidence),
        *_in_time(evidence),
        *_finals_stay(evidence),
        *_system(evidence),
    ]


def _whole_batches(evidence: Evidence) -> Iterator[Violation]:
    batches: dict[str, list[Sent]] = defaultdict(list)
    for task in evidence.sent.values():
        batches[task.base].append(task)
    for base, tasks in batches.items():
        there = sum(evidence.there(task.id) for task in tasks)
        accepted = tasks[0].accepted
        if accepted is False and there:
            yield Violation("raised but sent", base, f"{there} of {len(tasks)} are in the system")
        whole = evidence.together and there % evidence.together == 0
        if accepted is None and 0 < there < len(tasks) and not whole:
            yield Violation("half a batch", base, f"{there} of {len(tasks)} are in the system")


def _one_end_each(evidence: Evidence) -> Iterator[Violation]:
    for task in evidence.sent.values():
        if not (task.accepted or evidence.there(task.id)):
            continue
        outcome = evidence.outcomes.get(task.id)
        state = outcome["state"] if outcome else None
        if task.id in evidence.waiting:
            yield Violation("not final", task.id, f"still {evidence.waiting[task.id]}")
        elif state is None:
            yield Violation("lost", task.id, f"a {task.kind.task} task without an outcome")
        elif state not in task.kind.ends:
            yield Violation("wrong end", task.id, f"a {task.kind.task} task ended in {state}")
        dead = task.id in evidence.dead
        if dead and state != "FAILURE":
            yield Violation(
                "dead letter",
                task.id,
                f"{evidence.dead[task.id]['reason']}, but its state is {state}",
            )
        if state == "FAILURE" and not dead:
            yield Violation("two ends", task.id, "a FAILURE without a dead letter")


def _nothing_invented(evidence: Evidence) -> Iterator[Violation]:
    for where in (evidence.runs, evidence.outcomes, evidence.dead, evidence.waiting):
        for key in where:
            if key not in evidence.sent:
                yield Violation("invented", key, "nobody sent it")


def _repeats(evidence: Evidence) -> Iterator[Violation]:
    for key, runs in evidence.runs.items():
        for run, successor in itertools.pairwise(runs):
            if run.deliveries == successor.deliveries:
                yield Violation("two runs", key, f"delivery {run.deliveries} was run twice")
            elif run.attempt == successor.attempt and not explanation(evidence, run, successor):
                ended = f"{run.end} after {run.finish - run.start:.3f} s" if run.end else "cut off"
                yield Violation(
                    "repeat",
                    key,
                    f"delivery {run.deliveries} ran in process {run.pid} ({ended}), delivery "
                    f"{successor.deliveries} {successor.start - run.start:.3f} s later in "
                    f"{successor.pid}, and nothing explains it",
                )


def _attempts(evidence: Evidence) -> Iterator[Violation]:
    for key, runs in evidence.runs.items():
        if runs[0].attempt != 1:
            yield Violation("attempts", key, f"the first run was attempt {runs[0].attempt}")
        for run, successor in itertools.pairwise(runs):
            if successor.attempt < run.attempt or successor.attempt > run.attempt + 1:
                yield Violation(
                    "attempts", key, f"attempt {successor.attempt} follows attempt {run.attempt}"
                )
            elif successor.attempt > run.attempt and run.end != "raised":
                yield Violation(
                    "attempts", key, f"attempt {run.attempt} did not fail, but was retried"
                )


def _results(evidence: Evidence) -> Iterator[Violation]:
    for key, outcome in evidence.outcomes.items():
        task, runs = evidence.sent.get(key), evidence.runs.get(key, [])
        if task is None:
            continue
        last = runs[-1] if runs else None
        state, deliveries = outcome["state"], outcome["deliveries"]
        if state == "SUCCESS":
            if last is None:
                yield Violation("no run", key, "SUCCESS, but it never started")
            elif outcome["token"] != last.token:
                tokens = [run.token for run in runs]
                whose = "an earlier run's" if outcome["token"] in tokens else "no run's"
                yield Violation("result", key, f"the result is {whose}, not the last run's")
            elif deliveries != last.deliveries or outcome["attempt"] != last.attempt:
                yield Violation("result", key, f"stored as delivery {deliveries}, ran otherwise")
            elif task.kind.task == "flaky" and last.attempt != FLAKY_ATTEMPTS:
                yield Violation("result", key, f"succeeded at attempt {last.attempt}")
        elif last is not None and deliveries < last.deliveries:
            yield Violation(
                "result", key, f"{state} of delivery {deliveries} over the run of {last.deliveries}"
            )
        if state == "FAILURE":
            crashed = task.kind.task == "poison"
            attempts = EXHAUSTING_ATTEMPTS if task.kind.task == "exhausting" else 1
            if last is None or last.attempt != attempts or (last.end != "raised") != crashed:
                yield Violation("no run", key, "FAILURE, but no run failed for the last time")
        if state == "EXPIRED" and last is not None:
            # Its process died, and when it was its turn again its time was over.
            again = last._replace(start=math.inf)
            if explanation(evidence, last, again) is None:
                yield Violation("result", key, "EXPIRED, but it was started and not interrupted")


def _in_time(evidence: Evidence) -> Iterator[Violation]:
    for key, runs in evidence.runs.items():
        task = evidence.sent.get(key)
        for run in runs if task else ():
            assert task is not None
            if task.eta is not None and run.wall < task.eta - EARLY:
                yield Violation("early", key, f"started {task.eta - run.wall:.3f} s before its eta")
            if task.expires is not None and run.wall > task.expires + EARLY:
                late = run.wall - task.expires
                yield Violation("expired", key, f"started {late:.3f} s after it had expired")


def _finals_stay(evidence: Evidence) -> Iterator[Violation]:
    for record in evidence.records["seen"]:
        key, final = record["id"], evidence.outcomes.get(record["id"])
        fields = ["state"] if _may_be_replaced(evidence, key) else ["state", "token"]
        if final is None or any(record[field] != final[field] for field in fields):
            now = f"{final['state']} ({final['token']})" if final else "gone"
            yield Violation(
                "changed", record["id"], f"was {record['state']} ({record['token']}), is {now}"
            )
    for record in evidence.records["got"]:
        final = evidence.outcomes.get(record["id"])
        if record["state"] != "SUCCESS" or _may_be_replaced(evidence, record["id"]):
            continue
        if final is None or final["token"] != record["token"]:
            yield Violation("changed", record["id"], "get() returned what is not the result now")


def _may_be_replaced(evidence: Evidence, key: str) -> bool:
    return evidence.apart and len(evidence.runs.get(key, ())) > 1


def _system(evidence: Evidence) -> Iterator[Violation]:
    for record in evidence.records["exit"]:
        if not record["expected"]:
            yield Violation("died", record["who"], f"ended by itself with {record['code']}")
    for line in evidence.critical:
        yield Violation("log", "log", line)
    if evidence.integrity != "ok":
        yield Violation("damaged", "file", evidence.integrity)
