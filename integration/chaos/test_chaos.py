"""A load, and faults of all kinds from a seed, on each store: nothing is lost, and what ran twice
has a reason.

All stores are broken at the same time, each for a minute, at a pace that two processors bear.
`TASKLINE_CHAOS_SECONDS` and `TASKLINE_CHAOS_SEED` choose how long and which plan.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from integration.chaos.evidence import Evidence
from integration.chaos.stores import NAMES, store_class
from integration.servers.supply import Missing, demanded

SECONDS = float(os.environ.get("TASKLINE_CHAOS_SECONDS") or 60)
SEED = int(os.environ.get("TASKLINE_CHAOS_SEED") or 11)
PACE, LEASE = 0.25, 10.0
PATIENCE = 400.0
"""Seconds after the faults in which a run must have come to rest and been judged."""
ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.serial,
    pytest.mark.skipif(sys.platform != "linux", reason="finds processes by Linux's /proc"),
]


class Runs:
    """A run on each store that can be had."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.missing: dict[str, Missing] = {}
        self._running: dict[str, subprocess.Popen[str]] = {}
        for name in NAMES:
            try:
                store_class(name)(directory / f"{name}-probe").close()
            except Missing as error:
                self.missing[name] = error
            else:
                self._running[name] = self._start(name)

    def _start(self, name: str) -> subprocess.Popen[str]:
        options = ["--store", name, "--keep", str(self.directory / name)]
        options += ["--seconds", str(SECONDS), "--seed", str(SEED)]
        options += ["--pace", str(PACE), "--lease", str(LEASE)]
        return subprocess.Popen(
            [sys.executable, "-m", "integration.chaos", *options],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def report(self, name: str) -> tuple[int, str]:
        """Its exit code, and what it said, when it has ended."""
        process = self._running[name]
        text, _ = process.communicate(timeout=SECONDS + PATIENCE)
        return process.returncode, text

    def end(self) -> None:
        for process in self._running.values():
            if process.poll() is None:
                process.terminate()  # its processes die with it
                process.wait(timeout=30)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    runs = Runs(tmp_path_factory.mktemp("chaos"))
    yield runs
    runs.end()


@pytest.mark.parametrize("store", NAMES)
def test_nothing_is_lost_whatever_is_broken(
    runs: Runs, store: str, figures: Callable[[str], None]
) -> None:
    if store in runs.missing:
        if demanded():
            raise runs.missing[store]
        pytest.skip(str(runs.missing[store]))
    code, text = runs.report(store)
    figures(text)
    assert code == 0, text
    evidence = Evidence.read(runs.directory / store)
    kills = sum(len(record.get("pids", [0])) for record in evidence.records["kill"])
    kind = store_class(store)
    assert kills >= SECONDS * PACE / kind.gap, "the driver did not do its work"
    assert len(evidence.outcomes) >= SECONDS * PACE * kind.rate / 6, "hardly any work was done"
    assert any(len(runs) > 1 for runs in evidence.runs.values()), "nothing was interrupted"
