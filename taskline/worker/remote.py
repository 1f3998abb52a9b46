"""What a worker process learns from afar, and what it says there of itself.

It reads one key about once a second: the state, which all workers of its app heed, with
the orders to some of them. Each few seconds it writes one, its record, which ends by
itself when the process does. Owned by the I/O thread.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable

from taskline.app import Taskline
from taskline.backends.base import Backend
from taskline.backends.keys import KeyStore
from taskline.control import presence
from taskline.control.records import Answer, Order
from taskline.control.state import State, States
from taskline.errors import SerializationError, TransportError
from taskline.worker.options import MOST_PROCESSES, WorkerOptions
from taskline.worker.report import Reporter
from taskline.worker.requests import Request, ask

log = logging.getLogger("taskline.worker")

LOOK_EVERY = 0.9
"""Seconds between two looks at the state, at least; an idle process turns once a second."""
JOIN_EVERY = 6
"""Beats between two looks whether the index still has this process."""


class Remote:
    """Talks with the key store of the process's backend.

    `stop` is called with whether it shall be at once, for a process without a supervisor;
    `requests` is the pipe to the supervisor of one that has it.
    """

    def __init__(
        self,
        app: Taskline,
        options: WorkerOptions | None = None,
        stop: Callable[[bool], None] = lambda now: None,
        requests: int | None = None,
    ) -> None:
        self._app = app
        self.options = options or WorkerOptions()
        self._states = States(app)
        self._presence = presence.Presence(app)
        self._stop = stop
        self._requests = requests
        self._keys: KeyStore
        self._raw: bytes | None = None
        self._seen: dict[str, None] = {}
        self.reporter: Reporter | None = None
        """Tells of the process, and answers for it, from when it is set."""
        self._next_look = 0.0
        self._next_beat = 0.0
        self._beats = 0
        self._join_at = 0
        """At which beat to see that the index has this process."""
        self.state = State()

    def open(self, backend: Backend) -> None:
        """Learn the state before the first message; raises `TransportError` when that fails."""
        self._keys = backend.keys()
        self._read()

    def look(self, now: float, stopping: bool) -> State:
        """The state, learnt anew when it is time; raises as `open`.

        Obeys orders, and writes the record when that is due. `now` is the monotonic clock's.
        """
        if now >= self._next_look:
            self._next_look = now + LOOK_EVERY
            self._read()
            if self.reporter is not None:
                if self.state.orders:
                    self._obey(self.reporter)
                if now >= self._next_beat:
                    if now > self._next_beat + presence.RECORD_TTL / 2:
                        self._join_at = 0  # the record had ended, and who saw that dropped its name
                    self._next_beat = now + presence.RECORD_TTL * random.uniform(0.3, 0.33)
                    self._beat(self.reporter, stopping)
        return self.state

    def close(self) -> None:
        """Let nobody believe that the process is still there."""
        if self._beats and self.reporter is not None:
            try:
                self._presence.leave(self._keys, self.reporter.id)
            except TransportError as error:
                log.debug("the record of this process ends by itself: %s", error)

    def _read(self) -> None:
        raw = self._keys.get(self._states.key)
        if raw == self._raw:
            return
        self._raw = raw
        try:
            state = State() if raw is None else self._states.read(raw)
        except SerializationError as error:
            log.error("what was told to the workers is not heeded: %s", error)
            return
        if raw is not None and state.version < self.state.version:
            log.error("what was told to the workers is older than what was told before: not heeded")
            return
        self.state = state

    def _beat(self, reporter: Reporter, stopping: bool) -> None:
        info = reporter.info(stopping)
        if not self._beats and self.options.replaces:
            self._presence.leave(self._keys, self.options.replaces)
        self._presence.beat(self._keys, info)
        if self._beats >= self._join_at and self._presence.join(self._keys, info):
            self._join_at = self._beats + JOIN_EVERY
        self._beats += 1

    def _obey(self, reporter: Reporter) -> None:
        """Do what is new among the orders to this worker, and say so."""
        for order in self.state.orders:
            if reporter.instance in order.workers and order.id not in self._seen:
                answer = reporter.answer(order) if order.what == "tell" else self._pass_on(order)
                self._presence.answer(self._keys, order.id, reporter.id, answer)
                self._seen[order.id] = None
        if len(self._seen) > 1000:
            self._seen = dict.fromkeys(order.id for order in self.state.orders)

    def _pass_on(self, order: Order) -> Answer:
        assert order.what != "tell"
        options = self.options
        if order.what == "scale" and options.max_processes is not None:
            return Answer(
                error=f"it has {options.processes}..{options.max_processes} processes, as needed"
            )
        if order.what == "scale" and order.count > MOST_PROCESSES:
            return Answer(error=f"one worker has at most {MOST_PROCESSES} processes")
        if self._requests is not None:
            request = Request(
                id=order.id, what=order.what, now=order.now, grace=order.grace, count=order.count
            )
            if ask(self._requests, request):
                return Answer()
            return Answer(error="its supervisor does not listen")
        if order.what == "shutdown":
            self._stop(order.now)
            return Answer()
        return Answer(error=f"it has no supervisor that could {order.what} it")
