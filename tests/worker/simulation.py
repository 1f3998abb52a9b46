"""The core in a world of its own: two workers, a broker and a backend in memory, a clock that
stands still, and a fault at any call that the workers make.

A schedule is data: what is sent, whose turn it is, when time passes, and what becomes of the
n-th call. Running one is deterministic. `World.run` checks the promises while it runs and at
its end; everything that is not explained by a fault is an AssertionError.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from workbench import QUIET, Bench

from taskline import Taskline
from taskline.backends import memory as memory_backends
from taskline.backends.base import Backend
from taskline.clock import ManualClock
from taskline.context import current_task
from taskline.errors import BackendError, Reject, TransportError
from taskline.message import (
    EXPIRED,
    FAILURE,
    FINAL_STATES,
    SUCCESS,
    Header,
    Message,
    Outcome,
    new_id,
)
from taskline.testing.stepping import Killed
from taskline.transports import memory as memory_transports

LEASE, MAX_DELIVERIES, SLOTS = 30.0, 3, 2
KINDS = ("good", "bad", "flaky", "reject", "later", "brief", "poison", "garbage")
FAULTS = ("before", "after", "die before", "die after")
"""What becomes of a call: it fails before or after it took effect, or its process is killed."""
TIMES = (0.3, 6.0, 11.0, LEASE + 1)
FAULTY = frozenset({"receive", "ack", "release", "replace", "extend", "bury", "store", "revoked"})
ENDS = {
    "good": {SUCCESS},
    "bad": {FAILURE},
    "flaky": {SUCCESS},
    "reject": {FAILURE},
    "later": {SUCCESS},
    "brief": {SUCCESS, EXPIRED},
    "poison": {FAILURE},
}


class Action(NamedTuple):
    """One step of a schedule."""

    what: str
    """`send` (a kind), `turn`, `begin`, `finish`, `work` (all three), `stop`, `kill` (of a
    worker), or `time`."""
    which: int = 0
    """The worker, the kind, or how much time."""
    how: int = 0
    """The slot; of a stop whether it has no grace; of a kill whether nobody looks on."""


class Cable:
    """What a worker holds of the broker or the backend."""

    def __init__(self, inner: Any, world: World, worker: int) -> None:
        self.inner = inner
        self._world = world
        self._worker = worker

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        if name in QUIET or not callable(found):
            return found
        return lambda *args: self._world.call(
            self._worker, name, isinstance(self.inner, Backend), lambda: found(*args)
        )

    def shares(self, backend: Any) -> bool:
        return bool(self.inner.shares(getattr(backend, "inner", backend)))


class World:
    """One schedule's world."""

    def __init__(self, apart: bool, faults: Mapping[int, str]) -> None:
        """`apart`: broker and backend are two stores. `faults` are by the number of the call."""
        self.clock = ManualClock()
        self.names = [new_id(), new_id()] if apart else [new_id()] * 2
        self.app = Taskline(
            "simulated",
            broker=f"memory://{self.names[0]}",
            backend=f"memory://{self.names[1]}",
            clock=self.clock,
        )
        self.apart = apart
        self.faults = dict(faults)
        self.calls = itertools.count()
        self.mended = False
        self.accepted: dict[str, str] = {}
        self.refused: set[str] = set()
        self.runs: dict[str, list[tuple[int, int]]] = {}
        """Of each task the attempt and the delivery of each run."""
        self.ended: dict[str, Outcome] = {}
        self.excuses: Counter[str] = Counter()
        """How often each task was taken from a worker by a death, a stop or the clock."""
        self.held_until: list[dict[str, float]] = [{}, {}]
        """When each worker's leases end, as it knows it."""
        self._tasks()
        self.benches = [self._bench(0), self._bench(1)]

    def _tasks(self) -> None:
        def run() -> int:
            task = current_task
            self.runs.setdefault(task.id, []).append((task.attempt, task.deliveries))
            return task.deliveries

        def bad() -> None:
            raise ValueError(run())

        def reject() -> None:
            raise Reject(str(run()))

        def flaky() -> int:
            if run() and current_task.attempt < 3:
                raise OSError("down")
            return current_task.deliveries

        def poison() -> None:
            raise AssertionError("`finish` kills the process instead")

        for name in ("good", "later", "brief"):
            self.app.task(name=name)(run)
        self.app.task(name="bad")(bad)
        self.app.task(name="reject", retry=3)(reject)
        self.app.task(name="flaky", retry={"max": 2, "wait": 5})(flaky)
        self.app.task(name="poison")(poison)

    def _bench(self, worker: int) -> Bench:
        self.held_until[worker] = {}
        return Bench(
            self.app,
            slots=SLOTS,
            lease=LEASE,
            max_deliveries=MAX_DELIVERIES,
            prefetch=4,
            name=f"{worker}-{new_id()}",
            transport=Cable(self.app.open_transport(), self, worker),  # type: ignore[arg-type]
            backend=Cable(self.app.open_backend(), self, worker),  # type: ignore[arg-type]
        )

    # ---- the calls of the workers, and what is planned for them

    def call(self, worker: int, name: str, backend: bool, do: Callable[[], Any]) -> Any:
        fault = ""
        if name in FAULTY and not self.mended:
            fault = self.faults.get(next(self.calls), "")
        error = (BackendError if backend else TransportError)(f"planned: {name} {fault}")
        if fault == "before":
            raise error
        if fault == "die before":
            raise Killed(name)
        answer = do()
        self._learn(worker, name, answer)
        if fault == "after":
            raise error
        if fault == "die after":
            raise Killed(name)
        return answer

    def _learn(self, worker: int, name: str, answer: Any) -> None:
        leases, until = self.held_until[worker], self.clock.time() + LEASE
        if name == "receive":
            leases.update((delivery.id, until) for delivery in answer)
        elif name == "extend":
            lost = {delivery.id for delivery in answer}
            for key in leases:
                if key not in lost:
                    leases[key] = until

    # ---- the schedule

    def run(self, actions: Sequence[Action]) -> None:
        """Do all of it, mend everything, let it come to rest, and check."""
        try:
            for action in actions:
                self.do(action)
                self.check_places()
            self._come_to_rest()
            self.check_ends()
        finally:
            self.close()

    def do(self, action: Action) -> None:
        """One step; a worker that is killed by it is replaced."""
        what, which, how = action
        if what == "send":
            self._send(KINDS[which % len(KINDS)])
        elif what == "time":
            self._let_pass(TIMES[which % len(TIMES)])
        elif what == "kill":
            self._die(which % 2, supervised=not how % 2)
        else:
            worker = which % 2
            try:
                self._let_work(what, worker, how)
            except Killed:
                # By turns: the first who is killed has a supervisor that looks on.
                self._die(worker, supervised=next(self.calls) % 2 == 0)

    def _let_work(self, what: str, worker: int, how: int) -> None:
        bench, slot = self.benches[worker], how % SLOTS
        if what == "turn":
            assert bench.turn(), "nobody told it to stop"
        elif what == "begin":
            if bench.io.slots[slot].current is None:
                bench.begin(slot)
        elif what == "finish":
            self._finish(bench, slot)
        elif what == "work":
            for _ in range(3):
                bench.turn()
                for each in range(SLOTS):
                    self._finish(bench, each)
                    while bench.begin(each) is not None:
                        self._finish(bench, each)
            bench.turn()
        elif what == "stop":
            self._stop(worker, grace=0.0 if how % 2 else 10.0)
        else:
            raise ValueError(what)

    def _finish(self, bench: Bench, slot: int) -> None:
        job = bench.io.slots[slot].current
        if job is not None and job.header is not None and job.header.task == "poison":
            run = job.header.attempt, job.delivery.deliveries
            self.runs.setdefault(job.delivery.id, []).append(run)
            raise Killed("by its task")
        bench.finish(slot)

    def _send(self, kind: str) -> None:
        key = f"{kind}-{len(self.accepted) + len(self.refused)}"
        if kind == "garbage":
            header = Header(v=1, id=key, task="good", queue="default", sent=self.clock.time())
            self.app.transport.send([Message(header, b"\xff no frame")])
            self.accepted[key] = kind
            return
        options: dict[str, Any] = {"task_id": key}
        if kind == "later":
            options["countdown"] = 8.0
        if kind == "brief":
            options["expires"] = 8.0
        self.app.tasks[kind].options(**options).delay()
        self.accepted[key] = kind

    def _let_pass(self, seconds: float) -> None:
        self.clock.advance(seconds)
        now = self.clock.time()
        for leases in self.held_until:
            for key, until in list(leases.items()):
                if until <= now:
                    self.excuses[key] += 1
                    del leases[key]

    def _die(self, worker: int, *, supervised: bool) -> None:
        bench = self.benches[worker]
        for key in bench.held | set(self.held_until[worker]):
            self.excuses[key] += 1
        if supervised:
            bench.die()
        self._replace(worker)

    def _stop(self, worker: int, grace: float) -> None:
        """P9: it ends within its grace, or when the broker answers, and gives all back."""
        bench = self.benches[worker]
        self.excuses.update(
            slot.current.delivery.id for slot in bench.io.slots if slot.current is not None
        )
        bench.io.stop(grace)
        began = self.clock.time()
        while bench.turn():
            self._let_pass(0.5)
            assert self.clock.time() - began < grace + 3 * LEASE, "it does not stop"
        self._replace(worker)

    def _replace(self, worker: int) -> None:
        old = self.benches[worker]
        old.transport.inner.close()
        old.backend.inner.close()
        self.benches[worker] = self._bench(worker)

    def _come_to_rest(self) -> None:
        self.mended = True
        for _ in range(400):
            for worker in (0, 1):
                self.do(Action("work", worker))
            self.check_places()
            if not self.app.transport.peek("default", 1000) and not any(
                bench.held for bench in self.benches
            ):
                return
            self._let_pass(1.0)
        raise AssertionError(f"never ends: {self.app.transport.peek('default', 1000)}")

    # ---- what must hold

    def check_places(self) -> None:
        """P1, P2, P3, P5, at every moment: each message is in one place, and an end is an end."""
        transport, backend = self.app.transport, self.app.require_backend()
        stored = [each.id for each in transport.peek("default", 1000)]
        dead = [letter.id for letter in transport.dead_letters()]
        outcomes = backend.fetch(self.accepted)
        assert len(set(stored)) == len(stored), "one message, two places"
        assert not set(stored) & set(dead), "both in line and dead"
        for key, kind in self.accepted.items():
            if key in stored:
                continue
            if kind == "garbage":
                assert key in dead, f"{key} is lost"
                continue
            outcome = outcomes.get(key)
            assert outcome is not None, f"{key} is gone, and left no result"
            assert outcome.state in FINAL_STATES, f"{key} is gone, and only {outcome.state}"
            assert (outcome.state == FAILURE) == (key in dead), f"{key}: {outcome.state}"
            assert self.ended.setdefault(key, outcome) == outcome, "an end is an end"

    def check_ends(self) -> None:
        """P2, P4, P5, P7, when all is at rest."""
        outcomes = self.app.require_backend().fetch(self.accepted)
        for key, kind in self.accepted.items():
            if kind == "garbage":
                letter = self.app.transport.dead_letter(key)
                assert letter is not None
                assert letter.frame == b"\xff no frame", "its bytes are kept"
                assert key not in self.runs
                continue
            outcome, runs = outcomes[key], self.runs.get(key, [])
            # P7: who was taken from so many workers is held to be what kills them.
            condemned = outcome.state == FAILURE and self.excuses[key] >= MAX_DELIVERIES
            assert outcome.state in ENDS[kind] or condemned, f"{key} ended in {outcome.state}"
            self._check_runs(key, kind, runs)
            if outcome.state == SUCCESS:
                header, body = self.app.codec.open_outcome(outcome.frame)
                value = self.app.codec.loads(header, body)
                assert value == outcome.deliveries, "the result of another run"
                assert value == max(delivery for _, delivery in runs), "not the newest run's"
        assert set(self.runs) <= set(self.accepted), "nobody sent that"

    def _check_runs(self, key: str, kind: str, runs: list[tuple[int, int]]) -> None:
        deliveries = [delivery for _, delivery in runs]
        assert len(set(deliveries)) == len(deliveries), f"{key}: one delivery ran twice"
        if kind == "poison":
            assert len(runs) <= MAX_DELIVERIES, f"{key} killed {len(runs)} workers"
            return
        attempts = {attempt for attempt, _ in runs}
        assert attempts == set(range(1, len(attempts) + 1)), f"{key}: attempts {attempts}"
        repeated = len(runs) - len(attempts)
        assert repeated <= self.excuses[key], f"{key} ran {runs}: nothing explains that"

    def close(self) -> None:
        """Forget this world."""
        self.app.close()
        for bench in self.benches:
            bench.transport.inner.close()
            bench.backend.inner.close()
        for name in self.names:
            memory_transports.forget(name)
            memory_backends.forget(name)
