"""What a task costs Taskline, counted rather than timed where that is possible.

Runs in Taskline's environment: `python counted.py calls` and so on; prints one line of JSON.
"""

from __future__ import annotations

import cProfile
import io
import json
import os
import pstats
import sqlite3
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import taskline
from taskline import Taskline

HOME = str(Path(taskline.__file__).parent)
N = int(os.environ.get("BENCH_COUNT", "5000"))


def make_app(**where: Any) -> Taskline:
    app = Taskline("counted", **where)

    @app.task(name="add")
    def add(a: int, b: int = 2) -> int:
        return a + b

    return app


def work(app: Taskline, count: int) -> float:
    """Run a worker in threads until `count` sent tasks are done; returns the seconds."""
    from taskline.worker import Worker, WorkerOptions

    def left() -> int:
        return sum((queue.ready or 0) + (queue.leased or 0) for queue in app.transport.stats())

    worker = Worker(app, WorkerOptions())
    start = time.perf_counter()
    worker.start()
    while left():
        time.sleep(0.01)
    seconds = time.perf_counter() - start
    worker.stop()
    return seconds


def send(app: Taskline, count: int) -> None:
    with app.batch():
        for number in range(count):
            app.tasks["add"].delay(number)


class Calls:
    """Counts the calls of functions of ours, by thread."""

    def __init__(self) -> None:
        self.codes: dict[str, Counter[CodeType]] = {}

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(HOME):
            thread = threading.current_thread().name
            self.codes.setdefault(thread, Counter())[frame.f_code] += 1

    def named(self, thread: str, per: int = 1) -> dict[str, float]:
        """Calls per task of each function, most called first, without the rare ones."""
        return {
            f"{Path(code.co_filename).relative_to(HOME)}:{code.co_name}": round(count / per, 2)
            for code, count in self.codes.get(thread, Counter()).most_common()
            if count / per > 0.01
        }


def calls() -> dict[str, Any]:
    """Python calls of ours from `delay()` to the driver, and per task in the worker."""
    with tempfile.TemporaryDirectory() as directory:
        url = f"sqlite:///{directory}/calls.db"
        app = make_app(broker=url, backend=url)
        add = app.tasks["add"]
        add.delay(1)
        sending = Calls()
        reached: list[tuple[int, int]] = []

        def profile(frame: FrameType, event: str, argument: Any) -> None:
            sending(frame, event, argument)
            if event == "c_call" and "sqlite3" in str(type(getattr(argument, "__self__", None))):
                codes = sending.codes[threading.current_thread().name]
                files = {code.co_filename for code in codes}
                reached.append((sum(codes.values()), len(files)))

        sys.setprofile(profile)
        try:
            add.delay(1)
        finally:
            sys.setprofile(None)
        main = threading.current_thread().name
        codes = sending.codes[main]

        send(app, N)
        working = Calls()
        threading.setprofile(working)
        try:
            work(app, N)
        finally:
            threading.setprofile(None)  # type: ignore[arg-type]
        app.close()
    threads = {
        thread: round(sum(counter.values()) / N, 2) for thread, counter in working.codes.items()
    }
    return {
        "send: calls and files to the driver's first statement": reached[0],
        "send: calls in all": sum(codes.values()),
        "send: functions": list(sending.named(main)),
        "worker: calls per task": threads,
        "worker: functions": {thread: working.named(thread, N) for thread in working.codes},
    }


def transactions() -> dict[str, Any]:
    """Write transactions on SQLite per task."""
    count = Transactions()
    connect = sqlite3.connect

    def counting(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        connection = connect(*args, **kwargs)
        connection.set_trace_callback(count.statement(connection))
        return connection

    sqlite3.connect = counting
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        for title, kept in (("results stored", True), ("no results", False)):
            url = f"sqlite:///{directory}/{title.replace(' ', '-')}.db"
            app = make_app(broker=url, backend=url if kept else None)
            app.transport.ping()
            count.total = 0
            for number in range(100):
                app.tasks["add"].delay(number)
            figures[f"one-call send ({title})"] = count.total / 100
            count.total = 0
            send(app, N)
            figures[f"batched send ({title})"] = count.total / N
            count.total = 0
            work(app, N + 100)
            figures[f"receive, store, acknowledge ({title})"] = count.total / (N + 100)
            app.close()
    return figures


class Transactions:
    """Counts `begin`s, and the writes that stand alone."""

    def __init__(self) -> None:
        self.total = 0

    def statement(self, connection: sqlite3.Connection) -> Any:
        inside = False

        def trace(sql: str) -> None:
            nonlocal inside
            verb = sql.lstrip().split(None, 1)[0].lower()
            if verb == "begin":
                inside = True
                self.total += 1
            elif verb in ("commit", "rollback", "end"):
                inside = False
            elif verb in ("insert", "update", "delete", "replace", "with") and not inside:
                self.total += 1

        return trace


def core() -> dict[str, Any]:
    """The core's own cost per task in microseconds: open, decode, convert, run, encode."""
    from taskline.message import Delivery
    from taskline.worker.execute import Job, Runner

    app = make_app(broker="memory://core", backend="memory://core")
    send(app, N)
    queue = app.settings.queue
    deliveries = app.transport.receive([queue], N, 600.0, 0.0, "bench")
    runner = Runner(app, "bench", keep_results=True)

    def once(delivery: Delivery) -> None:
        header, body = app.codec.open(delivery.frame)
        runner.run(Job(delivery, header, body, app.tasks[header.task]))

    def all_of_them() -> float:
        start = time.perf_counter()
        for delivery in deliveries:
            once(delivery)
        return (time.perf_counter() - start) / N * 1e6

    timings = sorted(all_of_them() for _ in range(7))
    app.transport.ack(deliveries)
    whole = []
    for _ in range(3):
        send(app, 4 * N)
        whole.append(work(app, 4 * N) / (4 * N) * 1e6)
    profiler = cProfile.Profile()
    profiler.runcall(all_of_them)
    text = io.StringIO()
    pstats.Stats(profiler, stream=text).strip_dirs().sort_stats("tottime").print_stats(18)
    app.close()
    return {
        "core, µs per task": round(timings[3], 2),
        "whole worker on memory, µs per task": round(sorted(whole)[1], 2),
        "profile": text.getvalue().strip(),
    }


if __name__ == "__main__":
    os.environ.pop("TASKLINE_BROKER", None)
    print(json.dumps({"calls": calls, "transactions": transactions, "core": core}[sys.argv[1]]()))
