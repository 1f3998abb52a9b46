"""Runs measurements, A B B A, and keeps the medians."""

from __future__ import annotations

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

from benchmarks.environments import PEERS, python

Figures = dict[str, Any]


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


def measure(peer: str, scenario: Scenario) -> Figures:
    """One run in a directory of its own."""
    directory = Path(tempfile.mkdtemp(prefix="bench-"))
    environment = os.environ | {
        "BENCH_DIRECTORY": str(directory),
        "BENCH_RESULTS": "1" if scenario.results else "0",
        "BENCH_DURABILITY": scenario.durability,
        "PYTHONDONTWRITEBYTECODE": "",
    }
    command = [
        str(python(peer)),
        str(PEERS / "run.py"),
        peer,
        scenario.command,
        json.dumps(scenario.arguments),
    ]
    try:
        run = subprocess.run(
            command, env=environment, cwd=directory, capture_output=True, text=True, check=False
        )
        if run.returncode != 0:
            log = directory / "worker.log"
            tail = log.read_text()[-2000:] if log.exists() else ""
            raise SystemExit(f"{peer}, {scenario.title}:\n{run.stderr}{tail}")
        figures: Figures = json.loads(run.stdout.splitlines()[-1])
        return figures
    finally:
        shutil.rmtree(directory)


def interleaved(peers: list[str], scenario: Scenario, rounds: int) -> dict[str, Figures]:
    """The medians of each peer over some rounds; every second round goes backwards."""
    runs: dict[str, list[Figures]] = {peer: [] for peer in peers}
    for number in range(rounds):
        for peer in peers if number % 2 == 0 else reversed(peers):
            runs[peer].append(measure(peer, scenario))
    spread = {peer: spread_of(all_figures) for peer, all_figures in runs.items()}
    text = ", ".join(f"{peer} {value}" for peer, value in spread.items())
    print(f"  {scenario.title}: {text}", file=sys.stderr, flush=True)
    return {peer: median(all_figures) for peer, all_figures in runs.items()}


def median(runs: list[Figures]) -> Figures:
    """The median of each number; of anything else the last one."""
    middle: Figures = {}
    for key, last in runs[-1].items():
        if isinstance(last, (int, float)):
            middle[key] = statistics.median(run[key] for run in runs)
        else:
            middle[key] = last
    return middle


def spread_of(runs: list[Figures]) -> str:
    """The first figure of every run, for the eye."""
    if not runs[0]:
        return "cannot"
    key = next(iter(runs[0]))
    return "/".join(f"{run[key]:,.0f}" if run[key] >= 100 else f"{run[key]:.3g}" for run in runs)
