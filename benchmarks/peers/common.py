"""What every peer's script shares: the commands of the harness, and how they are timed.

A peer's module runs in the peer's own environment, once per measurement, through `run.py`.
It says how its system sends, what starts its worker, and when its queue is empty; the rest is
here, so that all peers are timed alike. Times are CLOCK_MONOTONIC, which
all processes of a machine share.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

from counting import Counters

DIRECTORY = Path(os.environ.get("BENCH_DIRECTORY", "."))
RESULTS = os.environ.get("BENCH_RESULTS") == "1"
DURABILITY = os.environ.get("BENCH_DURABILITY", "normal")
"""`normal`: what was sent survives the death of every process; `full`: a power cut too."""
REDIS = os.environ.get("BENCH_REDIS", "")
"""The URL of an empty server, for those that need one."""
RABBITMQ = os.environ.get("BENCH_RABBITMQ", "")
MONGODB = os.environ.get("BENCH_MONGODB", "")
KAFKA = os.environ.get("BENCH_KAFKA", "")
"""host:port of a broker."""
TARGET = int(os.environ.get("BENCH_TARGET", "0"))
WORK = int(os.environ.get("BENCH_WORK", "0")) / 1e6
"""Seconds of processor time that `Marks.tick` uses up."""
READY = DIRECTORY / "ready"
DONE = DIRECTORY / "done"
TOGETHER = DIRECTORY / "together"
"""It exists while several processes work, each of which counts in a file of its own there."""
_NOTE = struct.Struct("q")
PATIENCE = 300.0


class Marks:
    """What the tasks note in the worker: when the first and the last one ran, and the delays."""

    def __init__(self) -> None:
        self.count = 0
        self.first = 0.0
        self.delays: list[float] = []
        self._note: mmap.mmap | None = None

    def tick(self) -> int:
        """A task that does nothing ran; it returns something, for a result to be stored."""
        if self.count == 0:
            self.first = time.monotonic()
            if TOGETHER.exists():
                self._note = self._open()
        self.count += 1
        if WORK:
            until = time.thread_time() + WORK
            while time.thread_time() < until:
                pass
        if self._note is not None:
            _NOTE.pack_into(self._note, 0, self.count)
        elif self.count == TARGET:
            self._write(time.monotonic())
        return self.count

    def late(self, sent: float) -> None:
        """A task that was sent at `sent` starts now."""
        now = time.monotonic()
        if sent == 0.0:
            READY.touch()
            return
        self.delays.append(now - sent)
        if len(self.delays) == TARGET:
            self._write(now)

    def due(self, eta: float) -> None:
        """A task that was due at `eta`, in Unix seconds, starts now."""
        self.delays.append(time.time() - eta)
        if len(self.delays) == TARGET:
            self._write(time.monotonic())

    def _open(self) -> mmap.mmap:
        with (TOGETHER / str(os.getpid())).open("w+b") as file:
            file.truncate(_NOTE.size)
            return mmap.mmap(file.fileno(), _NOTE.size)

    def _write(self, last: float) -> None:
        draft = DONE.with_suffix(".draft")
        draft.write_text(json.dumps({"first": self.first, "last": last, "delays": self.delays}))
        draft.rename(DONE)


marks = Marks()


class Peer:
    """One system under measurement."""

    lacks: tuple[str, ...] = ()
    """What it has not got: `results`, `bulk` (it sends one by one), `threads`, a durability."""
    scale = 1.0
    """Of the number of tasks that are drained: less for a system that would take minutes."""

    def prepare(self) -> None:
        """Make ready to send: open what the first send would open."""

    def fill(self, count: int) -> None:
        """Make ready what `send_many(count)` needs beyond that."""

    def send_noop(self) -> object:
        """Send one task that calls `marks.tick`."""
        raise NotImplementedError

    def send_each(self, count: int) -> None:
        """Send many such tasks, one call for each."""
        for _ in range(count):
            self.send_noop()

    def send_many(self, count: int) -> None:
        """Send many such tasks as the system's users would; by default one by one."""
        self.send_each(count)

    def send_late(self, sent: float) -> object:
        """Send one task that calls `marks.late(sent)`."""
        raise NotImplementedError

    def send_delayed(self, etas: Iterable[float]) -> None:
        """Send a task for each moment, in Unix seconds, that calls `marks.due` with it then."""
        raise NotImplementedError

    def round_trip(self, number: int) -> int:
        """Send a task that returns `number`, wait for its result and return it."""
        raise NotImplementedError

    def chord(self, count: int) -> int:
        """Start `count` tasks that return 1 and one that adds up; wait for its result."""
        raise NotImplementedError

    def chain(self, steps: int) -> int:
        """Start a chain of tasks that each add 1 to what the one before returned; wait for it."""
        raise NotImplementedError

    def empty(self) -> bool:
        """Whether no message is left, be it waiting or handed over."""
        raise NotImplementedError

    def worker(self) -> list[str]:
        """The command that starts one worker process with one slot."""
        raise NotImplementedError


