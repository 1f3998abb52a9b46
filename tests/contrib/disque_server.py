"""A stand-in for Disque: one node that answers as Disque's documentation and source say.

It keeps jobs in memory, speaks RESP2 on a port of its own, and takes the time from a
clock that a test moves. It has no cluster, no disk, and none of the random delays by
which Disque's nodes keep out of each other's way.
"""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any, BinaryIO
from uuid import uuid4

from taskline.clock import Clock

NODE = "0f0c644fd3ccb51c2cedbd47fcb6f312646c993c"
Answer = Any


class Error(Exception):
    """An answer that is an error."""


class Status(str):
    """An answer that is a plain line."""


@dataclass
class Job:
    id: bytes
    queue: bytes
    body: bytes
    created: int
    """Nanoseconds; the order in a queue."""
    ends: float
    delay: int
    retry: int
    repl: int
    state: str = "active"
    due: float | None = None
    """When it is put into its queue (again); None for never."""
    nacks: int = 0
    again: int = 0
    queued_before: bool = False
    got: bool = False


@dataclass
class Store:
    clock: Clock
    jobs: dict[bytes, Job] = field(default_factory=dict)
    queues: dict[bytes, None] = field(default_factory=dict)
    changed: threading.Condition = field(default_factory=threading.Condition)
    commands: list[list[bytes]] = field(default_factory=list)
    """All that were received, for tests that look."""
    failing: dict[str, str] = field(default_factory=dict)
    """By command, the error that it answers with; `CUT` ends the connection instead."""
    paused: set[bytes] = field(default_factory=set)
    """Queues that take no jobs."""
    ticks: Any = field(default_factory=lambda: count(1))
    last: int = 0

    def move_on(self) -> None:
        """What Disque's timer does: expire, and put back what nobody acknowledged."""
        now = self.clock.time()
        for job in list(self.jobs.values()):
            if job.ends <= now:
                del self.jobs[job.id]
            elif job.due is not None and job.due <= now:
                if job.state == "active":
                    self.enqueue(job, nack=False)
                elif job.retry:
                    job.due = now + job.retry

    def enqueue(self, job: Job, nack: bool) -> bool:
        if job.state == "queued" or job.due is None or (not job.retry and job.got):
            return False
        job.state = "queued"
        job.due = self.clock.time() + job.retry if job.retry else None
        if nack:
            job.nacks += 1
        elif job.queued_before:
            job.again += 1
        job.queued_before = True
        self.queues[job.queue] = None
        self.changed.notify_all()
        return True

    def line(self, queue: bytes) -> list[Job]:
        found = [job for job in self.jobs.values() if (job.queue, job.state) == (queue, "queued")]
        return sorted(found, key=lambda job: job.created)

    def known(self, ids: list[bytes]) -> list[Job]:
        for job_id in ids:
            if len(job_id) != 40 or not job_id.startswith(b"D-"):
                raise Error("BADID Invalid Job ID format.")
        return [self.jobs[job_id] for job_id in ids if job_id in self.jobs]


