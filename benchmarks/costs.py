"""What Taskline costs: importing it, and the counts that `peers/counted.py` makes."""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks.environments import PEERS, python


def costs(peer: str) -> dict[str, Any]:
    """Measure and print."""
    interpreter = python(peer)
    figures: dict[str, Any] = {"import": import_time(interpreter)}
    print("\ncosts, counted")
    print(f"  import taskline: {figures['import']}")
    for name in ("transactions", "calls", "core"):
        run = subprocess.run(
            [str(interpreter), str(PEERS / "counted.py"), name],
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode != 0:
            raise SystemExit(f"counting {name}: {run.stderr}")
        figures[name] = json.loads(run.stdout)
        print(f"  {name}")
        for key, value in figures[name].items():
            if isinstance(value, (dict, list)):
                value = json.dumps(value, indent=2).replace("\n", "\n    ")
            print(f"    {key}: {value}", flush=True)
    return figures


def import_time(interpreter: Path, rounds: int = 15) -> dict[str, float]:
    """Milliseconds over the bare interpreter, medians of runs that alternate."""
    codes = {"bare": "pass", "taskline": "import taskline"}
    times: dict[str, list[float]] = {name: [] for name in codes}
    for _ in range(rounds):
        for name, code in codes.items():
            start = time.perf_counter()
            subprocess.run([str(interpreter), "-c", code], check=True)
            times[name].append((time.perf_counter() - start) * 1000)
    bare, loaded = (statistics.median(times[name]) for name in codes)
    return {"bare_ms": round(bare, 1), "taskline_ms": round(loaded - bare, 1)}
