"""A system that is full for a while: no process can be made, no descriptor had."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from taskline import Middleware, Taskline
from taskline.errors import ConfigurationError
from taskline.worker import Supervisor, WorkerOptions
from taskline.worker.parent import supervisor
from taskline.worker.parent.child import Child
from taskline.worker.parent.starters import Starter


class Full(Starter):
    """Makes no process at first."""

    def __init__(self, failures: int) -> None:
        self.failures = failures

    def start(self, child: Child, options: WorkerOptions, control: int) -> int:
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return 4711


@pytest.fixture
def group(make_memory_app: Any) -> Supervisor:
    return Supervisor(make_memory_app())


def test_a_process_that_cannot_be_made_is_tried_again(
    group: Supervisor, caplog: pytest.LogCaptureFixture
) -> None:
    group._starter = Full(failures=1)
    (child,) = group._more([0])
    group._start(child, 100.0)
    assert (child.pid, child.control) == (0, -1)
    assert group._start_of(child) == 100.0 + supervisor.START_AGAIN_AFTER
    assert "cannot start a process: Resource temporarily unavailable; trying" in caplog.text
    group._start(child, 101.0)
    assert child.pid == 4711
    child.ended()


def test_middleware_that_fails_at_the_start_keeps_the_worker_from_it(
    group: Supervisor, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Middleware):
        def worker_start(self, app: Taskline) -> None:
            raise OSError("no metrics")

    group.app.use(Broken())
    assert group.run() == supervisor.FAILED
    assert "worker_start of the app's middleware failed" in caplog.text
    assert "no metrics" in caplog.text


def test_descriptors_that_have_run_out_end_nobody(
    group: Supervisor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(number: int, slots: int) -> Child:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    group._children = group._more(range(group.wanted))
    monkeypatch.setattr(supervisor, "Child", full)
    group.scale(3)
    assert (group.wanted, len(group._children)) == (1, 1)
    assert "this system does not let it have 3 processes: Too many open files" in caplog.text
    with pytest.raises(ConfigurationError, match="does not let it have 1 processes"):
        group._more([0])
