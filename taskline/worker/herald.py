"""Tells the middleware of what ended outside of a slot: refused, lost or given-up messages."""

from __future__ import annotations

import threading
from queue import SimpleQueue

from taskline.worker.execute import Job
from taskline.worker.verdicts import Verdicts

CLOSE_WITHIN = 5.0
"""Seconds that the middleware has for what is still to be told when the process ends."""


class Herald:
    """A thread, started when there is first something to tell, so that the I/O thread never waits.

    `tell` and `close` are the I/O thread's.
    """

    def __init__(self, verdicts: Verdicts) -> None:
        self._verdicts = verdicts
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def tell(self, job: Job) -> None:
        """Have the middleware told, soon."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="taskline-hooks", daemon=True)
            self._thread.start()
        self._jobs.put(job)

    def close(self) -> None:
        """Wait, within bounds, until all is told."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join(CLOSE_WITHIN)
            self._thread = None

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._verdicts.tell(job)
