"""Many waiters, one wait in the backend: a leader waits for all, the others for the leader.

A backend allows one thread at a time in `wait`. The first thread that waits for
an outcome becomes the leader: it asks the backend for everything that anyone
waits for, hands out what arrives, and passes the lead on when it has its own.
A newcomer interrupts the leader's wait, so that its ids are asked for as well.
Coroutines are served the same way; while there are some, a thread of ours takes
its turn as a waiter, and ends soon after the last of them.
"""

from __future__ import annotations

import threading
from collections.abc import Collection
from typing import TYPE_CHECKING

from taskline.backends.base import Backend
from taskline.errors import TransportError
from taskline.message import FINAL_STATES, Outcome

if TYPE_CHECKING:
    import asyncio

SLICE = 1.0
"""The longest single wait, in seconds: after it, everyone looks again whether somebody leads."""

_FIRST_PAUSE, _MOST_PAUSE = 0.05, 1.0
"""Seconds between tries while the backend cannot be reached."""


class _Waiter:
    """One call that waits for some ids."""

    def __init__(self, ids: Collection[str], enough: int | None = None) -> None:
        self.missing = set(ids)
        self.enough = len(self.missing) if enough is None else enough
        self.found: dict[str, Outcome] = {}
        self.error: Exception | None = None
        self.wake = threading.Event()

    @property
    def done(self) -> bool:
        enough = not self.missing or len(self.found) >= self.enough
        return enough or self.error is not None

    def finished(self) -> None:
        """Tell the waiter that it is done."""
        self.wake.set()


