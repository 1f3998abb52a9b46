"""Waiting for messages: a change stream rings a bell, where the deployment has one.

A thread watches while a receiver waits, and for a moment after; a worker that has enough
to do has no stream open. Without change streams the bell never rings, and the receiver
looks by itself, seldom where little happens.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any

from pymongo.errors import PyMongoError

from taskline.clock import Clock
from taskline.mongo.client import Server
from taskline.mongo.failures import is_passing
from taskline.transports.mongodb.records import DELAYED, READY

log = logging.getLogger("taskline.mongo")

POLL_FIRST, POLL_MOST = 0.01, 0.5
"""Seconds between looks where nothing rings: at first, and when nothing was found for long."""
LINGER = 2.0
"""Seconds for which a stream stays open though nobody waits."""
ANSWER_WITHIN = 1.0
"""Seconds after which the server answers that there is nothing new."""
PAUSE = 0.5


class Watcher:
    """Rings `bell` when a message of one deployment may be ready. Any thread may use it.

    Its own thread is the only one that has the stream; it ends soon after `close`.
    """

    def __init__(self, server: Server, clock: Clock, bell: threading.Event) -> None:
        self._server = server
        self._clock = clock
        self._bell = bell
        self._lock = threading.Condition()
        self._queues: frozenset[str] = frozenset()
        self._wanted_until = 0.0
        self._open = False
        self._closed = False
        self._thread: threading.Thread | None = None
        self.deaf = False
        """Whether the deployment has no change streams for us: the receiver has to poll."""

    def listen(self, queues: Sequence[str]) -> bool:
        """Say that somebody waits; whether the bell rings for whatever comes from now on."""
        if self.deaf:
            return False
        with self._lock:
            known = frozenset(queues) <= self._queues
            self._wanted_until = self._clock.monotonic() + LINGER
            if not known:
                self._queues |= frozenset(queues)
                self._open = False
            if self._open:
                return True
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(
                    target=self._run, name="taskline-mongo-watch", daemon=True
                )
                self._thread.start()
            self._lock.notify_all()
            return False

    def close(self) -> None:
        """Let the thread end."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()

    def _wanted(self) -> bool:
        return not self._closed and self._clock.monotonic() < self._wanted_until

    def _run(self) -> None:
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._closed or self._wanted())
                queues, closed = self._queues, self._closed
            if closed:
                return
            try:
                self._watch(queues)
            except PyMongoError as error:
                if self._closed:
                    return
                if not is_passing(error):
                    self._give_up(error)
                    return
                with self._lock:
                    self._open = False
                    self._lock.wait(PAUSE)

    def _watch(self, queues: frozenset[str]) -> None:
        with self._server.collection("messages").watch(
            _events(queues), max_await_time_ms=round(ANSWER_WITHIN * 1000)
        ) as stream:
            with self._lock:
                self._open = queues == self._queues
            # What came before the stream was open rings no bell.
            self._bell.set()
            while self._wanted() and queues == self._queues:
                if stream.try_next() is not None:
                    self._bell.set()
            with self._lock:
                self._open = False

    def _give_up(self, error: PyMongoError) -> None:
        self.deaf = True
        reason = str(self._server.translate(error))
        log.warning(
            "%s; so there is no change stream: waiting workers look up to every %g s",
            reason,
            POLL_MOST,
        )


def _events(queues: frozenset[str]) -> list[dict[str, Any]]:
    """Messages that came, became ready, or came to wait for their time."""
    states = {"$in": [READY, DELAYED]}
    stored = {"fullDocument.s": states, "fullDocument.q": {"$in": sorted(queues)}}
    changed = {"updateDescription.updatedFields.s": states}
    return [{"$match": {"$or": [stored, changed]}}, {"$project": {"_id": 1}}]
