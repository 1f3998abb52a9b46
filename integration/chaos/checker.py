"""Judges a run by what its processes wrote down and by the final state.

It knows the promises and nothing of how they are kept. Each rule that is broken
is told with the task and what speaks against it.

Two runs of one attempt need an explanation: the process of every run but the last
was killed, or told to stop at once, while it ran the task or before the result can
have been stored; or it was paused (it, or who held the file's lock, or the whole
machine, or its way to the store) for so long that its lease may have ended.

What a store cannot do, by its capabilities, is not asked of it: where it cannot tell the
second send of an id, a task whose send or move was disturbed may have several messages.
Each of them must then be run by the rules of attempts, and the result is that of one run.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from integration.chaos.evidence import Evidence, Run, Sent, Trouble, explanation
from integration.chaos.tasks import EXHAUSTING_ATTEMPTS, FLAKY_ATTEMPTS, PLACES, RATE

EARLY = 0.002
"""Seconds by which two readings of the wall clock may differ."""
HELD = 1 + 2 * 2 * 3
"""What a bucket holds, and each slot: of a process that stood still before its first line."""
LATE = 0.25
"""Seconds between the worker's look at the expiry and the task's own first line: a busy machine
may take the processor away in between."""


class Violation(NamedTuple):
    rule: str
    id: str
    text: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.id}: {self.text}"


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
        *_one_at_a_time(evidence),
        *_rates(evidence),
        *_places(evidence),
        *_system(evidence),
    ]


def _whole_batches(evidence: Evidence) -> Iterator[Violation]:
    batches: dict[str, list[Sent]] = defaultdict(list)
    for task in evidence.sent.values():
        batches[task.base].append(task)
    for base, tasks in batches.items():
        there = sum(evidence.there(task.id) for task in tasks)
        accepted = tasks[0].accepted
        if tasks[0].kind.task == "single":
            continue  # whose send was broken off, the next caller of its key sends
        if accepted is False and there and not evidence.answers_lost:
            yield Violation("raised but sent", base, f"{there} of {len(tasks)} are in the system")
        whole = evidence.batch and there % evidence.batch == 0
        if not accepted and 0 < there < len(tasks) and not whole:
            yield Violation("half a batch", base, f"{there} of {len(tasks)} are in the system")


def _one_end_each(evidence: Evidence) -> Iterator[Violation]:
    for task in evidence.sent.values():
        if task.joined:
            if evidence.there(task.id):
                yield Violation("unique", task.id, f"it is there, and its caller got {task.joined}")
            continue
        promised = task.accepted or task.id in evidence.joined
        if not (promised or evidence.there(task.id)):
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
        if _copied(evidence, key):
            continue
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


def _copied(evidence: Evidence, key: str) -> bool:
    task = evidence.sent.get(key)
    return task is not None and evidence.copied(task)


def _attempts(evidence: Evidence) -> Iterator[Violation]:
    for key, runs in evidence.runs.items():
        if runs[0].attempt != 1:
            yield Violation("attempts", key, f"the first run was attempt {runs[0].attempt}")
        if _copied(evidence, key):
            yield from _attempts_of_copies(key, runs)
            continue
        for run, successor in itertools.pairwise(runs):
            if successor.attempt < run.attempt or successor.attempt > run.attempt + 1:
                yield Violation(
                    "attempts", key, f"attempt {successor.attempt} follows attempt {run.attempt}"
                )
            elif successor.attempt > run.attempt and run.end != "raised":
                yield Violation(
                    "attempts", key, f"attempt {run.attempt} did not fail, but was retried"
                )


def _attempts_of_copies(key: str, runs: list[Run]) -> Iterator[Violation]:
    failed = [run for run in runs if run.end == "raised"]
    for run in runs:
        before = [each for each in failed if each.attempt == run.attempt - 1]
        if run.attempt > 1 and not any(each.finish <= run.start for each in before):
            yield Violation("attempts", key, f"before attempt {run.attempt} no run failed")


def _results(evidence: Evidence) -> Iterator[Violation]:
    for key, outcome in evidence.outcomes.items():
        task, runs = evidence.sent.get(key), evidence.runs.get(key, [])
        if task is None:
            continue
        copied = evidence.copied(task)
        last = runs[-1] if runs else None
        if copied:
            # Of several messages, the run that the outcome names.
            token = outcome["token"]
            last = next((run for run in runs if token and run.token == token), last)
        yield from _result(evidence, task, outcome["state"], last, copied)


def _result(
    evidence: Evidence, task: Sent, state: str, last: Run | None, copied: bool
) -> Iterator[Violation]:
    key, outcome, runs = task.id, evidence.outcomes[task.id], evidence.runs.get(task.id, [])
    deliveries = outcome["deliveries"]
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
    elif last is not None and deliveries < last.deliveries and not copied:
        yield Violation(
            "result", key, f"{state} of delivery {deliveries} over the run of {last.deliveries}"
        )
    if state == "FAILURE":
        crashed = task.kind.task == "poison"
        attempts = EXHAUSTING_ATTEMPTS if task.kind.task == "exhausting" else 1
        fitting = [
            run for run in runs if run.attempt == attempts and (run.end == "raised") != crashed
        ]
        if last is None or (last not in fitting and not (copied and fitting)):
            yield Violation("no run", key, "FAILURE, but no run failed for the last time")
    if state == "EXPIRED" and last is not None and not copied:
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
            behind = max(0.0, -evidence.skews.get(run.group, 0.0))
            if task.expires is not None and run.wall > task.expires + behind + LATE:
                late = run.wall - task.expires
                yield Violation("expired", key, f"started {late:.3f} s after it had expired")


def _one_at_a_time(evidence: Evidence) -> Iterator[Violation]:
    """Of the tasks of one key none is accepted before the one before it has ended."""
    of_key: dict[int, list[tuple[float, float, str]]] = defaultdict(list)
    for task in evidence.sent.values():
        outcome = evidence.outcomes.get(task.id)
        if task.kind.task == "single" and outcome is not None and not task.joined:
            runs = evidence.runs.get(task.id, [])
            last = next((run for run in runs if run.token == outcome["token"]), None)
            if last is not None:
                of_key[task.key].append((runs[0].start, last.finish, task.id))
    for spans in of_key.values():
        for (_, end, first), (begin, _, second) in itertools.pairwise(sorted(spans)):
            if begin < end:
                yield Violation(
                    "unique", second, f"began {end - begin:.3f} s before {first} of its key ended"
                )


def _rates(evidence: Evidence) -> Iterator[Violation]:
    """In no time more limited tasks begin than the rate allows, and what processes may hold."""
    lowest = math.inf
    for number, run in enumerate(sorted(_of_kind(evidence, "limited"), key=lambda run: run.start)):
        lowest = min(lowest, number - RATE * run.start)
        beyond = number + 1 - RATE * run.start - lowest - HELD
        if beyond > 0:
            yield Violation("rate", run.id, f"{beyond:.1f} more have begun than {RATE}/s allows")


def _places(evidence: Evidence) -> Iterator[Violation]:
    """No more narrow tasks run at a time than there are places, but for those that lost theirs."""
    running: list[tuple[float, str]] = []
    for run in sorted(_of_kind(evidence, "narrow"), key=lambda run: run.start):
        end = min([run.finish, *(each.over for each in evidence.deaths if _ends(each, run))])
        if end == math.inf or any(
            each.hits(run) and each.since <= end and each.until >= run.start - evidence.lease
            for each in evidence.pauses
        ):
            continue
        running = [each for each in running if each[0] > run.start]
        running.append((end, run.id))
        if len(running) > PLACES:
            others = ", ".join(each for _, each in running[:-1])
            yield Violation("places", run.id, f"began while {others} ran")


def _ends(death: Trouble, run: Run) -> bool:
    return death.hits(run) and death.over >= run.start


def _of_kind(evidence: Evidence, task: str) -> Iterator[Run]:
    for key, runs in evidence.runs.items():
        if key in evidence.sent and evidence.sent[key].kind.task == task:
            yield from runs


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
    return not evidence.together and len(evidence.runs.get(key, ())) > 1


def _system(evidence: Evidence) -> Iterator[Violation]:
    for record in evidence.records["exit"]:
        if not record["expected"]:
            yield Violation("died", record["who"], f"ended by itself with {record['code']}")
    for line in evidence.critical:
        yield Violation("log", "log", line)
    if evidence.integrity != "ok":
        yield Violation("damaged", "file", evidence.integrity)