class _Coroutine(_Waiter):
    """A waiter of asyncio."""

    def __init__(self, ids: Collection[str], loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(ids)
        self.loop = loop
        self.future: asyncio.Future[None] = loop.create_future()

    def finished(self) -> None:
        try:
            self.loop.call_soon_threadsafe(self._resolve)
        except RuntimeError:  # its loop was closed: nobody waits any more
            return

    def _resolve(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


class Waiters:
    """Everyone in this process who waits for outcomes of one backend."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._clock = backend.clock
        self._lock = threading.Lock()
        self._threads: dict[_Waiter, None] = {}
        self._coroutines: dict[_Coroutine, None] = {}
        self._wanted: dict[str, list[_Waiter]] = {}
        self._leader: _Waiter | None = None
        self._server: _Waiter | None = None
        self._pause = 0.0
        self._trouble: TransportError | None = None

    def wait(
        self, ids: Collection[str], timeout: float | None, enough: int | None = None
    ) -> dict[str, Outcome]:
        """Block until all these tasks are final, or `enough` of them, or for `timeout` seconds.

        Returns the outcomes that are final by then. A backend that cannot be
        reached is asked again until the timeout, and its error raised then; any
        other error of the backend is raised at once.
        """
        if timeout is not None and timeout <= 0:
            return self._final_now(ids)
        waiter = _Waiter(ids, enough)
        self._join(waiter)
        try:
            self._serve(waiter, self._until(timeout))
        finally:
            self._leave(waiter)
        return self._answer(waiter)

    async def wait_async(self, ids: Collection[str], timeout: float | None) -> dict[str, Outcome]:
        """As `wait`, without blocking the event loop."""
        import asyncio

        if timeout is not None and timeout <= 0:
            return await asyncio.to_thread(self._final_now, ids)
        waiter = _Coroutine(ids, asyncio.get_running_loop())
        self._join(waiter)
        try:
            self._wake_server()
            until = self._until(timeout)
            while not waiter.done:
                left = None if until is None else until - self._clock.monotonic()
                if left is not None and left <= 0:
                    break
                bound = None if left is None else self._clock.bound(left)
                await asyncio.wait((waiter.future,), timeout=bound)
        finally:
            self._leave(waiter)
        return self._answer(waiter)

    def _until(self, timeout: float | None) -> float | None:
        return None if timeout is None else self._clock.monotonic() + timeout

    def _final_now(self, ids: Collection[str]) -> dict[str, Outcome]:
        found = self._backend.fetch(ids)
        return {key: each for key, each in found.items() if each.state in FINAL_STATES}

    def _answer(self, waiter: _Waiter) -> dict[str, Outcome]:
        error = waiter.error or (None if waiter.done else self._trouble)
        if error is not None:
            raise error
        return waiter.found

    def _join(self, waiter: _Waiter) -> None:
        with self._lock:
            if isinstance(waiter, _Coroutine):
                self._coroutines[waiter] = None
            else:
                self._threads[waiter] = None
            for wanted in waiter.missing:
                self._wanted.setdefault(wanted, []).append(waiter)
            leader = self._leader
        if leader is not None:
            leader.wake.set()
            self._backend.interrupt()

    def _leave(self, waiter: _Waiter) -> None:
        with self._lock:
            if isinstance(waiter, _Coroutine):
                del self._coroutines[waiter]
            else:
                del self._threads[waiter]
            for wanted in waiter.missing:
                others = self._wanted.get(wanted)
                if others is not None:
                    others.remove(waiter)
                    if not others:
                        del self._wanted[wanted]

    def _serve(self, waiter: _Waiter, until: float | None) -> None:
        """Wait until `waiter` is done, leading whenever nobody else does."""
        try:
            while not waiter.done:
                left = SLICE if until is None else min(SLICE, until - self._clock.monotonic())
                if left <= 0:
                    return
                if self._leads(waiter):
                    self._lead(waiter, left)
                else:
                    self._sleep(waiter, left)
        finally:
            self._hand_over(waiter)

    def _leads(self, waiter: _Waiter) -> bool:
        with self._lock:
            if self._leader is None:
                self._leader = waiter
            return self._leader is waiter

    def _lead(self, leader: _Waiter, seconds: float) -> None:
        """One wait in the backend, on behalf of everyone."""
        with self._lock:
            ids = list(self._wanted)
        if not ids:
            self._sleep(leader, seconds)
            return
        try:
            found = self._backend.wait(ids, seconds)
        except Exception as error:
            if not (isinstance(error, TransportError) and error.retryable):
                self._fail(error)
                return
            self._trouble = error
            self._pause = min(_MOST_PAUSE, self._pause * 2 or _FIRST_PAUSE)
            self._sleep(leader, min(seconds, self._pause))
            return
        self._trouble, self._pause = None, 0.0
        self._hand_out(found)

    def _sleep(self, waiter: _Waiter, seconds: float) -> None:
        waiter.wake.wait(self._clock.bound(seconds))
        waiter.wake.clear()

    def _hand_out(self, found: dict[str, Outcome]) -> None:
        done: list[_Waiter] = []
        with self._lock:
            for arrived, outcome in found.items():
                for waiter in self._wanted.pop(arrived, ()):
                    waiter.found[arrived] = outcome
                    waiter.missing.discard(arrived)
                    if waiter.done:
                        done.append(waiter)
        for waiter in done:
            waiter.finished()

    def _fail(self, error: Exception) -> None:
        with self._lock:
            everyone: list[_Waiter] = [*self._threads, *self._coroutines]
            self._wanted.clear()
            for waiter in everyone:
                waiter.error = error
        for waiter in everyone:
            waiter.finished()

    def _hand_over(self, waiter: _Waiter) -> None:
        with self._lock:
            if self._leader is not waiter:
                return
            self._leader = None
            waiting = (each for each in self._threads if each is not waiter and not each.done)
            successor = next(waiting, self._server)
        if successor is not None:
            successor.wake.set()

    def _wake_server(self) -> None:
        with self._lock:
            server = self._server
            if server is None:
                server = self._server = _Server(self._coroutines)
                start = threading.Thread(
                    target=self._run_server, args=(server,), name="taskline-results", daemon=True
                )
            else:
                start = None
        server.wake.set()
        if start is not None:
            start.start()

    def _run_server(self, server: _Waiter) -> None:
        while True:
            self._serve(server, None)
            with self._lock:
                if not self._coroutines:
                    self._server = None
                    return


class _Server(_Waiter):
    """The thread that leads for coroutines: done while there are none."""

    def __init__(self, coroutines: Collection[_Coroutine]) -> None:
        super().__init__(())
        self._coroutines = coroutines

    @property
    def done(self) -> bool:
        return not self._coroutines
