"""`make demo`: one task for each file of Python's standard library, and a murder.

Starts a worker with two processes, sends a task per file, kills one of the two processes with
`kill -9` in the middle of its work, waits for all results, and proves that every file was
counted once and nothing was lost.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

HERE = Path(__file__).parent
PATIENCE = 300.0
console = Console(highlight=False)


def library() -> list[Path]:
    """The source files of the standard library of this Python."""
    home = Path(sysconfig.get_path("stdlib"))
    return sorted(path for path in home.rglob("*.py") if "site-packages" not in path.parts)


def start_worker(directory: Path) -> subprocess.Popen[bytes]:
    command = Path(sys.executable).with_name("taskline")
    console.print("[bold]$ taskline worker -A census -c 2[/]")
    with (directory / "worker.log").open("wb") as log:
        return subprocess.Popen(
            [command, "worker", "-A", "census", "-c", "2"],
            cwd=directory,
            env=os.environ | {"PYTHONPATH": str(HERE)},
            stdout=log,
            stderr=log,
        )


def children(parent: int) -> list[int]:
    """The processes that a process has started."""
    listing = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True
    )
    rows = (line.split() for line in listing.stdout.splitlines())
    return sorted(int(pid) for pid, ppid in rows if int(ppid) == parent)


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="taskline-demo-") as name:
        directory = Path(name)
        os.environ["CENSUS_BROKER"] = f"sqlite:///{directory / 'census.db'}"
        worker = start_worker(directory)
        try:
            return run(directory, worker)
        finally:
            if worker.poll() is None:
                worker.terminate()
                worker.wait(timeout=60)


def run(directory: Path, worker: subprocess.Popen[bytes]) -> int:
    from census import app, read

    files = library()
    start = time.perf_counter()
    results = read.map(files)
    took = time.perf_counter() - start
    console.print(
        f"sent {len(results):,} tasks in {took * 1000:.0f} ms, one for each file of "
        f"{sysconfig.get_path('stdlib')}"
    )

    killed = 0
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=50),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    deadline = time.monotonic() + PATIENCE
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("files counted", total=len(files))
        while (done := results.completed()) < len(files):
            progress.update(bar, completed=done)
            if not killed and done >= len(files) // 3:
                killed = children(worker.pid)[0]
                os.kill(killed, signal.SIGKILL)
                progress.console.print(
                    f"[bold red]$ kill -9 {killed}[/]    one of the two processes, "
                    f"with {done:,} files counted"
                )
            if worker.poll() is not None or time.monotonic() > deadline:
                console.print("[bold red]the worker did not finish:[/]")
                console.print((directory / "worker.log").read_text())
                return 1
            time.sleep(0.05)
        progress.update(bar, completed=done)

    worker.send_signal(signal.SIGTERM)
    code = worker.wait(timeout=60)
    console.print("\n[bold]What the worker logged[/]")
    for line in (directory / "worker.log").read_text().splitlines():
        if line[:1].isdigit():
            console.print(f"  {line}", soft_wrap=True)

    entries = [result.get() for result in results]
    infos = [result.info for result in results]
    summary(entries)
    lost = app.transport.stats()
    app.close()
    checks = {
        "tasks sent": (len(files), len(files)),
        "final results, all of them SUCCESS": (
            sum(info["state"] == "SUCCESS" for info in infos),
            len(files),
        ),
        "different files in the results": (
            len({entry.path for entry in entries} & set(map(str, files))),
            len(files),
        ),
        "different tasks in the results": (len({info["id"] for info in infos}), len(files)),
        "messages left in the broker": (
            sum((queue.ready or 0) + (queue.delayed or 0) + (queue.leased or 0) for queue in lost),
            0,
        ),
        "dead letters": (sum(queue.dead or 0 for queue in lost), 0),
        "processes killed with -9": (int(killed > 0), 1),
        "exit code of the worker": (code, 0),
    }
    repeated = [info for info in infos if info["deliveries"] > 1]
    return proof(checks, len(repeated))


def summary(entries: list) -> None:
    """Totals, the most imported modules, files that are alike."""
    imported: Counter[str] = Counter()
    same: defaultdict[str, list[str]] = defaultdict(list)
    for entry in entries:
        imported.update(entry.imports)
        if entry.lines:
            same[entry.digest].append(entry.path)
    twins = sorted((paths for paths in same.values() if len(paths) > 1), key=len, reverse=True)

    console.print(
        f"\n[bold]{len(entries):,} files, {sum(entry.lines for entry in entries):,} lines, "
        f"{imported.total():,} imports of {len(imported):,} modules[/]"
    )
    table = Table("most imported", "times", box=None)
    table.columns[1].justify = "right"
    for module, count in imported.most_common(8):
        table.add_row(module, f"{count:,}")
    console.print(table)
    console.print(
        f"{len(twins)} sets of identical files that are not empty, "
        f"{sum(map(len, twins))} files in them"
    )
    for paths in twins[:3]:
        console.print(f"  {len(paths)} x {', '.join(Path(path).name for path in paths[:4])}")


def proof(checks: dict[str, tuple[int, int]], repeated: int) -> int:
    """Print what was counted and what it must be; returns the exit code."""
    table = Table("the proof", "counted", "must be", "", box=None, title_justify="left")
    for column in table.columns[1:3]:
        column.justify = "right"
    for name, (found, wanted) in checks.items():
        mark = "[green]yes[/]" if found == wanted else "[bold red]NO[/]"
        table.add_row(name, f"{found:,}", f"{wanted:,}", mark)
    table.add_row("messages handed over more than once", f"{repeated:,}", "any", "")
    console.print()
    console.print(table)
    if any(found != wanted for found, wanted in checks.values()):
        console.print("\n[bold red]Something was lost.[/]")
        return 1
    console.print("\n[bold green]Each file was counted once, and nothing was lost.[/]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
