"""How well a rate is kept: tasks of one rate over two workers, and how many began in any second.

    python -m benchmarks.limits --store sqlite redis --tasks 10000 --rate 100/s

Each task notes when it begins, by the clock that all processes of a machine share. Beside them
unlimited tasks are sent, behind all the others in the same queue: the longest time that one of
these took to begin shows whether what waits for its limit holds others up.
"""

from __future__ import annotations

import argparse
import bisect
import contextlib
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.environments import ROOT
from integration.servers.redis import RedisServer
from taskline import Taskline
from taskline.limits import rates

URL = os.environ.get("BENCH_URL", "memory://")
DIRECTORY = Path(os.environ.get("BENCH_DIRECTORY", "."))
RATE = os.environ.get("BENCH_RATE", "100/s")

app = Taskline("limits", broker=URL, backend=URL)


def note(what: str, *values: float) -> None:
    file = os.open(DIRECTORY / what, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, struct.pack(f"{len(values)}d", *values))
    os.close(file)


@app.task(name="limited", rate=RATE)
def limited() -> None:
    note("limited", time.monotonic())


@app.task(name="free")
def free(sent: float) -> None:
    note("free", time.monotonic() - sent)


def noted(directory: Path, what: str) -> list[float]:
    file = directory / what
    data = file.read_bytes() if file.exists() else b""
    return sorted(struct.unpack(f"{len(data) // 8}d", data))


@contextlib.contextmanager
def workers(count: int, threads: int, environment: dict[str, str]) -> Iterator[None]:
    command = [sys.executable, "-m", "taskline", "worker", "-A", "benchmarks.limits:app"]
    command += ["-c", "1", "--threads", str(threads)]
    command += ["--loglevel", "WARNING"]
    started = [
        subprocess.Popen(
            [*command, "--name", f"w{number}"],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
        )
        for number in range(count)
    ]
    try:
        yield
    finally:
        for process in started:
            process.send_signal(signal.SIGTERM)
        for process in started:
            process.wait(timeout=60)


def measured(url: str, options: argparse.Namespace) -> str:
    """One run: what was counted, in one line."""
    (rate,) = rates("rate", options.rate)
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        directory = Path(name)
        environment = os.environ | {
            "BENCH_URL": url.replace("DIRECTORY", name),
            "BENCH_DIRECTORY": name,
            "BENCH_RATE": options.rate,
        }
        sender = Taskline("limits", broker=environment["BENCH_URL"], backend=None)
        with sender, workers(options.workers, options.threads, environment):
            with sender.batch():
                for _ in range(options.tasks):
                    sender.send_task("limited")
            end = time.monotonic() + 60 + 2 * options.tasks / rate.per_second
            while len(starts := noted(directory, "limited")) < options.tasks:
                if starts:
                    sender.send_task("free", [time.monotonic()])
                time.sleep(0.2)
                if time.monotonic() > end:
                    raise SystemExit(f"only {len(starts)} of {options.tasks} have begun")
        most = max(bisect.bisect_left(starts, at + rate.seconds) - n for n, at in enumerate(starts))
        average = (len(starts) - 1) / (starts[-1] - starts[0])
        others = noted(directory, "free")
    return (
        f"{len(starts)} tasks at {options.rate} over {options.workers} workers: at most {most} in"
        f" any {rate.seconds:g} s, {average:.1f}/s on average; {len(others)} unlimited ones behind"
        f" them began within {1000 * others[-1]:.0f} ms, half of them within"
        f" {1000 * others[len(others) // 2]:.0f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.limits", description=__doc__)
    parser.add_argument("--store", nargs="*", default=["sqlite", "redis"])
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--rate", default="100/s")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=4)
    options = parser.parse_args()
    for store in options.store:
        with contextlib.ExitStack() as stack:
            url = "sqlite:///DIRECTORY/broker.db"
            if store == "redis":
                url = f"{stack.enter_context(RedisServer()).url}/0"
            elif store != "sqlite":  # any other, by its URL
                url = store
            print(f"{store}: {measured(url, options)}", flush=True)


if __name__ == "__main__":
    main()
