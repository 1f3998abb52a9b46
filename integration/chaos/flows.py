"""Chords under `kill -9`: `python -m integration.chaos.flows --chords 10000`.

Two supervisors work on chords of some members each, while a process of theirs, or a whole
supervisor with all its processes, is killed every now and then. In the end every chord must
have its result, and no task may have run twice but one whose process was killed.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from integration.chaos.flow_tasks import callback, member
from integration.servers.redis import RedisServer
from taskline import Taskline
from taskline.workflows import FlowResult, chord

AHEAD = 200
"""So many chords are unfinished at a time."""
PATIENCE = 120.0
"""Seconds that a chord may take."""


class Report(NamedTuple):
    """What became of the chords."""

    chords: int
    completed: int
    wrong: int
    kills: int
    again: int
    """Runs that were repeated because the process of the first was killed."""
    twice: list[str]
    """Tasks that ran again although nobody had killed their first run."""
    seconds: float

    def __str__(self) -> str:
        verdict = "good" if self.good else f"BAD: twice {self.twice[:5]}"
        return (
            f"{self.completed} of {self.chords} chords completed, {self.wrong} wrong, under "
            f"{self.kills} kills in {self.seconds:.0f} s; {self.again} killed runs were made "
            f"again, {len(self.twice)} tasks ran twice: {verdict}"
        )

    @property
    def good(self) -> bool:
        return self.completed == self.chords and not self.wrong and not self.twice


class Site:
    """Two supervisors that are started again when they are gone."""

    def __init__(self, url: str, notes: Path, seed: int) -> None:
        self._environment = os.environ | {
            "TASKLINE_BROKER": url,
            "TASKLINE_BACKEND": url,
            "NOTES": str(notes),
        }
        self._dice = random.Random(seed)
        self.killed: set[int] = set()
        self.kills = 0
        self._supervisors = [self._start(), self._start()]

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "taskline", "worker", "-A", "integration.chaos.flow_tasks"]
        return subprocess.Popen(
            [*command, "-c", "2", "--loglevel", "ERROR"],
            env=self._environment,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def strike(self) -> None:
        """Kill one process, or one supervisor with all that are its."""
        place = self._dice.randrange(len(self._supervisors))
        supervisor = self._supervisors[place]
        children = _children(supervisor.pid)
        self.kills += 1
        if self._dice.random() < 0.2:
            self.killed.update(children)
            os.killpg(supervisor.pid, signal.SIGKILL)
            supervisor.wait()
            self._supervisors[place] = self._start()
        elif children:
            victim = self._dice.choice(children)
            self.killed.add(victim)
            os.kill(victim, signal.SIGKILL)

    def stop(self) -> None:
        """End all of it."""
        for supervisor in self._supervisors:
            os.killpg(supervisor.pid, signal.SIGKILL)
            supervisor.wait()


def run(url: str, chords: int, size: int, every: float, seed: int, kills: int = 0) -> Report:
    """Let so many chords of `size` members be done, with a kill every `every` seconds.

    More are begun until there were `kills` kills: a fast machine is done before that.
    """
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        notes = Path(directory) / "notes"
        site = Site(url, notes, seed)
        stack.callback(site.stop)
        caller = stack.enter_context(Taskline("caller", broker=url, backend=url))
        completed = wrong = 0
        waiting: dict[int, tuple[FlowResult[int], float]] = {}
        dice = random.Random(seed)
        next_strike = start + 1.0
        begun = 0
        while True:
            while len(waiting) < AHEAD and (begun < chords or site.kills < kills):
                waiting[begun] = _begin(caller, begun, size), time.monotonic()
                begun += 1
            if not waiting:
                break
            now = time.monotonic()
            if now > next_strike:
                site.strike()
                next_strike = now + dice.uniform(0.5, 1.5) * every
            ids = [result.id for result, _ in waiting.values()]
            found = caller.waiters.wait(ids, every / 4, enough=1)
            for number in [each for each, (result, _) in waiting.items() if result.id in found]:
                result, _ = waiting.pop(number)
                completed += 1
                wrong += result.get(timeout=10) != sum(range(size))
            if waiting and now - min(since for _, since in waiting.values()) > PATIENCE:
                break
        again, twice = _runs(notes, site.killed)
    return Report(begun, completed, wrong, site.kills, again, twice, time.monotonic() - start)


def _begin(app: Taskline, number: int, size: int) -> FlowResult[int]:
    members = [app.by_name(member.name).s(number, each) for each in range(size)]
    started: FlowResult[int] = chord(members, app.by_name(callback.name).s(chord=number)).delay()
    return started


def _runs(notes: Path, killed: set[int]) -> tuple[int, list[str]]:
    """How many runs were made again after a kill, and what ran twice without one."""
    runs: dict[str, list[int]] = defaultdict(list)
    for line in notes.read_text().splitlines():
        kind, name, pid = line.split()
        runs[f"{kind} {name}"].append(int(pid))
    again, twice = 0, []
    for name, pids in runs.items():
        for pid in pids[:-1]:
            if pid in killed:
                again += 1
            else:
                twice.append(name)
    return again, twice


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        found += map(int, task.read_text().split())
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m integration.chaos.flows", description=__doc__)
    parser.add_argument("--chords", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=4, help="members of each")
    parser.add_argument("--every", type=float, default=0.5, help="seconds between two kills")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--url", help="a Redis that runs; by default one of its own is started")
    options = parser.parse_args(arguments)

    def urls() -> Iterator[str]:
        if options.url:
            yield options.url
            return
        with RedisServer() as server:
            yield server.url

    for url in urls():
        report = run(url, options.chords, options.size, options.every, options.seed)
        print(report)
        return 0 if report.good else 1
    return 1


if __name__ == "__main__":
    sys.exit(main())
