"""The figures of a run."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable

from integration.chaos.checker import Violation
from integration.chaos.evidence import Evidence, explanation

FAULTS = ("kill", "pause", "terminate", "link", "slow", "refuse")
"""The records that tell of one fault each."""


def report(evidence: Evidence, violations: list[Violation], seed: int) -> str:
    """A page of figures, and the first violations."""
    return "\n".join(_lines(evidence, violations, seed))


def _lines(evidence: Evidence, violations: list[Violation], seed: int) -> Iterable[str]:
    records = evidence.records
    yield f"{evidence.store}, seed {seed}, lease {evidence.lease:g} s"
    faults = Counter(record["what"] for kind in FAULTS for record in records[kind])
    faults["task crashes its process"] = len(records["crash"])
    codes = Counter(record["code"] for record in records["exit"])
    faults["producer ends in a send"] = codes[-14]
    yield "faults: " + ", ".join(f"{name} {count}" for name, count in sorted(faults.items()))
    locked = sum(record["locked"] for record in records["pause"])
    stalls = len(records["stall"])
    yield f"pauses that kept the file locked: {locked}; stalls of the machine: {stalls}"
    accepted = Counter(task.accepted for task in evidence.sent.values())
    in_doubt = sum(
        evidence.there(task.id) for task in evidence.sent.values() if task.accepted is None
    )
    yield (
        f"tasks: {accepted[True]} accepted, {accepted[False]} refused, {accepted[None]} in doubt "
        f"when their producer died ({in_doubt} of them stored)"
    )
    joined = sum(bool(task.joined) for task in evidence.sent.values())
    yield f"calls that got the result of a task that was there already: {joined}"
    runs = sum(map(len, evidence.runs.values()))
    attempts = sum(len({run.attempt for run in runs}) for runs in evidence.runs.values())
    yield f"runs: {runs}, of which repeated after a fault: {runs - attempts}"
    states = Counter(outcome["state"] for outcome in evidence.outcomes.values())
    yield "ended in: " + ", ".join(f"{state} {count}" for state, count in sorted(states.items()))
    lost = sum(violation.rule in ("lost", "not final") for violation in violations)
    yield f"lost: {lost}; dead letters: {len(evidence.dead)}"
    yield from _recoveries(evidence)
    yield from _waits(evidence)
    for record in records["drained"]:
        yield f"at rest {record['seconds']:.1f} s after the last fault"
    rules = Counter(violation.rule for violation in violations)
    yield f"violations: {len(violations)} {dict(rules) if rules else ''}"
    yield from map(str, violations[:20])


def _recoveries(evidence: Evidence) -> Iterable[str]:
    found: dict[str, list[float]] = {}
    for runs in evidence.runs.values():
        for run, successor in itertools.pairwise(runs):
            if run.attempt == successor.attempt:
                cause = explanation(evidence, run, successor)
                if cause is not None and cause.kind != "stop":
                    found.setdefault(f"{cause.kind}: {cause.what}", []).append(
                        successor.start - cause.since
                    )
    for name, times in sorted(found.items()):
        yield f"from {name} to the task's next start, s: {_spread(times)}"


def _waits(evidence: Evidence) -> Iterable[str]:
    ends = {run.token: run.finish for runs in evidence.runs.values() for run in runs if run.token}
    times = [
        record["t"] - max(record["asked"], ends[record["token"]])
        for record in evidence.records["got"]
        if record["token"] in ends
    ]
    if times:
        yield f"from a task's end to its get(), s: {_spread(times)}"


def _spread(times: list[float]) -> str:
    times = sorted(times)
    middle, late = times[len(times) // 2], times[int(len(times) * 0.99)]
    return f"median {middle:.3f}, 99 % {late:.3f}, longest {times[-1]:.3f} ({len(times)})"
