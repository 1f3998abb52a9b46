# /// script
# dependencies = ["huey==3.5.4"]
# ///
"""Huey on SQLite.

Its best sensible settings: results only where they are asked for, quiet logs, no periodic
tasks, and a worker and a waiting caller that poll every 5 ms where Huey's defaults are 100 ms
and 50 ms. Huey as shipped syncs every commit to the disk, which is durability `full`; `normal`
is its `fsync=False`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from common import DIRECTORY, DURABILITY, RESULTS, Peer, marks
from huey import SqliteHuey

huey = SqliteHuey(
    "bench",
    filename=str(DIRECTORY / "huey.db"),
    results=RESULTS,
    fsync=DURABILITY == "full",
)


@huey.task()
def noop() -> int:
    return marks.tick()


@huey.task()
def late(sent: float) -> None:
    marks.late(sent)


@huey.task()
def echo(number: int) -> int:
    return number


class HueySQLite(Peer):
    def send_noop(self) -> object:
        return noop()

    def send_late(self, sent: float) -> object:
        return late(sent)

    def round_trip(self, number: int) -> int:
        return echo(number).get(blocking=True, max_delay=0.005)

    def empty(self) -> bool:
        return len(huey) == 0

    def worker(self) -> list[str]:
        consumer = Path(sys.executable).with_name("huey_consumer")
        tuning = ["-w", "1", "-k", "thread", "-d", "0.005", "-m", "0.005", "-b", "1", "-n", "-q"]
        return [str(consumer), "huey_sqlite.huey", *tuning]


peer = HueySQLite()
