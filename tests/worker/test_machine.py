"""Random histories of workers that fail, against what must hold of every message at every moment.

Two worker processes are driven step by step, on a clock that stands still, with
cables that fail before or after a call took effect, leases that end, kills with
and without a supervisor, stops and revocations.
"""

from __future__ import annotations

import logging
import tempfile
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from workbench import Bench, Spy

from taskline import Taskline
from taskline.backends import memory as memory_backends
from taskline.clock import ManualClock
from taskline.context import current_task
from taskline.errors import Reject
from taskline.message import EXPIRED, FAILURE, FINAL_STATES, REVOKED, SUCCESS, Outcome, new_id
from taskline.transports import memory as memory_transports

WORKERS = st.sampled_from([0, 1])
SLOTS = st.sampled_from([0, 1])
TRANSPORT_CALLS = ["receive", "ack", "release", "replace", "extend", "bury", "ping"]
BACKEND_CALLS = ["store", "revoked", "ping"]
LEASE = 30.0


class Machine(RuleBasedStateMachine):
    broker = "memory"

    @initialize()
    def begin(self) -> None:
        self.clock = ManualClock()
        self.name = new_id()
        self.directory = tempfile.TemporaryDirectory()
        url = {
            "memory": f"memory://{self.name}",
            "sqlite": f"sqlite:///{self.directory.name}/broker.db",
        }[self.broker]
        self.app = Taskline("test", broker=url, backend=url, clock=self.clock)
        self.runs: dict[str, list[int]] = {}
        self.accepted: dict[str, str] = {}
        self.ended: dict[str, Outcome] = {}
        """The final outcomes of messages that are no more."""
        self.early_lost = False
        """Whether anything happened that may lose what was acknowledged before its run."""
        self._tasks()
        self.benches = [self._bench(), self._bench()]

    def _tasks(self) -> None:
        def run() -> int:
            self.runs.setdefault(current_task.id, []).append(current_task.deliveries)
            return current_task.deliveries

        @self.app.task(name="good")
        def good() -> int:
            return run()

        @self.app.task(name="bad")
        def bad() -> None:
            raise ValueError(run())

        @self.app.task(name="reject", retry=3)
        def reject() -> None:
            raise Reject(str(run()))

        @self.app.task(name="flaky", retry={"max": 2, "wait": 5})
        def flaky() -> int:
            if run() and current_task.attempt < 3:
                raise OSError("down")
            return current_task.deliveries

        @self.app.task(name="early", ack="early")
        def early() -> int:
            return run()

    def _bench(self) -> Bench:
        return Bench(
            self.app,
            slots=2,
            lease=LEASE,
            max_deliveries=4,
            prefetch=4,
            name=f"bench-{new_id()}",
            transport=Spy(self.app.open_transport(), []),
            backend=Spy(self.app.open_backend(), []),
        )

    def _replace(self, at: int) -> None:
        old = self.benches[at]
        old.transport.close()
        old.backend.close()
        self.benches[at] = self._bench()

    # ---- what may happen

    @rule(task=st.sampled_from(["good", "bad", "reject", "flaky", "early"]))
    def send(self, task: str) -> None:
        self._send(task)

    @rule(seconds=st.sampled_from([1.0, 35.0]))
    def send_with_expiry(self, seconds: float) -> None:
        self._send("good", expires=seconds)

    @rule(seconds=st.sampled_from([1.0, 35.0]))
    def send_for_later(self, seconds: float) -> None:
        self._send("good", countdown=seconds)

    def _send(self, task: str, **options: Any) -> None:
        key = f"{task}-{len(self.accepted)}"
        self.app.tasks[task].options(task_id=key, **options).delay()
        self.accepted[key] = task

    @rule(worker=WORKERS)
    def turn(self, worker: int) -> None:
        assert self.benches[worker].turn(), "nobody told it to stop"

    @rule(worker=WORKERS, slot=SLOTS)
    def start_a_run(self, worker: int, slot: int) -> None:
        if self.benches[worker].io.slots[slot].current is None:
            self.benches[worker].begin(slot)

    @rule(worker=WORKERS, slot=SLOTS)
    def end_a_run(self, worker: int, slot: int) -> None:
        self.benches[worker].finish(slot)

    @rule(worker=WORKERS)
    def work_properly(self, worker: int) -> None:
        bench = self.benches[worker]
        for _ in range(3):
            bench.turn()
            for slot in (0, 1):
                bench.finish(slot)
                bench.work(slot)
        bench.turn()

    @rule(seconds=st.sampled_from([0.3, 6.0, 11.0, LEASE + 1]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(
        worker=WORKERS,
        call=st.sampled_from([*TRANSPORT_CALLS, *BACKEND_CALLS]),
        fault=st.sampled_from(["before", "after"]),
    )
    def a_call_will_fail(self, worker: int, call: str, fault: str) -> None:
        bench = self.benches[worker]
        spy = bench.backend if call in BACKEND_CALLS else bench.transport
        spy.faults.setdefault(call, []).append(fault)
        # Where a receipt was taken and nobody can say so, the task is not run.
        self.early_lost |= (call, fault) in (("ack", "after"), ("receive", "after"))

    @rule(worker=WORKERS, down=st.booleans())
    def the_cable_is_cut_or_mended(self, worker: int, down: bool) -> None:
        bench = self.benches[worker]
        bench.transport.down = bench.backend.down = down

    @rule(worker=WORKERS, supervised=st.booleans())
    def a_process_is_killed(self, worker: int, supervised: bool) -> None:
        self.early_lost = True
        if supervised:
            self.benches[worker].die()
        self._replace(worker)

    @rule(worker=WORKERS, grace=st.sampled_from([0.0, 10.0]))
    def a_process_stops(self, worker: int, grace: float) -> None:
        bench = self.benches[worker]
        self.early_lost |= any(
            slot.current is not None and slot.current.early for slot in bench.io.slots
        )
        self.early_lost |= bench.transport.down or bool(bench.transport.faults)
        bench.io.stop(grace)
        for _ in range(200):
            if not bench.turn():
                break
            self.clock.advance(0.5)
        else:
            raise AssertionError("it does not stop")
        self._replace(worker)

    @precondition(lambda self: self.accepted)
    @rule(data=st.data())
    def one_is_revoked(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.accepted)))
        self.app.AsyncResult(key).revoke()

    # ---- what must hold

    @invariant()
    def every_message_is_in_one_place(self) -> None:
        transport, backend = self.app.transport, self.app.require_backend()
        stored = [each.id for each in transport.peek("default", 1000)]
        dead = [letter.id for letter in transport.dead_letters()]
        outcomes = backend.fetch(self.accepted)
        assert len(set(stored)) == len(stored)
        assert not set(stored) & set(dead)
        for key, task in self.accepted.items():
            outcome = outcomes.get(key)
            state = outcome.state if outcome is not None else ""
            if key in stored:
                continue
            if key in dead:
                assert state == FAILURE, "a dead letter's failure is told"
            elif task == "early":
                continue
            else:
                assert state in (SUCCESS, REVOKED, EXPIRED), f"{key} is lost: {state or 'no trace'}"
            assert outcome is not None
            before = self.ended.setdefault(key, outcome)
            assert before == outcome, "an end is an end"

    @invariant()
    def a_result_is_that_of_its_own_run(self) -> None:
        for key, outcome in self.app.require_backend().fetch(self.accepted).items():
            if outcome.state == SUCCESS:
                header, body = self.app.codec.open_outcome(outcome.frame)
                value = self.app.codec.loads(header, body)
                assert value == outcome.deliveries
                assert value in self.runs[key]

    @invariant()
    def early_means_at_most_once(self) -> None:
        for key, task in self.accepted.items():
            if task == "early":
                assert len(self.runs.get(key, [])) <= 1

    def teardown(self) -> None:
        if not hasattr(self, "benches"):
            return
        try:
            self._wind_up()
        finally:
            self.app.close()
            for bench in self.benches:
                bench.transport.close()
                bench.backend.close()
            memory_transports.forget(self.name)
            memory_backends.forget(self.name)
            self.directory.cleanup()

    def _wind_up(self) -> None:
        """With everything mended, every message comes to its end."""
        for bench in self.benches:
            bench.transport.down = bench.backend.down = False
            bench.transport.faults.clear()
            bench.backend.faults.clear()
        for _ in range(400):
            for worker in (0, 1):
                self.work_properly(worker)
            self.every_message_is_in_one_place()
            if not self.app.transport.peek("default") and not any(b.held for b in self.benches):
                break
            self.clock.advance(1.0)
        else:
            raise AssertionError(f"never ends: {self.app.transport.peek('default')}")
        for worker in (0, 1):
            self.work_properly(worker)
        outcomes = self.app.require_backend().fetch(self.accepted)
        for key, task in self.accepted.items():
            final = key in outcomes and outcomes[key].state in FINAL_STATES
            assert final or (task == "early" and self.early_lost), f"{key} has no end"
        self.a_result_is_that_of_its_own_run()


class SQLiteMachine(Machine):
    """Broker and backend in one file, where receipts and results are one step."""

    broker = "sqlite"


@pytest.mark.parametrize(("machine", "examples"), [(Machine, 200), (SQLiteMachine, 40)])
def test_no_message_is_ever_lost(machine: type[Machine], examples: int) -> None:
    logging.getLogger("taskline").setLevel(logging.CRITICAL)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
