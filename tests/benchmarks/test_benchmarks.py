"""The benchmarks of Taskline still run. What they measure is not looked at here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PEERS = Path(__file__).resolve().parents[2] / "benchmarks" / "peers"


def figures(directory: Path, script: str, *arguments: str, results: bool = False) -> Any:
    environment = os.environ | {
        "BENCH_DIRECTORY": str(directory),
        "BENCH_RESULTS": "1" if results else "0",
        "BENCH_COUNT": "200",
    }
    run = subprocess.run(
        [sys.executable, PEERS / script, *arguments],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize(
    ("command", "arguments", "results"),
    [
        ("enqueue", {"n": 20}, False),
        ("bulk", {"n": 2000}, False),
        ("drain", {"n": 200}, True),
        ("latency", {"n": 5, "every": 0.01}, False),
        ("roundtrip", {"n": 5}, True),
    ],
)
def test_taskline_is_measured(
    command: str, arguments: dict[str, Any], results: bool, tmp_path: Path
) -> None:
    found = figures(
        tmp_path, "run.py", "taskline_sqlite", command, json.dumps(arguments), results=results
    )
    assert found
    assert all(number >= 0 for number in found.values())


def test_bare_inserts_are_measured(tmp_path: Path) -> None:
    assert figures(tmp_path, "run.py", "bare_sqlite", "bulk", '{"n": 2000}')["per_second"] > 0


def test_transactions_are_counted(tmp_path: Path) -> None:
    found = figures(tmp_path, "counted.py", "transactions")
    assert found["one-call send (results stored)"] == 1
    assert found["batched send (results stored)"] == 1 / 200
    assert 0 < found["receive, store, acknowledge (results stored)"] < 1


def test_calls_are_counted(tmp_path: Path) -> None:
    found = figures(tmp_path, "counted.py", "calls")
    calls, files = found["send: calls and files to the driver's first statement"]
    assert files <= calls
    assert found["send: functions"][0] == "calls.py:delay"
    assert any("slot" in thread for thread in found["worker: calls per task"])


def test_the_core_is_profiled(tmp_path: Path) -> None:
    found = figures(tmp_path, "counted.py", "core")
    assert found["core, µs per task"] > 0
    assert "execute.py" in found["profile"]
