"""`make demo`, as it is run there: a process is killed, and nothing is lost."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

DEMO = Path(__file__).resolve().parents[2] / "examples" / "demo" / "run.py"


def test_a_killed_process_costs_nothing() -> None:
    run = subprocess.run([sys.executable, DEMO], capture_output=True, text=True, timeout=400)
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"processes killed with -9\s+1\s+1\s+yes", run.stdout)
    assert "Each file was counted once, and nothing was lost." in run.stdout
    assert " NO" not in run.stdout
