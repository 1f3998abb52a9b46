"""A million tasks through one worker process: `python -m integration.soak --store sqlite`.

What the process holds (memory, descriptors, threads) is read from /proc as it works, and
printed. The verdict compares what it held from the first tenth of the tasks to the third with
what it held for the last two tenths.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

from integration.chaos.site import die_with_parent
from integration.servers.redis import RedisServer
from taskline import Taskline, current_task
from taskline.worker import Supervisor, WorkerOptions

TASKS, BATCH, AHEAD = 1_000_000, 1000, 5000
"""Tasks in all, in one batch, and waiting at most."""
FLAT = 0.05
"""By which share the memory may grow."""
RESULT_TTL = 30.0
"""Seconds: the stores forget as they go, as they do in the long run."""


class Sample(NamedTuple):
    """What a process holds at a moment."""

    done: int
    rss: int
    """Bytes of memory that are its own: resident, and not of a file."""
    descriptors: int
    threads: int

    def __str__(self) -> str:
        return (
            f"{self.done:>9} done  {self.rss / 1e6:7.2f} MB  {self.descriptors:>3} descriptors"
            f"  {self.threads:>3} threads"
        )


class Verdict(NamedTuple):
    """What the process held in the course of the tasks."""

    samples: list[Sample]
    seconds: float

    def between(self, first: float, last: float) -> list[Sample]:
        """The samples taken when between these shares of the tasks were done."""
        total = self.samples[-1].done
        return [each for each in self.samples if first * total <= each.done <= last * total]

    def _more(self, of: Callable[[Sample], int]) -> float:
        """By which share the median grew: single samples show what is under way."""
        before, after = self.between(0.1, 0.3), self.between(0.8, 1.0)
        return median(map(of, after)) / median(map(of, before)) - 1

    @property
    def growth(self) -> float:
        """By which share the memory grew."""
        return self._more(lambda sample: sample.rss)

    @property
    def leaked(self) -> tuple[float, float]:
        """By which shares descriptors and threads became more."""
        return self._more(lambda each: each.descriptors), self._more(lambda each: each.threads)

    @property
    def good(self) -> bool:
        return self.growth <= FLAT and max(self.leaked) <= 0

    def __str__(self) -> str:
        done = self.samples[-1].done
        return (
            f"{done} tasks in {self.seconds:.0f} s ({done / self.seconds:.0f}/s): memory"
            f" {100 * self.growth:+.1f} %, descriptors {100 * self.leaked[0]:+.0f} %, threads"
            f" {100 * self.leaked[1]:+.0f} %: {'good' if self.good else 'BAD'}"
        )


def make_app(url: str) -> Taskline:
    """Tasks that return, await, and now and then are tried again."""
    app = Taskline("soak", broker=url, backend=url, result_ttl=RESULT_TTL)

    @app.task(name="work")
    def work(number: int, text: str) -> str:
        return f"{number}: {text}"

    @app.task(name="wait")
    async def wait(number: int, text: str) -> int:
        return number

    @app.task(name="flaky", retry={"max": 1, "wait": 0})
    def flaky(number: int, text: str) -> int:
        if current_task.attempt == 1:
            raise ConnectionError(text)
        return number

    return app


def soak(url: str, tasks: int, directory: Path, every: float = 0.02) -> Verdict:
    """Run the tasks, and look at the worker each time that this share of them is done."""
    with (directory / "log").open("wb") as log:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "integration.soak", "--serve", url],
            stdout=log,
            stderr=log,
            cwd=Path(__file__).resolve().parents[1],
        )
    app = make_app(url)
    try:
        return _run(app, supervisor, tasks, every)
    finally:
        supervisor.terminate()
        supervisor.wait(60)
        app.close()


def _run(app: Taskline, supervisor: subprocess.Popen[bytes], tasks: int, every: float) -> Verdict:
    began = time.monotonic()
    samples: list[Sample] = []
    sent = next_at = 0
    worker: int | None = None
    while True:
        assert supervisor.poll() is None, "the worker has ended"
        (stats,) = app.transport.stats(["default"])
        left = (stats.ready or 0) + (stats.delayed or 0) + (stats.leased or 0)
        done = sent - left
        found = _child(supervisor.pid)
        assert worker in (None, found), "the worker process was replaced"
        if done and (worker := found) and done >= next_at:
            samples.append(_look(worker, done))
            next_at = done + round(every * tasks)
            print(samples[-1], flush=True)
        if sent == tasks and not left:
            break
        while left < AHEAD and sent < tasks:
            left += _send(app, sent, min(BATCH, tasks - sent))
            sent += BATCH
            sent = min(sent, tasks)
        time.sleep(0.05)
    assert worker is not None
    samples.append(_look(worker, tasks))
    print(samples[-1], flush=True)
    return Verdict(samples, time.monotonic() - began)


def _send(app: Taskline, first: int, count: int) -> int:
    with app.batch():
        for number in range(first, first + count):
            name = "flaky" if number % 100 == 0 else "wait" if number % 20 == 0 else "work"
            app.tasks[name].delay(number, "x" * (number % 500))
    return count


def _child(pid: int) -> int | None:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(found[0]) if found else None


def _look(pid: int, done: int) -> Sample:
    process = Path(f"/proc/{pid}")
    status = dict(
        line.split(":", 1) for line in (process / "status").read_text().splitlines() if ":" in line
    )
    rss = int(status["RssAnon"].split()[0]) * 1024
    return Sample(done, rss, len(os.listdir(process / "fd")), int(status["Threads"]))


@contextlib.contextmanager
def store_of(name: str, directory: Path) -> Iterator[str]:
    """The URL of a fresh store."""
    if name == "redis":
        with RedisServer() as server:
            yield server.url
    else:
        yield f"sqlite:///{directory}/soak.db"


def serve(url: str) -> int:
    """The worker: a supervisor and one process."""
    die_with_parent()
    return Supervisor(make_app(url), WorkerOptions(processes=1, threads=4)).run()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m integration.soak", description=__doc__)
    parser.add_argument("--store", choices=["sqlite", "redis"], default="sqlite")
    parser.add_argument("--tasks", type=int, default=TASKS)
    parser.add_argument("--serve", metavar="URL", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        return serve(options.serve)
    with tempfile.TemporaryDirectory(prefix="taskline-soak-") as temporary:
        directory = Path(temporary)
        with store_of(options.store, directory) as url:
            verdict = soak(url, options.tasks, directory)
    print(f"{options.store}: {verdict}")
    return 0 if verdict.good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
