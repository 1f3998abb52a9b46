"""What no process of a worker may do: hang, grow, or run a task beyond its time.

Used by the supervisor.
"""

from __future__ import annotations

import logging
import math

from taskline.worker import lifetime
from taskline.worker.ledger import Condemned
from taskline.worker.options import WorkerOptions
from taskline.worker.orders import STOP_NOW
from taskline.worker.parent.child import Child

log = logging.getLogger("taskline.supervisor")

STOP_MARGIN = 5.0
"""Seconds beyond its grace after which a process that has not stopped is killed."""


def enforce(child: Child, now: float, options: WorkerOptions, condemned: Condemned) -> None:
    """Kill a process that hangs, does not stop, uses too much memory or ignores a time limit.

    What it ran beyond its time is noted among the `condemned`.
    """
    if child.is_hung(now, options.hung_after):
        log.critical(
            "process %d gives no sign: its I/O thread has hung for %.0f s: killed",
            child.pid,
            child.silent,
        )
        child.kill()
        return
    if now >= child.kill_at:
        log.warning("process %d has not stopped in time: killed", child.pid)
        child.kill()
        return
    if now >= child.stop_at:
        child.stop_at, child.kill_at = math.inf, now + STOP_MARGIN
        child.tell(STOP_NOW)
    limit = options.memory_limit
    if limit is not None and (size := lifetime.resident(child.pid)) > limit:
        log.error(
            "process %d uses %s, more than its memory_limit of %s: killed",
            child.pid,
            lifetime.mebibytes(size),
            lifetime.mebibytes(limit),
        )
        child.kill()
        return
    for kill_at, running in child.limits():
        if now > kill_at:
            log.error(
                "task %s is over its time limit and process %d does not react: killed",
                running.id,
                child.pid,
            )
            condemned.add(running.id)
            child.kill()
            return
