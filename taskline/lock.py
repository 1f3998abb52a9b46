"""Locks that all processes of an app share, held under a lease and with a fence."""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec import UNSET, UnsetType

from taskline.backends.keys import KeyStore, Lease, Watch
from taskline.clock import Clock
from taskline.errors import LeaseLost, LockTimeout, TasklineError
from taskline.options import duration, key_name, seconds

if TYPE_CHECKING:
    from concurrent.futures import Future

    from typing_extensions import Self

RECHECK = 1.0
"""Seconds after which who waits asks again though nothing woke it."""

_log = logging.getLogger("taskline.lock")


class Lock:
    """A lock by name. Made by `app.lock`; one object is one holder at a time.

        with app.lock("stock:42", ttl=30, timeout=5) as lock:
            shelf.put(item, fence=lock.fence)

    Who holds it has a lease: it ends `ttl` seconds after `acquire` or the last
    `set_ttl`, and then another may have the lock. So renew it, or choose a `ttl`
    longer than the work. A holder that was paused for longer cannot know; what
    it writes to should refuse every `fence` smaller than the greatest it has seen.

    It is not re-entrant, and there is no order among those who wait.
    """

    def __init__(
        self,
        name: str,
        keys: Callable[[], KeyStore],
        clock: Clock,
        *,
        ttl: float,
        timeout: float | None = None,
    ) -> None:
        self.name = key_name("name", name)
        self.ttl = duration("ttl", ttl)
        self._timeout = None if timeout is None else seconds("timeout", timeout)
        self._keys = keys
        self._clock = clock
        self._mutex = threading.Lock()
        self._busy = False
        """Whether this object has the lock, or is about to."""
        self._token = ""
        self._fence = 0

    @property
    def fence(self) -> int:
        """A number greater than that of every earlier holder. Raises when not acquired."""
        self._own_token()
        return self._fence

    def acquire(self, timeout: float | UnsetType | None = UNSET, *, blocking: bool = True) -> bool:
        """Wait until the lock is this object's; False when another kept it for `timeout` seconds.

        None waits for ever; the default is the lock's own timeout. With
        `blocking=False` it does not wait. Raises `TasklineError` when this object has
        the lock already, or its lease ended and it was not released.
        """
        return self._acquire(_Attempt(), timeout, blocking)

    async def aacquire(
        self, timeout: float | UnsetType | None = UNSET, *, blocking: bool = True
    ) -> bool:
        """As `acquire`, for coroutines: does not block the event loop, and may be cancelled."""
        import asyncio

        attempt = _Attempt()
        running = _in_thread(
            lambda: self._acquire(attempt, timeout, blocking), f"taskline-lock-{self.name}"
        )
        try:
            return await asyncio.wrap_future(running)
        except asyncio.CancelledError:
            attempt.stop()
            running.add_done_callback(self._give_back)
            raise

    def release(self) -> None:
        """Free the lock, and wake who waits for it.

        Raises `LeaseLost` when the lease had ended before: another may have had the
        lock meanwhile. Either way this object may acquire it again.
        """
        token = self._own_token()
        released = self._keys().release(self.name, token)
        self._token = ""
        self._busy = False
        if not released:
            raise self._lost()

    async def arelease(self) -> None:
        """As `release`, for coroutines: does not block the event loop."""
        import asyncio

        await asyncio.to_thread(self.release)

    def is_locked(self) -> bool:
        """Whether anybody holds the lock."""
        return self._keys().holder(self.name) is not None

    def get_ttl(self) -> float | None:
        """Seconds until the lease ends, of whoever holds the lock; None when nobody does.

        Raises `LeaseLost` when this object acquired it and its lease has ended.
        """
        lease = self._keys().holder(self.name)
        if self._token and (lease is None or lease.token != self._token):
            raise self._lost()
        return None if lease is None else lease.left

    def set_ttl(self, ttl: float) -> None:
        """Let the lease end `ttl` seconds from now. Raises `LeaseLost` when it has ended."""
        if not self._keys().renew(self.name, self._own_token(), duration("ttl", ttl)):
            raise self._lost()

    def renew(self) -> None:
        """Let the lease end the lock's own `ttl` seconds from now, as `set_ttl`."""
        self.set_ttl(self.ttl)

    def __enter__(self) -> Self:
        if not self.acquire():
            raise self._timed_out()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.release()
        except TasklineError as trouble:
            if error is None:
                raise
            # What went wrong in the block matters more, and may be this very thing.
            _log.warning("%s", trouble)

    async def __aenter__(self) -> Self:
        if not await self.aacquire():
            raise self._timed_out()
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        import asyncio

        await asyncio.to_thread(self.__exit__, kind, error, trace)

    def __repr__(self) -> str:
        held = f" acquired, fence {self._fence}" if self._token else ""
        return f"<Lock {self.name!r}{held}>"

    def _acquire(
        self, attempt: _Attempt, timeout: float | UnsetType | None, blocking: bool
    ) -> bool:
        if timeout is UNSET:
            timeout = self._timeout
        if not blocking:
            patience = 0.0
        else:
            patience = math.inf if timeout is None else seconds("timeout", timeout)
        with self._mutex:
            if self._busy:
                raise TasklineError(
                    f"the lock {self.name!r} is this object's already: release it first, or make "
                    "another object, since locks are not re-entrant"
                )
            self._busy = True
        lease = None
        try:
            lease = self._wait(attempt, patience)
        finally:
            self._busy = lease is not None
        if lease is None:
            return False
        self._fence, self._token = lease.fence, lease.token
        return True

    def _wait(self, attempt: _Attempt, patience: float) -> Lease | None:
        keys, clock, token = self._keys(), self._clock, os.urandom(16).hex()
        until = clock.monotonic() + patience
        lease = keys.acquire(self.name, token, self.ttl)
        if lease.token == token:
            return lease
        if patience <= 0:
            return None
        with keys.watch(self.name) as watch:
            attempt.watch(watch)
            while True:
                lease = keys.acquire(self.name, token, self.ttl)
                if lease.token == token:
                    return lease
                left = until - clock.monotonic()
                if left <= 0 or attempt.stopped:
                    return None
                watch.wait(min(left, lease.left, RECHECK))

    def _give_back(self, running: Future[bool]) -> None:
        """Release what was acquired for a coroutine that was cancelled."""
        if running.exception() is None and running.result():
            try:
                self.release()
            except TasklineError as trouble:
                _log.warning("%s", trouble)

    def _own_token(self) -> str:
        if not self._token:
            raise TasklineError(f"the lock {self.name!r} is not this object's: acquire it first")
        return self._token

    def _lost(self) -> LeaseLost:
        return LeaseLost(
            f"the lease of the lock {self.name!r} (fence {self._fence}) has ended: another may "
            f"have it; renew it in time, or give it a ttl of more than {self.ttl:g} s"
        )

    def _timed_out(self) -> LockTimeout:
        return LockTimeout(
            f"the lock {self.name!r} was not free within {self._timeout:g} s: try again later, "
            "or give it a longer timeout"
        )


class _Attempt:
    """One call of `acquire`, which another thread may stop."""

    def __init__(self) -> None:
        self._watch: Watch | None = None
        self.stopped = False

    def watch(self, watch: Watch) -> None:
        self._watch = watch

    def stop(self) -> None:
        # The flag first: who sets the watch after it looks at the flag before it waits.
        self.stopped = True
        if self._watch is not None:
            self._watch.interrupt()


def _in_thread(work: Callable[[], bool], name: str) -> Future[bool]:
    # Not asyncio's threads: those who wait would leave none to the holder that is to release.
    from concurrent.futures import Future

    future: Future[bool] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            found = work()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(found)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
