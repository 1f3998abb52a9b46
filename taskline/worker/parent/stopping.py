"""When and how a worker stops: at signals, told from afar, or since it cannot go on.

Owned by the supervisor.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Iterator
from types import FrameType

from taskline.worker.orders import STOP, STOP_NOW, ending
from taskline.worker.parent.enforce import STOP_MARGIN

log = logging.getLogger("taskline.supervisor")


class Stopping:
    """Told once, the worker gives what runs `grace` seconds; told again, it stops at once."""

    def __init__(self, grace: float) -> None:
        self._grace = grace
        self._told = 0
        self._obeyed = 0
        self.kill_at = 0.0
        """When processes are killed that have not stopped then."""

    @property
    def told(self) -> bool:
        """Whether the worker is to stop."""
        return self._told > 0

    @property
    def began(self) -> bool:
        """Whether the processes were told, too."""
        return self._obeyed > 0

    def tell(self, *, at_once: bool = False) -> None:
        """Have the worker stop."""
        self._told = max(self._told, 2 if at_once else 1)

    def order(self, now: float) -> bytes | None:
        """What the processes are to be told now, if anything."""
        if self._told <= self._obeyed:
            return None
        at_once = self._obeyed > 0 or self._told > 1
        self._obeyed = self._told
        self.kill_at = now + STOP_MARGIN + (0.0 if at_once else self._grace)
        if at_once:
            log.info("stopping now: running tasks are handed back")
        else:
            log.info("stopping: running tasks have %.0f s (again to stop now)", self._grace)
        return STOP_NOW if at_once else STOP

    @contextlib.contextmanager
    def heeding_signals(self) -> Iterator[int]:
        """A descriptor that signals make readable; those that end a program tell this, too."""
        wake, wake_end = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(wake_end, False)
        handlers = {**dict.fromkeys(ending(), self._on_signal), signal.SIGCHLD: _ignore}
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        previous_fd = signal.set_wakeup_fd(wake_end, warn_on_full_buffer=False)
        try:
            yield wake
        finally:
            signal.set_wakeup_fd(previous_fd)
            for number, old in before.items():
                signal.signal(number, old)
            os.close(wake)
            os.close(wake_end)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self._told += 1


def _ignore(signum: int, frame: FrameType | None) -> None:
    """A handler, so that the signal wakes the supervisor's sleep."""
