"""Random histories: schedulers that are killed, paused and cut off, against what must hold."""

from __future__ import annotations

import contextlib
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from workbench import Bench

from taskline import Taskline, current_task
from taskline.backends import memory as memory_backends
from taskline.clock import ManualClock
from taskline.errors import BackendError, TransportError
from taskline.message import new_id
from taskline.schedule import Scheduler
from taskline.schedule.store import ScheduleStore
from taskline.transports import memory as memory_transports

EVERY = 7.0

events = st.one_of(
    st.tuples(st.just("step"), st.integers(0, 2)),
    st.tuples(st.just("die"), st.integers(0, 2), st.sampled_from(["unsent", "sent", "unsaved"])),
    st.tuples(st.just("fail"), st.integers(0, 2), st.sampled_from(["unsent", "sent", "unsaved"])),
    st.tuples(st.just("pass"), st.floats(0.1, 12)),
    st.tuples(st.just("work")),
)


class Killed(BaseException):
    pass


@given(history=st.lists(events, max_size=60))
@settings(max_examples=150, deadline=None)
def test_each_slot_is_sent_once_whatever_happens(history: list[Any]) -> None:
    clock, name = ManualClock(), new_id()
    url = f"memory://{name}"
    app = Taskline("shop", broker=url, backend=url, clock=clock)
    ran: Counter[float] = Counter()

    @app.periodic(every=EVERY, catch_up=1000)
    @app.task
    def beat() -> None:
        assert current_task.scheduled_for is not None
        ran[round(current_task.scheduled_for - start, 3)] += 1

    schedulers, bench, start = [Scheduler(app) for _ in range(3)], Bench(app), clock.time()

    def interrupted(which: int, where: str, error: BaseException) -> None:
        """A step that ends before or after it sends, or before it notes that."""
        with pytest.MonkeyPatch.context() as patch:
            send = app.send

            def stopped(*args: Any) -> None:
                if where == "sent":
                    send(*args)
                raise error

            if where == "unsaved":
                patch.setattr(ScheduleStore, "write_progress", stopped)
            else:
                patch.setattr(app, "send", stopped)
            with contextlib.suppress(Killed, TransportError):
                schedulers[which].step()

    for kind, *args in history:
        if kind == "step":
            schedulers[args[0]].step()
        elif kind == "die":
            interrupted(args[0], args[1], Killed())
            schedulers[args[0]] = Scheduler(app)
        elif kind == "fail":
            interrupted(args[0], args[1], BackendError("the cable is cut"))
        elif kind == "pass":
            clock.advance(args[0])
        else:
            bench.drain()
    while not any(each.leads for each in schedulers):
        clock.advance(1)
        schedulers[0].step()
    for _ in range(40):
        for each in schedulers:
            each.step()
        bench.drain()
        clock.advance(1)
    app.close()
    memory_transports.forget(name)
    memory_backends.forget(name)
    assert set(ran.values()) <= {1}, ran
    slots = sorted(ran)
    gaps = {round(later - earlier, 3) for earlier, later in pairwise(slots)}
    assert gaps <= {EVERY}, slots
    assert slots
