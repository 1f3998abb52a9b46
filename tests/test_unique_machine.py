"""Random histories of unique calls: senders and workers that die, or are overtaken, at any step.

Whoever was told of a task, as of its own or as of the first of the same key, must see it end;
no two of a key may wait where only one may; and of those of which the newest is to run, what
was called last is what runs last.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections import Counter
from typing import Any

import pytest
from claiming import new_app, sender
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from taskline.clock import ManualClock
from taskline.context import current_task
from taskline.message import FINAL_STATES, REVOKED, SUCCESS, new_id
from taskline.result import AsyncResult
from taskline.testing.stepping import Fate, Hand, Killed

WAIT, LONGEST, WINDOW = 5.0, 12.0, 20.0
MODES: dict[str, dict[str, Any]] = {
    "start": {"unique": "until_start"},
    "end": {"unique": "until_end"},
    "drop": {"unique": "until_end", "on_duplicate": "drop"},
    "time": {"unique": WINDOW},
    "replace": {"unique": "until_start", "on_duplicate": "replace"},
    "debounce": {"debounce": WAIT, "max_wait": LONGEST},
}
NEWEST = ("replace", "debounce")
KEYS = st.sampled_from("aaab")
NUMBERS = st.sampled_from([0, 0, 1, 2, 3, 4, 5])
"""At which of its calls somebody dies; 0 for never."""
MOMENTS = st.sampled_from(["before", "after"])


class Machine(RuleBasedStateMachine):
    broker = "memory"

    @initialize(mode=st.sampled_from(sorted(MODES)))
    def begin(self, mode: str) -> None:
        logging.getLogger("taskline").setLevel(logging.CRITICAL)
        self.directory = tempfile.TemporaryDirectory()
        path = f"sqlite:///{self.directory.name}/shop.db"
        self.app = new_app(path if self.broker == "sqlite" else f"memory://{new_id()}")
        self.clock = self.app.clock
        self.mode = mode
        self.runs: list[tuple[str, int, str, float]] = []
        """Key, number of the call, id and time of each run."""
        self.calls = 0
        self.sent: dict[str, tuple[str, int, float]] = {}
        """By id what was sent, and by whom who lived: key, number, time."""
        self.times: dict[str, list[float]] = {"a": [], "b": []}
        """When calls were begun, by key."""
        self.promised: dict[str, AsyncResult[Any]] = {}
        self.kills = 0

        @self.app.task(name="work", unique_by="key", **MODES[mode])
        def work(key: str, number: int) -> None:
            self.runs.append((key, number, current_task.id, self.clock.time()))

        self.task = work
        self.hand = Hand(self.app)

    @rule(key=KEYS)
    def send(self, key: str) -> None:
        now, live = self.clock.time(), self._live(key)
        self._told(key, self._call(key), live, now)

    @rule(key=KEYS, number=NUMBERS, moment=MOMENTS)
    def send_and_die(self, key: str, number: int, moment: str) -> None:
        now, live = self.clock.time(), self._live(key)
        try:
            with sender(self.app, number, moment):
                result = self._call(key)
        except Killed:
            return
        self._told(key, result, live, now)

    @rule(key=KEYS, number=NUMBERS, moment=MOMENTS, dies=NUMBERS, others=st.booleans())
    def send_meanwhile(self, key: str, number: int, moment: str, dies: int, others: bool) -> None:
        """Between two calls of the sender a worker works, or another calls."""
        now, number = self.clock.time(), max(number, 1)
        connections = self.app._connections

        def meanwhile() -> None:
            wrapped = connections.current, connections._backend
            connections.current, connections._backend = own
            if others:
                self._promise(key, self._call(key, self.calls), now)
            else:
                self.work(dies, moment)
            connections.current, connections._backend = wrapped

        own = connections.transport(), connections.backend()
        with sender(self.app, number, moment, meanwhile):
            result = self._call(key)
        self._promise(key, result, now)

    def _call(self, key: str, number: int | None = None) -> AsyncResult[Any]:
        """Calls at the same moment have the same number."""
        if number is None:
            self.calls += 1
            number = self.calls
        self.times[key].append(self.clock.time())
        result: AsyncResult[Any] = self.task.delay(key, number)
        return result

    def _told(self, key: str, result: AsyncResult[Any], live: str | None, now: float) -> None:
        """What a sender is told that nobody has disturbed."""
        first = self._promise(key, result, now)
        if self.mode in NEWEST:
            assert not result.duplicate
        elif not result.duplicate:
            assert not live, f"{live} waits, and another was sent"
        else:
            assert not live or first.id == live
            if self.mode == "start":
                assert first.id not in [run[2] for run in self.runs]
            if self.mode != "time":
                assert first.state not in FINAL_STATES, "what has ended keeps nobody out"

    def _promise(self, key: str, result: AsyncResult[Any], now: float) -> AsyncResult[Any]:
        """Note what was promised: that this task, or the first of its key, comes to its end."""
        if result.duplicate and self.mode == "drop":
            assert result.state == REVOKED
            told = re.search(r"duplicate of (\w+)", str(result.get(propagate=False)))
            assert told is not None
            result = self.app.AsyncResult(told[1])
        elif not result.duplicate:
            self.sent[result.id] = (key, self.calls, now)
        self.promised[result.id] = result
        return result

    def _live(self, key: str) -> str | None:
        """The id that must keep a further call of this key out, if one must."""
        begun = {run[2] for run in self.runs}
        for one, (its, _, at) in self.sent.items():
            if its != key or self.mode in NEWEST:
                continue
            if self.mode == "time":
                if self.clock.time() < at + WINDOW:
                    return one
            elif not (self.mode == "start" and one in begun) and not self._ended(one):
                return one
        return None

    def _ended(self, one: str) -> bool:
        return self.app.AsyncResult(one).state in FINAL_STATES

    @rule(number=NUMBERS, moment=MOMENTS)
    def work(self, number: int, moment: str) -> None:
        self.hand.close()
        self.hand = Hand(self.app, new_id(), fate=Fate(number, moment))
        try:
            self.hand.work()
        except Killed:
            self.kills += 1
            self.hand.bury()
            self.hand = Hand(self.app)

    @rule(seconds=st.sampled_from([0.5, 4.0, 5.0, 20.0, 61.0]))
    def wait(self, seconds: float) -> None:
        assert isinstance(self.clock, ManualClock)
        self.clock.advance(seconds)

    @rule(back=st.integers(1, 3))
    def revoke(self, back: int) -> None:
        """One of the last that were sent."""
        if self.mode in ("start", "end") and len(self.sent) >= back:
            self.app.AsyncResult(list(self.sent)[-back]).revoke()

    def teardown(self) -> None:
        if not hasattr(self, "hand"):
            return
        self.hand.close()
        self.hand = Hand(self.app)
        for _ in range(3):
            self.hand.work()
            self.wait(31.0)
        self.hand.work()
        self.hand.close()
        states = {one: self.app.AsyncResult(one).state for one in self.promised}
        assert all(state in FINAL_STATES for state in states.values()), states
        times = Counter(run[2] for run in self.runs)
        assert all(count <= 1 + self.kills for count in times.values())
        for key in "ab" if self.mode in NEWEST else "":
            last = max((call[1] for call in self.sent.values() if call[0] == key), default=0)
            ran = [run[1] for run in self.runs if run[0] == key]
            assert not last or max(ran, default=0) >= last, "the last call is lost"
        for one, (key, _, at) in self.sent.items():
            ran = [run[3] for run in self.runs if run[2] == one]
            assert ran or states[one] == REVOKED
            if self.mode in ("time", "drop"):
                assert states[one] == SUCCESS
            if self.mode == "debounce":
                before = [began for began in self.times[key] if began <= at]
                for moment in ran:
                    assert moment >= at + WAIT or any(moment >= each + LONGEST for each in before)
        self.app.close()
        self.directory.cleanup()


class OnSQLite(Machine):
    broker = "sqlite"


@pytest.mark.parametrize(
    ("machine", "examples"), [(Machine, 200), (OnSQLite, 15)], ids=["memory", "sqlite"]
)
def test_histories(machine: Any, examples: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
