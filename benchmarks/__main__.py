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
import signal
import sqlite3
import sys
from pathlib import Path
from typing import Any

from benchmarks.costs import costs
from benchmarks.environments import PEERS
from benchmarks.runs import Figures, interleaved, median, ratio
from benchmarks.scenarios import OTHERS, SCENARIOS, ours


def main() -> None:
    known = sorted(path.stem for path in PEERS.glob("*_*.py"))
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument(
        "--store", nargs="*", default=["sqlite", "redis"], choices=list(SCENARIOS), help="of these"
    )
    parser.add_argument("--rounds", type=int, default=3, help="runs of each (default: %(default)s)")
    parser.add_argument("--scale", type=float, default=1.0, help="of the counts of tasks")
    parser.add_argument("--only", metavar="TEXT", help="scenarios whose title begins so; 'costs'")
    parser.add_argument("--peers", nargs="*", choices=known, help=f"beside us, of {known}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there too")
    options = parser.parse_args()

    print(machine(), flush=True)
    everything: dict[str, Any] = {"machine": machine()}
    for store in options.store:
        everything[store] = measured(store, options)
    if "sqlite" in options.store and (not options.only or options.only == "costs"):
        everything["costs"] = costs(ours("sqlite"))
    if options.json:
        options.json.write_text(json.dumps(everything, indent=2) + "\n")


def measured(store: str, options: argparse.Namespace) -> dict[str, dict[str, list[Figures]]]:
    """All scenarios of a store, printed as they are done."""

    def n(count: int) -> int:
        return max(100, int(count * options.scale))

    others = OTHERS[store] if options.peers is None else options.peers
    of_store = [peer for peer in others if peer.endswith(store) and peer != ours(store)]
    found = {}
    for scenario in SCENARIOS[store](n):
        if options.only and not scenario.title.startswith(options.only):
            continue
        peers = [] if scenario.alone else of_store
        taking_part = [ours(store), *peers, *sorted(scenario.also - set(peers))]
        title = f"{store}: {scenario.title}"
        if store == "sqlite":
            title += f" (durability {scenario.durability})"
        found[title] = figures = interleaved(taking_part, scenario, options.rounds)
        print(f"\n{title}  {json.dumps(scenario.arguments)}")
        table(figures, ours(store))
    return found


def table(runs: dict[str, list[Figures]], mine: str) -> None:
    """One row a peer: the medians and, behind each, ours as a multiple of it."""
    for peer, rounds in runs.items():
        values = median(rounds)
        cells = [] if values else ["has not got it"]
        for key, value in values.items():
            cell = f"{key} {number(value)}"
            multiple = None if peer == mine else ratio(runs[mine], rounds, key)
            if multiple is not None:
                cell += f" (ours is {multiple:.2f} x)"
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
    # So that servers and workers end with it.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit("stopped"))
    sys.exit(main())
