"""The parent of a worker's processes.

It has them made (see `starters`), replaces those that die, has what a dead one held
handed back at once (see `recovery`), ends those whose code is beyond its time limit and
does not listen, and passes on the order to stop. It runs no task and opens no connection
but for handing back: what is told from afar its processes pass on to it. It has one thread.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import secrets
import select
import signal
import socket
from collections.abc import Iterable

import msgspec

from taskline.app import Taskline
from taskline.errors import ConfigurationError
from taskline.loading import import_included
from taskline.worker import autoscale, lifetime
from taskline.worker.gather import batch_places
from taskline.worker.ledger import Condemned
from taskline.worker.options import WorkerOptions
from taskline.worker.orders import RETIRE, STOP
from taskline.worker.parent import starters
from taskline.worker.parent.bulletin import Bulletin
from taskline.worker.parent.child import Child
from taskline.worker.parent.enforce import enforce
from taskline.worker.parent.probes import address
from taskline.worker.parent.recovery import Recovery
from taskline.worker.parent.starters import Forking, Spawning, Starter
from taskline.worker.parent.stopping import Stopping
from taskline.worker.process import DRAINED, MISCONFIGURED, NOT_DRAINED, RECYCLED
from taskline.worker.requests import Request, Requests

log = logging.getLogger("taskline.supervisor")

LOOK_EVERY = 1.0
"""Seconds between two looks at the processes, at most."""
UNFINISHED = 4
"""Exit code where what was to be drained was not, since it is paused."""
FAILED = 1
"""Exit code where the middleware did not let the worker start."""
START_AGAIN_AFTER = 1.0
"""Seconds until the next try where the system let no process be made."""
SCHEDULERS = 2
"""How many of the processes may send schedules: one, and one in its place when it hangs."""


class Supervisor:
    """Runs `options.processes` worker processes until told to stop."""

    def __init__(self, app: Taskline, options: WorkerOptions | None = None) -> None:
        self.app = app
        self.options = options or WorkerOptions()
        self.name = self.options.name or f"{socket.gethostname()}-{os.getpid()}"
        self._clock = app.clock
        self._grace = app.settings.grace if self.options.grace is None else self.options.grace
        places = batch_places(app, self.options.threads)
        self.options = msgspec.structs.replace(self.options, batch_places=places)
        self._slots = self.options.threads + self.options.async_slots + places
        self.wanted = self.options.processes
        """How many processes there shall be."""
        self._instance = secrets.token_hex(4)
        self._requests: Requests
        self._starter: Starter
        self._bulletin = Bulletin(self.name, self.options, self._clock)
        self._recovery = Recovery(app, self.options)
        self._to_replace: list[Child] = []
        self._replace_grace = 0.0
        self._children: list[Child] = []
        self._condemned = Condemned()
        self._stopping = Stopping(self._grace)
        self._start_at = 0.0
        """When processes may be made again."""
        self._exit_code = 0
        lifetime.check(self.options)
        lifetime.check_room(self.options)
        autoscale.check(self.options)
        starters.check(self.options)
        most = self.options.max_processes
        self._autoscale = (
            None if most is None else autoscale.Autoscale(self.options.processes, most)
        )
        if self.options.http is not None:
            address(self.options.http)

    def run(self) -> int:
        """Supervise until SIGTERM or SIGINT, or until drained; returns the exit code.

        0, or 1 where `worker_start` raised, or 2 for a wrong configuration, or 4 where paused
        queues kept it from draining all.
        """
        import_included(self.app)
        self._bulletin.open()
        try:
            self.app.hooks.call("worker_start", self.app)
        except Exception:
            log.critical("worker_start of the app's middleware failed", exc_info=True)
            self._bulletin.close()
            return FAILED
        with self._stopping.heeding_signals() as wake:
            self._requests = Requests()
            self._starter = self._make_starter()
            heard = [wake, self._requests.fileno()]
            try:
                self._children = self._more(range(self.wanted))
                while self._step():
                    heard_now = [*heard, *self._starter.heard()]
                    select.select(heard_now, [], [], self._clock.bound(self._pause()))
                    with contextlib.suppress(BlockingIOError):
                        os.read(wake, 4096)
            finally:
                self._starter.close()
                self._requests.close()
                self._bulletin.close()
        self._bulletin.remove_file()
        self.app.hooks.call("worker_stop", self.app)
        log.info("stopped")
        return self._exit_code

    def _step(self) -> bool:
        """Do all that is due; False when there is nothing left to supervise."""
        now = self._clock.monotonic()
        if self._starter.look(now, self._stopping.began) == MISCONFIGURED and not self._works():
            self._exit_code = MISCONFIGURED
            self._stopping.tell()
        self._reap()
        for request in self._requests.take():
            self._obey_request(request)
        if order := self._stopping.order(now):
            self._tell_all(order)
        self._bulletin.say(now, self._children, self.wanted, self._stopping.began)
        self._recovery.look(now, self._children, stopping=self._stopping.began)
        if self._stopping.began:
            if now >= self._stopping.kill_at:
                for child in self._children:
                    if child.pid:
                        log.warning("process %d has not stopped in time: killed", child.pid)
                        child.kill()
            alive = any(child.pid for child in self._children)
            return alive or (self._recovery.pending and now < self._stopping.kill_at)
        for child in list(self._children):
            if not child.pid and now >= self._start_of(child) and self._starter.can_start:
                self._start(child, now)
            elif child.pid:
                enforce(child, now, self.options, self._condemned)
                if child.ledger.leaving and not child.succeeded:
                    # What it still runs may take hours: others need its place meanwhile.
                    child.succeeded = True
                    self._children.append(Child(child.number, self._slots))
        if self._to_replace:
            self._replace_next(now)
        if self._autoscale is not None and now >= self._autoscale.next_sample:
            self._autoscale.sample(now, sum(len(each.ledger.running()) for each in self._staying))
        return bool(self._children) or self._recovery.pending

    def _pause(self) -> float:
        """Seconds until something is due besides signals."""
        now = self._clock.monotonic()
        pause = LOOK_EVERY
        for child in self._children:
            if not child.pid:
                if self._starter.can_start:
                    pause = min(pause, max(0.0, self._start_of(child) - now))
                continue
            for kill_at, _ in child.limits():
                pause = min(pause, kill_at - now)
        if self._stopping.began:
            pause = min(pause, max(0.01, self._stopping.kill_at - now))
        elif self._autoscale is not None:
            pause = min(pause, self._autoscale.next_sample - now)
        return max(pause, 0.01)

    # ---- starting

    def _more(self, numbers: Iterable[int]) -> list[Child]:
        """Children of these numbers. Raises `ConfigurationError` where the system has no room."""
        try:
            return [Child(number, self._slots) for number in numbers]
        except OSError as error:
            raise ConfigurationError(
                f"this system does not let it have {self.wanted} processes: {error.strerror}"
            ) from None

    def _start_of(self, child: Child) -> float:
        return max(child.start_at, self._start_at)

    def _start(self, child: Child, now: float) -> None:
        try:
            self._make(child)
        except OSError as error:
            if child.control >= 0:
                child.ended()
            self._start_at = now + START_AGAIN_AFTER
            log.error("cannot start a process: %s; trying again each second", error.strerror)

    def _make(self, child: Child) -> None:
        read_end = child.begin(self._clock.monotonic())
        options = msgspec.structs.replace(
            self.options,
            name=self.name,
            instance=self._instance,
            supervisor=os.getpid(),
            number=child.number,
            replaces=child.consumer,
            place=child.place,
            begun=child.owed,
            cpus=lifetime.cpus_of(self.options, child.number),
            schedule=self.options.schedule and child.number < SCHEDULERS,
        )
        child.consumer = f"{self.name}-{child.number}-{secrets.token_hex(4)}"
        child.place = child.place or child.consumer
        try:
            child.pid = self._starter.start(child, options, read_end)
        finally:
            os.close(read_end)
        if child.pid:
            child.died_at = math.inf
            log.info("process %d started", child.pid)
        else:
            child.ended()

    def _leave(self) -> None:
        """Close what is the supervisor's alone, in a process that was forked of it."""
        self._requests.only_write()
        self._bulletin.only_parent()
        for other in self._children:
            # A sibling must see its pipe's end when the supervisor dies.
            if other.control >= 0:
                os.close(other.control)

    def _make_starter(self) -> Starter:
        requests = self._requests.write_end
        if self.options.start_method == "spawn":
            return Spawning(self._condemned, requests)
        if self.options.start_method == "forkserver":
            from taskline.worker.parent.forkserver import Serving

            return Serving(self.options, self._condemned, requests)
        return Forking(self.app, self._condemned, requests, self._leave)

    # ---- watching

    def _reap(self) -> None:
        for child in list(self._children):
            if not child.pid:
                continue
            code = self._starter.ended(child)
            if code is not None:
                self._buried(child, code)

    def _buried(self, child: Child, code: int) -> None:
        """A process has ended: hand back what it held, and see to its replacement."""
        pid = child.pid
        child.ended()
        child.died(self._clock.monotonic())
        crashed = code not in (0, RECYCLED, DRAINED, NOT_DRAINED)
        self._bulletin.count(child, crashed=crashed)
        now = self._clock.monotonic()
        if code == MISCONFIGURED and not child.ledger.ready and not self._works():
            self._exit_code = MISCONFIGURED
            self._stopping.tell()
            if not child.owes:
                child.leave()
            return
        if code in (DRAINED, NOT_DRAINED):
            log.info("process %d ended: its queues are empty", pid)
            if code == NOT_DRAINED:
                self._exit_code = UNFINISHED
            self._children.remove(child)
            return
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        if self._stopping.told or child.succeeded:
            log.info("process %d ended (%s)", pid, how)
        else:
            self._replace(child, now, f"process {pid} ended ({how})", recycled=code == RECYCLED)
        if not child.owes and code in (0, RECYCLED):
            child.leave()
        elif self._stopping.told or child.succeeded or not self._recovery.leaves(child):
            self._recovery.add(*child.leave(), now)
        if child.succeeded:
            self._children.remove(child)

    def _works(self) -> bool:
        return any(child.works for child in self._children)

    def _replace(self, child: Child, now: float, what: str, *, recycled: bool) -> None:
        """Have a successor started of a process that has ended, at once or later."""
        delay = child.backoff(now, recycled=recycled)
        child.start_at = now + delay
        if delay:
            log.error(
                "%s, %d in a row died young: next try in %.1f s", what, child.quick_deaths, delay
            )
        else:
            log.log(logging.INFO if recycled else logging.WARNING, "%s: replaced", what)

    # ---- told from afar

    @property
    def _staying(self) -> list[Child]:
        """The children that are to take messages: not those that end after what they run."""
        return [child for child in self._children if not child.succeeded]

    def scale(self, count: int) -> None:
        """Have so many processes from now on; those that are too many end after their tasks."""
        if count != self.wanted:
            log.info("%d processes from now on, after %d", count, self.wanted)
        self.wanted = count
        staying = sorted(self._staying, key=lambda child: child.number)
        for child in staying[count:]:
            self._retire(child)
        taken = {child.number for child in staying}
        free = (number for number in range(count) if number not in taken)
        try:
            self._children += self._more([*free][: max(0, count - len(staying))])
        except ConfigurationError as error:
            log.error("%s", error)
            self.wanted = len(staying)

    def restart(self, grace: float | None = None) -> None:
        """Replace the processes, one after the other, each when all others are ready.

        What they run has `grace` seconds to end, by default the worker's, and is then
        handed back.
        """
        self._replace_grace = self._grace if grace is None else grace
        self._to_replace = [child for child in self._staying if child.pid]
        self._starter.renew()
        log.info("replacing %d processes, one after the other", len(self._to_replace))

    def _replace_next(self, now: float) -> None:
        if not self._starter.is_fresh:
            return
        staying = self._staying
        if not all(child.works for child in staying):
            return
        child = self._to_replace.pop(0)
        if child in staying:
            self._retire(child, now + self._replace_grace)
            self._children.append(Child(child.number, self._slots))

    def _retire(self, child: Child, stop_at: float = math.inf) -> None:
        """Let a process take no more, and end after what it runs; at `stop_at` it hands that back.

        Nobody has its number then.
        """
        if not child.pid:
            self._recovery.take(child, self._clock.monotonic())
            self._children.remove(child)
            return
        child.succeeded = True
        child.stop_at = stop_at
        child.tell(RETIRE if child.ledger.ready else STOP)

    def _obey_request(self, request: Request) -> None:
        if request.what == "load":
            self._look_at_load(request)
            return
        log.info("told from afar: %s", request.what)
        if request.what == "shutdown":
            self._stopping.tell(at_once=request.now)
        elif self._stopping.told:
            log.info("this worker stops: too late to %s it", request.what)
        elif request.what == "scale":
            self.scale(request.count)
        else:
            self.restart(request.grace)

    def _look_at_load(self, request: Request) -> None:
        if self._autoscale is None or self._stopping.told:
            return
        kinds = {task.is_async for task in self.app.tasks.values()}
        load = autoscale.Load(
            self._clock.monotonic(),
            self.wanted,
            self.options.async_slots if kinds == {True} else self.options.threads,
            self._autoscale.busy(),
            request.ready,
            request.oldest,
        )
        count = self._autoscale.wanted(load)
        if count != self.wanted:
            log.info("%d messages wait, and %.0f slots are busy", load.ready, load.busy)
            self.scale(count)

    def _tell_all(self, order: bytes) -> None:
        for child in self._children:
            if child.pid:
                child.tell(order)