def until(condition: Callable[[], bool], pause: float, what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"waited {PATIENCE:.0f} s for {what}")
        time.sleep(pause)


@contextmanager
def running(command: list[str], target: int) -> Iterator[subprocess.Popen[bytes]]:
    """The peer's worker, in a process group of its own."""
    env = os.environ | {
        "BENCH_TARGET": str(target),
        "PYTHONPATH": str(Path(__file__).parent),
    }
    with (DIRECTORY / "worker.log").open("ab") as log:
        process = subprocess.Popen(
            command, cwd=DIRECTORY, env=env, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield process
        if process.poll() is not None:
            raise SystemExit(f"the worker ended early: {(DIRECTORY / 'worker.log').read_text()}")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def empty_group(group: str, topic: str) -> bool:
    """Whether a consumer group of Kafka has committed all of a topic."""
    # Of those that confluent-kafka is there for.
    from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
    from confluent_kafka.admin import AdminClient, OffsetSpec

    client = AdminClient({"bootstrap.servers": KAFKA})
    (committed,) = client.list_consumer_group_offsets(
        [ConsumerGroupTopicPartitions(group)]
    ).values()
    done = {
        (place.topic, place.partition): place.offset
        for place in committed.result(30).topic_partitions
    }
    partitions = client.list_topics(topic, timeout=30).topics[topic].partitions
    ends = client.list_offsets({TopicPartition(topic, n): OffsetSpec.latest() for n in partitions})
    return all(
        end.result(30).offset <= max(0, done.get((topic, place.partition), 0))
        for place, end in ends.items()
    )


def tree(pid: int) -> list[int]:
    """A process and all its descendants."""
    pids = [pid]
    for parent in pids:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            pids += [int(child) for child in task.read_text().split()]
    return pids


def cpu(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def status(pid: int, field: str) -> float:
    """A memory field of /proc/PID/status, in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    return 0.0


def enqueue(peer: Peer, n: int) -> dict[str, Any]:
    peer.prepare()
    start = time.perf_counter()
    peer.send_each(n)
    return {"per_second": n / (time.perf_counter() - start)}


def bulk(peer: Peer, n: int) -> dict[str, Any]:
    if "bulk" in peer.lacks:
        return {}
    peer.prepare()
    peer.fill(n)
    start = time.perf_counter()
    peer.send_many(n)
    return {"per_second": n / (time.perf_counter() - start)}


def crowd(peer: Peer, n: int, threads: int) -> dict[str, Any]:
    """Enqueueing one by one from several threads at once."""
    if "threads" in peer.lacks:
        return {}
    peer.prepare()
    peer.send_each(1)
    begin, end = Barrier(threads + 1), Barrier(threads + 1)

    def send() -> None:
        begin.wait()
        peer.send_each(n // threads)
        end.wait()

    for _ in range(threads):
        Thread(target=send, daemon=True).start()
    begin.wait()
    start = time.perf_counter()
    end.wait(PATIENCE)
    return {"per_second": n // threads * threads / (time.perf_counter() - start)}


def drain(peer: Peer, n: int) -> dict[str, Any]:
    """From the start of the first task until the queue is empty, acknowledgements included."""
    n = scaled(peer, n)
    peer.prepare()
    peer.send_many(n)
    with running(peer.worker(), n) as process:
        until(DONE.exists, 0.005, "the last task")
        until(peer.empty, 0.002, "the queue to be empty")
        end = time.monotonic()
        pids = tree(process.pid)
        used = sum(map(cpu, pids))
        peak = max(status(pid, "VmHWM") for pid in pids)
    first = json.loads(DONE.read_text())["first"]
    return {"per_second": n / (end - first), "cpu_per_10k": used / n * 10_000, "peak_mib": peak}


def scaled(peer: Peer, n: int) -> int:
    return min(n, max(100, int(n * peer.scale)))


def scaling(peer: Peer, n: int, work: int = 0) -> dict[str, Any]:
    """Draining by two worker processes, and by one; each task computes for `work` microseconds."""
    os.environ["BENCH_WORK"] = str(work)
    peer.prepare()
    TOGETHER.mkdir()
    two, one = together(peer, n, 2), together(peer, n, 1)
    return {"two_per_one": two / one, "one_per_second": one, "two_per_second": two}


def together(peer: Peer, n: int, workers: int) -> float:
    """Tasks per second of some workers, from when all of them work until the queue is empty."""
    for path in TOGETHER.iterdir():
        path.unlink()
    peer.send_many(n)
    with ExitStack() as stack:
        for _ in range(workers):
            stack.enter_context(running(peer.worker(), n))
        until(lambda: len(counted()) == workers, 0.001, "all workers")
        start, before = time.monotonic(), sum(counted())
        until(lambda: sum(counted()) >= n, 0.005, "the last task")
        until(peer.empty, 0.002, "the queue to be empty")
        end = time.monotonic()
    if before > n / 2:
        raise SystemExit(f"{before} of {n} tasks ran before {workers} workers were there")
    return (n - before) / (end - start)


def counted() -> list[int]:
    """How many tasks each process has run; a file that is just being made has not its size yet."""
    notes = [path.read_bytes() for path in TOGETHER.iterdir()]
    return [_NOTE.unpack(note)[0] for note in notes if len(note) == _NOTE.size]


def counts(peer: Peer, n: int) -> dict[str, Any]:
    """What the server is asked for, and what it keeps, per task; counted by the server."""
    n = scaled(peer, n)
    peer.prepare()
    peer.send_each(1)
    counters = Counters(REDIS)
    with counters.watching() as sending:
        peer.send_each(100)
    before = counters.read()
    peer.send_each(n)
    after = counters.read()
    total = n + 101
    with counters.watching() as draining, running(peer.worker(), total):
        until(DONE.exists, 0.005, "the last task")
        until(peer.empty, 0.05, "the queue to be empty")
    end = counters.read()
    return {
        "sent_commands": sending.commands / 100,
        "sent_bytes": (after.received - before.received) / n,
        "memory_bytes": (after.memory - before.memory) / n,
        "drain_commands": draining.commands / total,
        "with_those_of_scripts": (end.calls - after.calls) / total,
    }


def warm(peer: Peer) -> None:
    peer.prepare()
    peer.send_late(0.0)
    until(READY.exists, 0.005, "the worker's first task")


def latency(peer: Peer, n: int, every: float) -> dict[str, Any]:
    """From the call to the start of the task, one task every `every` seconds."""
    with running(peer.worker(), n):
        warm(peer)
        due = time.monotonic()
        for _ in range(n):
            due += every
            time.sleep(max(0.0, due - time.monotonic()))
            peer.send_late(time.monotonic())
        until(DONE.exists, 0.01, "the last task")
    delays = sorted(json.loads(DONE.read_text())["delays"])
    return {"p50_ms": delays[n // 2] * 1000, "p99_ms": delays[n * 99 // 100] * 1000}


def delayed(peer: Peer, n: int, due: int, per_second: int) -> dict[str, Any]:
    """How late tasks start that come due evenly, while many more wait for another day."""
    peer.prepare()
    tomorrow = time.time() + 86400
    start = time.monotonic()
    peer.send_delayed(tomorrow + number / per_second for number in range(n - due))
    sent = (n - due) / (time.monotonic() - start)
    server = Counters(REDIS).read().memory
    with running(peer.worker(), due) as process:
        warm(peer)
        pids = tree(process.pid)
        before = max(status(pid, "VmRSS") for pid in pids)
        first = time.time() + 2.0 + due / 20_000
        peer.send_delayed(first + number / per_second for number in range(due))
        if time.time() > first:
            raise SystemExit("sending took longer than the time until the first is due")
        until(DONE.exists, 0.05, "the last task")
        peak = max(status(pid, "VmHWM") for pid in pids)
    delays = sorted(json.loads(DONE.read_text())["delays"])
    return {
        "late_p50_ms": delays[due // 2] * 1000,
        "late_p99_ms": delays[due * 99 // 100] * 1000,
        "late_most_ms": delays[-1] * 1000,
        "early": sum(delay < 0 for delay in delays),
        "worker_mib_before": before,
        "worker_mib_peak": peak,
        "server_bytes_each": server / n,
        "sent_per_second": sent,
    }


def roundtrip(peer: Peer, n: int) -> dict[str, Any]:
    with running(peer.worker(), 0):
        warm(peer)
        start = time.perf_counter()
        for number in range(n):
            if peer.round_trip(number) != number:
                raise SystemExit(f"a wrong result for {number}")
        return {"per_second": n / (time.perf_counter() - start)}


def chord(peer: Peer, n: int, rounds: int) -> dict[str, Any]:
    """From the call that starts it to the result of its callback."""
    return started(peer, peer.chord, n, rounds)


def chain(peer: Peer, n: int, rounds: int) -> dict[str, Any]:
    """The same of `n` steps one after the other."""
    return started(peer, peer.chain, n, rounds)


def started(peer: Peer, start: Callable[[int], int], n: int, rounds: int) -> dict[str, Any]:
    if type(peer).chord is Peer.chord:
        return {}
    with running(peer.worker(), 0):
        warm(peer)
        start(10)
        times = []
        for _ in range(rounds):
            begin = time.perf_counter()
            if start(n) != n:
                raise SystemExit(f"a wrong result of {n} tasks")
            times.append(time.perf_counter() - begin)
    took = sorted(times)[rounds // 2]
    return {"tasks_per_second": n / took, "ms": took * 1000, "ms_per_task": took / n * 1000}


def idle(peer: Peer, seconds: float) -> dict[str, Any]:
    """A worker that has run one task and has nothing to do."""
    with running(peer.worker(), 0) as process:
        warm(peer)
        time.sleep(2.0)
        pids = tree(process.pid)
        before = sum(map(cpu, pids))
        time.sleep(seconds)
        used = sum(map(cpu, pids)) - before
        return {
            "cpu_percent": used / seconds * 100,
            "rss_mib": [round(status(pid, "VmRSS"), 1) for pid in pids],
            "worker_mib": status(pids[-1], "VmRSS"),
        }


COMMANDS: dict[str, Callable[..., dict[str, Any]]] = {
    command.__name__: command
    for command in (
        enqueue,
        bulk,
        crowd,
        drain,
        scaling,
        counts,
        latency,
        delayed,
        roundtrip,
        chord,
        chain,
        idle,
    )
}
