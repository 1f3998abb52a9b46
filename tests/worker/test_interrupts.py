"""A time limit interrupts the task's code, never the worker's own."""

from __future__ import annotations

import io
import logging
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from taskline import Taskline
from taskline.clock import SYSTEM_CLOCK
from taskline.errors import TaskTimeout
from taskline.worker import slots
from taskline.worker.exchange import Exchange
from taskline.worker.execute import Job, Runner
from taskline.worker.slots import ThreadSlot
from taskline.worker.verdicts import ACK, BURY, Verdicts


class Slot:
    """One slot with one job, in a thread of its own or in this one."""

    def __init__(self, app: Taskline, function: Callable[[], Any]) -> None:
        app.task(name="it")(function)
        app.tasks["it"].delay()
        [delivery] = app.transport.receive(["default"], 1, 30.0, 0.0, "me")
        self.job = Job(delivery, *app.codec.open(delivery.frame), app.tasks["it"])
        self.runner = Runner(app, "me", keep_results=True)
        self.exchange = Exchange(SYSTEM_CLOCK)
        self.slot = ThreadSlot(0, self.exchange, self.runner, None, SYSTEM_CLOCK)
        self.exchange.ready.put(self.job)
        self.exchange.ready.put(None)

    def run(self, in_main: bool) -> None:
        if in_main:
            self.slot.loop()
            return
        thread = threading.Thread(target=self.slot.loop, name="slot", daemon=True)
        thread.start()
        thread.join(timeout=30)
        assert not thread.is_alive(), "the slot hangs"

    def interrupt(self) -> None:
        """As the I/O thread does, from another thread."""
        self.job.interrupted = error = TaskTimeout("too long")
        other = threading.Thread(
            target=self.slot.interrupt, args=(self.job, error), name="other", daemon=True
        )
        other.start()
        other.join(timeout=30)


both = pytest.mark.parametrize("in_main", [True, False], ids=["main thread", "other thread"])


def spin(seconds: float = 0.02) -> None:
    """Give an interrupt every chance to be raised here."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


@both
def test_the_tasks_code_is_interrupted(memory_app: Taskline, in_main: bool) -> None:
    def function() -> None:
        here.interrupt()
        spin(30)

    here = Slot(memory_app, function)
    here.run(in_main)
    assert here.job.verdict == BURY
    assert here.job.letter is not None
    assert "too long" in here.job.letter.reason


@both
@pytest.mark.parametrize("fails", [False, True])
def test_what_is_done_after_the_tasks_code_is_not(
    memory_app: Taskline, monkeypatch: pytest.MonkeyPatch, in_main: bool, fails: bool
) -> None:
    def function() -> None:
        if fails:
            raise ValueError("my own")

    here = Slot(memory_app, function)
    name = "failed" if fails else "succeeded"
    really = getattr(Verdicts, name)

    def slowly(verdicts: Verdicts, job: Job, *args: Any) -> None:
        here.interrupt()
        spin()
        really(verdicts, job, *args)

    monkeypatch.setattr(Verdicts, name, slowly)
    here.run(in_main)
    assert here.job.verdict == (BURY if fails else ACK)
    assert list(here.exchange.done) == [here.job]
    if fails:
        assert here.job.letter is not None
        assert "my own" in here.job.letter.reason


@both
def test_an_interrupt_that_comes_before_the_tasks_code_is_raised_in_it(
    memory_app: Taskline, in_main: bool
) -> None:
    def function() -> None:
        raise AssertionError("must not run")

    here = Slot(memory_app, function)
    here.job.interrupted = TaskTimeout("too long")
    here.run(in_main)
    assert here.job.letter is not None
    assert "too long" in here.job.letter.reason


def test_no_lock_of_the_logging_is_left_locked(
    memory_app: Taskline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupt between a lock's `acquire` and the `try` after it would never be undone."""

    def function() -> None:
        raise ValueError("my own")

    here = Slot(memory_app, function)
    handler = logging.StreamHandler(io.StringIO())
    acquire = handler.acquire

    def interrupted() -> None:
        acquire()
        here.interrupt()
        spin()

    monkeypatch.setattr(handler, "acquire", interrupted)
    log = logging.getLogger("taskline.worker")
    log.addHandler(handler)
    try:
        here.run(in_main=False)
    finally:
        log.removeHandler(handler)
    assert handler.lock is not None
    assert handler.lock.acquire(blocking=False), "all that logs would wait for ever"
    handler.lock.release()
    assert here.job.verdict == BURY


def test_an_interrupt_that_was_swallowed_leaves_python_as_it_was(memory_app: Taskline) -> None:
    """Python before 3.13 would check for it for ever: a profiled process would hang."""

    def function() -> None:
        try:
            here.interrupt()
            spin()
        except TaskTimeout:
            pass

    here = Slot(memory_app, function)
    here.run(in_main=False)
    assert here.job.verdict == ACK
    profiled = threading.Event()

    def profile() -> None:
        sys.setprofile(lambda *event: None)
        spin(0.001)
        sys.setprofile(None)
        profiled.set()

    threading.Thread(target=profile, name="profiled", daemon=True).start()
    assert profiled.wait(30)


@pytest.mark.parametrize("next_has_begun", [False, True])
def test_an_interrupt_that_is_sent_as_the_tasks_code_ends_hits_nobody(
    memory_app: Taskline, monkeypatch: pytest.MonkeyPatch, next_has_begun: bool
) -> None:
    class EndsMeanwhile(ThreadSlot):
        """The task's code ends after `interrupt` has looked and before it has noted anything."""

        def __setattr__(self, name: str, value: Any) -> None:
            if name == "_pending" and isinstance(value, BaseException):
                self.close()
                if next_has_begun:
                    self.current, self.is_open = following, True
            super().__setattr__(name, value)

    sent: list[type[BaseException]] = []
    monkeypatch.setattr(slots, "_raise_in", lambda thread, error: sent.append(error))
    here = Slot(memory_app, lambda: None)
    following = Job(here.job.delivery, here.job.header, here.job.body, here.job.task)
    slot = EndsMeanwhile(0, here.exchange, here.runner, None, SYSTEM_CLOCK)
    slot._thread = threading.get_ident()
    slot.current, slot.is_open = here.job, True
    slot.interrupt(here.job, TaskTimeout("too long"))
    assert not sent
    slot.close()
    assert slot._pending is None
    slot.current, slot.is_open = here.job, True
    monkeypatch.setattr(EndsMeanwhile, "__setattr__", object.__setattr__)
    slot.interrupt(here.job, TaskTimeout("too long"))
    assert sent == [TaskTimeout], "else it would be"
