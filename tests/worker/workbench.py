"""What the tests of the worker share: workers in threads, transports that can be watched
and broken, and a worker that is driven one step at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from taskline import Taskline
from taskline.backends.base import Backend
from taskline.errors import BackendError, TransportError
from taskline.transports.base import Transport
from taskline.worker import Worker, WorkerOptions
from taskline.worker.execute import Job, Runner
from taskline.worker.io import IOThread
from taskline.worker.ledger import Condemned, Ledger
from taskline.worker.lifetime import Lifetime
from taskline.worker.process import served_queues
from taskline.worker.remote import Remote

T = TypeVar("T")

QUIET = frozenset({"capabilities", "clock", "close", "interrupt", "location", "scheme", "shares"})
"""What a spy passes on without a word."""


def until(condition: Callable[[], T], within: float = 30.0) -> T:
    """What `condition` returns as soon as it is true; fails after `within` seconds."""
    give_up = time.monotonic() + within
    while not (found := condition()):
        if time.monotonic() > give_up:
            raise AssertionError(f"still {found!r} after {within:g} s")
        time.sleep(0.003)
    return found


@contextmanager
def working(app: Taskline, grace: float = 0.0, **options: Any) -> Iterator[Worker]:
    """A worker in threads for the length of a block."""
    worker = Worker(app, WorkerOptions(**options))
    worker.start()
    try:
        yield worker
    finally:
        worker.stop(grace)


class Spy:
    """Passes calls on to a transport or a backend, notes them in `calls`, and fails as told."""

    def __init__(self, inner: Any, calls: list[tuple[str, tuple[Any, ...]]]) -> None:
        self.inner = inner
        self.calls = calls
        self.down = False
        """Every call fails before it has an effect."""
        self.faults: dict[str, list[str]] = {}
        """For each call by its name, what the next ones do: fail `before` or `after` it."""

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        if name in QUIET or not callable(found):
            return found

        def call(*args: Any) -> Any:
            faults = self.faults.get(name)
            fault = faults.pop(0) if faults else ""
            if self.down or fault == "before":
                raise self._error(f"{name}: the cable is cut")
            self.calls.append((name, args))
            answer = found(*args)
            if fault == "after":
                raise self._error(f"{name}: the cable was cut")
            return answer

        return call

    def shares(self, backend: Any) -> bool:
        shares: bool = self.inner.shares(getattr(backend, "inner", backend))
        return shares

    def _error(self, message: str) -> TransportError:
        return (BackendError if isinstance(self.inner, Backend) else TransportError)(message)

    def names(self, *wanted: str) -> list[str]:
        """The calls so far, by name; of `wanted` only where given."""
        return [name for name, _ in self.calls if not wanted or name in wanted]


def spy_on(app: Taskline) -> tuple[Spy, Spy]:
    """Make the workers of this app talk through spies: (transport, backend).

    Both note their calls in one list.
    """
    calls: list[tuple[str, tuple[Any, ...]]] = []
    transport, backend = Spy(app.open_transport(), calls), Spy(app.open_backend(), calls)
    app.open_transport = lambda: transport  # type: ignore[method-assign,return-value,assignment]
    app.open_backend = lambda: backend  # type: ignore[method-assign,return-value,assignment]
    return transport, backend


class Bench:
    """One worker process without threads: the test turns its I/O thread and is its slots."""

    def __init__(
        self,
        app: Taskline,
        *,
        slots: int = 1,
        lease: float = 30.0,
        max_deliveries: int = 5,
        prefetch: int | None = 1000,
        async_slots: int = 1,
        ledger: Ledger | None = None,
        condemned: Condemned | None = None,
        name: str = "bench",
        transport: Transport | Spy | None = None,
        backend: Backend | Spy | None = None,
        lifetime: Lifetime | None = None,
        starvation: float | None = None,
        drain: bool = False,
        queues: list[str] | None = None,
        weights: dict[str, int] | None = None,
        ranks: dict[str, int] | None = None,
        remote: Remote | None = None,
    ) -> None:
        self.app = app
        self.clock = app.clock
        self.runner = Runner(app, name, keep_results=app.settings.backend is not None)
        self.io = IOThread(
            app,
            self.runner,
            consumer=name,
            queues=queues or served_queues(app),
            weights=weights or {},
            ranks=ranks,
            remote=remote,
            lease=lease,
            max_deliveries=max_deliveries,
            prefetch=prefetch,
            slots=slots,
            async_slots=async_slots,
            ledger=ledger,
            condemned=condemned,
            lifetime=lifetime,
            starvation=starvation,
            drain=drain,
        )
        self.exchange = self.io.exchange
        self.transport: Any = transport or app.open_transport()
        self.backend: Any = backend or app.open_backend()
        if remote is not None:
            remote.open(self.backend)
        self.io.begin(self.transport, self.backend)

    def turn(self, times: int = 1) -> bool:
        """Let the I/O thread do what is due; false when it has ended."""
        return all(self.io.step(0.0) for _ in range(times))

    @property
    def waiting(self) -> int:
        """The jobs that wait for a slot."""
        return self.exchange.ready.qsize()

    @property
    def held(self) -> set[str]:
        """The ids of all messages that this process holds."""
        return {delivery.id for delivery in self.io.held}

    def begin(self, slot: int = 0) -> Job | None:
        """Let a slot take its next job and begin to run it."""
        exchange = self.exchange
        while self.waiting:
            job = exchange.ready.get_nowait()
            exchange.taken += 1
            if job is None or job.lost:
                continue
            if not self.runner.may_begin(job, self.clock.time()):
                exchange.done.append(job)
                continue
            job.begin(self.clock.time(), self.clock.monotonic)
            self.io.slots[slot].current = job
            return job
        return None

    def finish(self, slot: int = 0) -> Job | None:
        """Let the slot's job run to its end."""
        job = self.io.slots[slot].current
        if job is None:
            return None
        self.runner.run(job)
        self.exchange.done.append(job)
        self.io.slots[slot].current = None
        return job

    def work(self, slot: int = 0) -> list[Job]:
        """Run all that waits in this slot, one after the other."""
        jobs = []
        while self.begin(slot) is not None:
            job = self.finish(slot)
            assert job is not None
            jobs.append(job)
        return jobs

    def drain(self, turns: int = 50) -> int:
        """Turn and work until nothing is left to do; returns how many jobs ran."""
        ran = 0
        for _ in range(turns):
            self.turn()
            jobs = self.work()
            ran += len(jobs)
            if not jobs and not self.held:
                return ran
        raise AssertionError(f"still at work after {turns} turns, holding {self.held}")

    def die(self) -> list[str]:
        """Be killed with the supervisor looking on, which hands back what was held.

        Returns the ids of what ran.
        """
        started = [slot.current.delivery.id for slot in self.io.slots if slot.current is not None]
        supervisor = self.app.open_transport()
        supervisor.recover(self.io._consumer, started)
        supervisor.close()
        return started
