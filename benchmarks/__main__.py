"""`make bench`: Taskline beside its peers in one run, with ratios, and what it costs, counted.

Compare the ratios of one run, not figures of different runs or machines. Durability decides most
figures on SQLite, so like is compared with like: `normal` survives the death of every process
(Taskline as shipped, Huey with fsync=False), `full` a power cut too (Huey as shipped).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import sys
from pathlib import Path
from typing import Any

from benchmarks.costs import costs
from benchmarks.environments import PEERS
from benchmarks.runs import Figures, Scenario, interleaved

OURS = "taskline_sqlite"
OTHERS = ["huey_sqlite"]


def scenarios(scale: float) -> list[Scenario]:
    def n(count: int) -> int:
        return max(100, int(count * scale))

    every: list[Scenario] = []
    for durability in ("normal", "full"):
        store = {"durability": durability}
        every += [
            Scenario("enqueue", "enqueue", {"n": n(5000)}, **store),
            Scenario("bulk enqueue", "bulk", {"n": n(50000)}, **store, also={"bare_sqlite"}),
            Scenario("drain", "drain", {"n": n(20000)}, **store),
            Scenario("drain, results stored", "drain", {"n": n(20000)}, **store, results=True),
        ]
    every += [
        Scenario("call to start", "latency", {"n": n(500), "every": 0.02}),
        Scenario("delay().get()", "roundtrip", {"n": n(300)}, results=True),
        Scenario("idle worker", "idle", {"seconds": max(3.0, 10 * scale)}),
    ]
    return every


def main() -> None:
    known = sorted(path.stem for path in PEERS.glob("*_*.py"))
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each (default: %(default)s)")
    parser.add_argument("--scale", type=float, default=1.0, help="of the counts of tasks")
    parser.add_argument("--only", metavar="TEXT", help="scenarios whose title begins so; 'costs'")
    parser.add_argument(
        "--peers", nargs="*", default=OTHERS, choices=known, help=f"beside {OURS}: {known}"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there too")
    options = parser.parse_args()

    peers = [OURS, *(peer for peer in options.peers if peer != OURS)]
    print(machine(), flush=True)
    everything: dict[str, Any] = {"machine": machine()}
    for scenario in scenarios(options.scale):
        if options.only and not scenario.title.startswith(options.only):
            continue
        taking_part = peers + sorted(scenario.also - set(peers))
        title = f"{scenario.title} (durability {scenario.durability})"
        figures = interleaved(taking_part, scenario, options.rounds)
        everything[title] = figures
        print(f"\n{title}  {json.dumps(scenario.arguments)}")
        table(figures)
    if not options.only or options.only == "costs":
        everything["costs"] = costs(OURS)
    if options.json:
        options.json.write_text(json.dumps(everything, indent=2) + "\n")


def table(figures: dict[str, Figures]) -> None:
    """One row a peer; with each number, ours as a multiple of it."""
    for peer, values in figures.items():
        cells = []
        for key, value in values.items():
            cell = f"{key} {number(value)}"
            if peer != OURS and isinstance(value, (int, float)) and value:
                cell += f" (ours is {figures[OURS][key] / value:.2f} x)"
            cells.append(cell)
        print(f"  {peer:16} " + "   ".join(cells), flush=True)


def number(value: Any) -> str:
    """Three significant digits, or all of a whole number's."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def machine() -> str:
    load = os.getloadavg()[0]
    return (
        f"{os.cpu_count()} cores, load {load:.1f}, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}"
    )


if __name__ == "__main__":
    sys.exit(main())
