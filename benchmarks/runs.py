"""Runs measurements, A B B A, and keeps the medians."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.environments import PEERS, CannotInstall, python
from integration.servers.kafka import KafkaServer
from integration.servers.mongo import MongoServer
from integration.servers.rabbitmq import RabbitMQServer
from integration.servers.redis import RedisServer
from integration.servers.supply import Missing

Figures = dict[str, Any]
LIMIT = 900
"""Seconds that one run may take."""


class Failed(Exception):
    """A peer could not be measured; the message says why."""


@dataclass
class Scenario:
    """One measurement, made of each of several peers in turn."""

    title: str
    command: str
    arguments: dict[str, Any]
    results: bool = False
    durability: str = "normal"
    also: set[str] = field(default_factory=set)
    """Peers that can be measured in this alone."""
    alone: bool = False
    """Only Taskline is measured."""


def measure(peer: str, scenario: Scenario) -> Figures:
    """One run, where needed on a server of its own; raises `Failed`."""
    with contextlib.ExitStack() as stack:
        addresses = {}
        try:
            if peer.endswith("_redis"):
                redis = stack.enter_context(RedisServer())
                addresses["BENCH_REDIS"] = f"{redis.url}/0"
            elif peer.endswith("_mongodb"):
                mongo = stack.enter_context(MongoServer())
                addresses["BENCH_MONGODB"] = mongo.url
            elif peer.endswith("_rabbitmq"):
                rabbitmq = stack.enter_context(RabbitMQServer())
                addresses["BENCH_RABBITMQ"] = rabbitmq.url
            elif peer.endswith("_kafka"):
                addresses["BENCH_KAFKA"] = stack.enter_context(KafkaServer()).address
        except Missing as error:
            raise Failed(str(error)) from None
        return run(peer, scenario, addresses)


def run(peer: str, scenario: Scenario, addresses: dict[str, str]) -> Figures:
    """One run in the peer's own environment, with these servers."""
    directory = Path(tempfile.mkdtemp(prefix="bench-"))
    environment = os.environ | {
        "BENCH_DIRECTORY": str(directory),
        "BENCH_RESULTS": "1" if scenario.results else "0",
        "BENCH_DURABILITY": scenario.durability,
        **addresses,
        "PYTHONDONTWRITEBYTECODE": "",
    }
    try:
        command = [str(python(peer)), str(PEERS / "run.py"), peer, scenario.command]
        process = subprocess.Popen(
            [*command, json.dumps(scenario.arguments)],
            env=environment,
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            output, errors = process.communicate(timeout=LIMIT)
        finally:
            process.terminate()  # It ends its workers then.
            process.wait()
        if process.returncode != 0:
            log = directory / "worker.log"
            tail = log.read_text()[-2000:] if log.exists() else ""
            said = f"{tail}{errors[-2000:]}".rstrip()
            raise Failed(f"{peer}, {scenario.title}:\n{said}\nended with {process.returncode}")
        figures: Figures = json.loads(output.splitlines()[-1])
        return figures
    except subprocess.TimeoutExpired:
        raise Failed(f"{peer}, {scenario.title}: not done within {LIMIT} s") from None
    except CannotInstall as error:
        raise Failed(str(error)) from None
    finally:
        shutil.rmtree(directory)


def interleaved(peers: list[str], scenario: Scenario, rounds: int) -> dict[str, list[Figures]]:
    """What each peer showed in each round; every second round goes backwards.

    A run that fails is told of at once, and has `failed` as its only figure.
    """
    runs: dict[str, list[Figures]] = {peer: [] for peer in peers}
    for number in range(rounds):
        for peer in peers if number % 2 == 0 else reversed(peers):
            try:
                figures = measure(peer, scenario)
            except Failed as error:
                print(f"FAILED: {error}", file=sys.stderr, flush=True)
                figures = {"failed": str(error).strip().splitlines()[-1][:200]}
            runs[peer].append(figures)
    text = ", ".join(f"{peer} {spread_of(figures)}" for peer, figures in runs.items())
    print(f"  {scenario.title}: {text}", file=sys.stderr, flush=True)
    return runs


def median(runs: list[Figures]) -> Figures:
    """The median of each number, of anything else the last; of a peer that failed, why."""
    for run in runs:
        if "failed" in run:
            return run
    return {
        key: statistics.median(run[key] for run in runs) if is_number(last) else last
        for key, last in runs[-1].items()
    }


def ratio(ours: list[Figures], theirs: list[Figures], key: str) -> float | None:
    """The median over the rounds of ours as a multiple of theirs in the same round.

    What slows a round down slows both, so this is steadier than a ratio of medians.
    """
    pairs = [(mine.get(key), other.get(key)) for mine, other in zip(ours, theirs, strict=True)]
    multiples = [mine / other for mine, other in pairs if is_number(mine) and other]
    return statistics.median(multiples) if len(multiples) == len(pairs) else None


def is_number(value: object) -> bool:
    return isinstance(value, (int, float))


def spread_of(runs: list[Figures]) -> str:
    """The first figure of every run, for the eye."""
    if "failed" in median(runs):
        return "failed"
    if not runs[0]:
        return "cannot"
    key = next(iter(runs[0]))
    return "/".join(f"{run[key]:,.0f}" if run[key] >= 100 else f"{run[key]:.3g}" for run in runs)
