"""Break a system for a while, and judge it: `python -m integration.chaos --seconds 600`."""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
from pathlib import Path

from integration.chaos.checker import check
from integration.chaos.driver import Driver
from integration.chaos.evidence import Evidence
from integration.chaos.report import report
from integration.chaos.stores import NAMES, store_class


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m integration.chaos", description=__doc__)
    seconds = float(os.environ.get("TASKLINE_CHAOS_SECONDS") or 600)
    seed = int(os.environ.get("TASKLINE_CHAOS_SEED") or random.randrange(10**6))
    parser.add_argument("--seconds", type=float, default=seconds, help="how long things are broken")
    parser.add_argument("--seed", type=int, default=seed, help="chooses what is broken when")
    parser.add_argument("--lease", type=float, help="seconds; each store has its own")
    parser.add_argument(
        "--apart", action="store_true", help="SQLite: results in a file of their own"
    )
    parser.add_argument(
        "--pace", type=float, default=1.0, help="share of the usual load and faults"
    )
    parser.add_argument("--store", choices=NAMES, default="sqlite")
    parser.add_argument("--keep", metavar="DIRECTORY", help="leave all files in this new directory")
    parser.add_argument("--check", metavar="DIRECTORY", help="judge an earlier run again")
    options = parser.parse_args(arguments)
    # So that servers and mounts are gone, however it is ended.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    if options.check:
        return _judge(options.check, options.seed)
    with tempfile.TemporaryDirectory(prefix="taskline-chaos-") as temporary:
        directory = Path(options.keep or f"{temporary}/run").resolve()
        directory.mkdir(parents=True)
        more = {"apart": True} if options.apart else {}
        with store_class(options.store)(
            directory, lease=options.lease, pace=options.pace, **more
        ) as store:
            Driver(store, options.seed, options.seconds).run()
        return _judge(directory, options.seed)


def _judge(directory: str | Path, seed: int) -> int:
    evidence = Evidence.read(directory)
    violations = check(evidence)
    print(report(evidence, violations, seed))
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