def options(words: list[bytes], with_value: str, flags: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    words = list(words)
    while words:
        name = words.pop(0).decode().lower()
        if name in with_value.split() and words:
            found.setdefault(name, []).append(words.pop(0))
        elif name in flags.split():
            found[name] = True
        elif name.isdigit() and "cursor" in flags.split():
            found["cursor"] = int(name)
        else:
            raise Error("ERR syntax error")
    return found


class Commands:
    """Each method answers the command of its name; called under the store's lock."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def addjob(self, queue: bytes, body: bytes, timeout: bytes, *words: bytes) -> Answer:
        given = options(list(words), "replicate delay retry ttl maxlen", "async")
        number = {name: int(value[-1]) for name, value in given.items() if name != "async"}
        ttl, delay = number.get("ttl", 86400), number.get("delay", 0)
        repl = number.get("replicate", 1)
        retry = number.get("retry", max(1, min(300, ttl // 10)))
        if int(timeout) < 0 or ttl <= 0 or repl <= 0 or retry < 0 or delay < 0:
            raise Error("ERR a number is out of range")
        if repl > 1 and retry == 0:
            raise Error("ERR With RETRY set to 0 please explicitly set REPLICATE to 1")
        if delay >= ttl:
            raise Error("ERR The specified DELAY is greater than TTL. Job refused")
        if queue in self.store.paused:
            raise Error("PAUSED Queue paused in input, try later")
        if repl > 1:
            raise Error("NOREPL Not enough reachable nodes for the requested replication level")
        store = self.store
        now = store.clock.time()
        store.last = max(int(now * 1000) * 1_000_000, store.last + 1)
        job_id = f"D-{NODE[:8]}-{uuid4().hex[:24]}-{min(ttl // 60, 65535) | 1:04x}".encode()
        job = Job(job_id, queue, body, store.last, now + ttl, delay, retry, repl)
        store.jobs[job_id] = job
        job.due = now + delay
        if not delay:
            store.enqueue(job, nack=False)
        return job_id

    def getjob(self, *words: bytes) -> Answer:
        at = [word.upper() for word in words].index(b"FROM")
        given = options(list(words[:at]), "timeout count", "nohang withcounters")
        queues, most = words[at + 1 :], int(given.get("count", [1])[-1])
        timeout = int(given.get("timeout", [0])[-1]) / 1000
        end = time.monotonic() + timeout
        while True:
            self.store.move_on()
            taken: list[Job] = []
            while len(taken) < most:
                before = len(taken)
                for queue in queues:
                    if len(taken) < most and (waiting := self.store.line(queue)):
                        waiting[0].state, waiting[0].got = "active", True
                        taken.append(waiting[0])
                if len(taken) == before:
                    break
            if taken:
                return [self.shown(job, "withcounters" in given) for job in taken]
            left = end - time.monotonic()
            if "nohang" in given or (timeout and left <= 0):
                return None
            self.store.changed.wait(0.01 if not timeout else min(left, 0.01))

    def shown(self, job: Job, counters: bool) -> Answer:
        found: list[Answer] = [job.queue, job.id, job.body]
        if counters:
            found += [b"nacks", job.nacks, b"additional-deliveries", job.again]
        return found

    def ackjob(self, *ids: bytes) -> Answer:
        found = self.store.known(list(ids))
        for job in found:
            del self.store.jobs[job.id]
        return len(found)

    fastack = deljob = ackjob

    def nack(self, *ids: bytes) -> Answer:
        return sum(self.store.enqueue(job, nack=True) for job in self.store.known(list(ids)))

    def enqueue(self, *ids: bytes) -> Answer:
        return sum(self.store.enqueue(job, nack=False) for job in self.store.known(list(ids)))

    def dequeue(self, *ids: bytes) -> Answer:
        found = [job for job in self.store.known(list(ids)) if job.state == "queued"]
        for job in found:
            job.state = "active"
        return len(found)

    def working(self, job_id: bytes) -> Answer:
        found = self.store.known([job_id])
        if not found:
            raise Error("NOJOB Job not known in the context of this node.")
        (job,) = found
        now = self.store.clock.time()
        if now - job.created / 1e9 > (job.ends - job.created / 1e9) / 2:
            raise Error("TOOLATE Half of job TTL already elapsed")
        job.state, job.due = "active", now + job.retry
        return job.retry

    def qlen(self, queue: bytes) -> Answer:
        return len(self.store.line(queue))

    def qpeek(self, queue: bytes, number: bytes) -> Answer:
        line, most = self.store.line(queue), int(number)
        chosen = line[:most] if most >= 0 else line[::-1][:-most]
        return [self.shown(job, False) for job in chosen]

    def show(self, job_id: bytes) -> Answer:
        found = self.store.known([job_id])
        return self.described(found[0]) if found else None

    def described(self, job: Job) -> Answer:
        now = self.store.clock.time()
        within = None if job.due is None else max(0, int((job.due - now) * 1000))
        fields: dict[str, Answer] = {
            "id": job.id,
            "queue": job.queue,
            "state": job.state.encode(),
            "repl": job.repl,
            "ttl": max(0, int(job.ends - now)),
            "ctime": job.created,
            "delay": job.delay,
            "retry": job.retry,
            "nacks": job.nacks,
            "additional-deliveries": job.again,
            "nodes-delivered": [NODE.encode()],
            "nodes-confirmed": [],
            "next-requeue-within": within,
            "next-awake-within": within,
            "body": job.body,
        }
        return [each for name, value in fields.items() for each in (name.encode(), value)]

    def qscan(self, *words: bytes) -> Answer:
        options(list(words), "count minlen maxlen importrate", "busyloop cursor")
        return [b"0", list(self.store.queues)]

    def jscan(self, *words: bytes) -> Answer:
        given = options(list(words), "count queue state reply", "busyloop cursor")
        states = [state.decode() for state in given.get("state", [])]
        # A page may have fewer than it counts, and repeats its last job: both are allowed.
        everything = list(self.store.jobs.values())
        at = given.get("cursor", 0)
        most = max(1, int(given.get("count", [100])[-1]) // 7)
        found = [
            job
            for job in everything[max(0, at - 1) : at + most]
            if job.queue in given.get("queue", [job.queue]) and (not states or job.state in states)
        ]
        after = at + most if at + most < len(everything) else 0
        all_of_it = given.get("reply", [b"id"])[-1] == b"all"
        return [
            str(after).encode(),
            [self.described(job) if all_of_it else job.id for job in found],
        ]

    def hello(self) -> Answer:
        return [1, NODE.encode(), [NODE.encode(), b"127.0.0.1", b"7711", b"1"]]

    def info(self, *section: bytes) -> Answer:
        jobs = len(self.store.jobs)
        return f"# Server\r\ndisque_version:1.0-rc1\r\nregistered_jobs:{jobs}\r\n".encode()

    def auth(self, password: bytes) -> Answer:
        if password != b"secret":
            raise Error("ERR invalid password")
        return Status("OK")


class DisqueServer:
    """Listens until it is closed. `store` is what it has and was asked."""

    def __init__(self, clock: Clock) -> None:
        self.store = store = Store(clock)
        self.open: set[socket.socket] = set()
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                outer.open.add(self.request)
                commands = Commands(store)
                try:
                    while words := read(self.rfile):
                        self.wfile.write(written(answer(store, commands, words)))
                except OSError:
                    pass
                finally:
                    outer.open.discard(self.request)

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.01,), name="disque-server", daemon=True
        )
        self._thread.start()

    def cut(self) -> None:
        """End all connections."""
        for each in list(self.open):
            each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self.cut()
        self._thread.join(5)


def answer(store: Store, commands: Commands, words: list[bytes]) -> Answer:
    name = words[0].decode().lower()
    call: Callable[..., Answer] | None = getattr(commands, name, None)
    with store.changed:
        store.commands.append(words)
        try:
            if store.failing.get(name) == "CUT":
                raise ConnectionAbortedError
            if name in store.failing:
                raise Error(store.failing[name])
            if call is None or name in ("shown", "described"):
                raise Error(f"ERR unknown command '{name}'")
            store.move_on()
            return call(*words[1:])
        except Error as error:
            return error
        except (TypeError, ValueError) as error:
            return Error(f"ERR {error}")


def read(stream: BinaryIO) -> list[bytes]:
    """One command; empty at the end."""
    line = stream.readline()
    if not line:
        return []
    words = []
    for _ in range(int(line[1:])):
        length = int(stream.readline()[1:])
        words.append(stream.read(length + 2)[:-2])
    return words


def written(value: Answer) -> bytes:
    if isinstance(value, Error):
        return b"-%s\r\n" % str(value).encode()
    if isinstance(value, Status):
        return b"+%s\r\n" % value.encode()
    if value is None:
        return b"*-1\r\n"
    if isinstance(value, int):
        return b":%d\r\n" % value
    if isinstance(value, bytes):
        return b"$%d\r\n%s\r\n" % (len(value), value)
    return b"*%d\r\n%s" % (len(value), b"".join(map(written, value)))
