from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from taskline import (
    BackendError,
    ConfigurationError,
    LeaseLost,
    LockTimeout,
    NotSupported,
    Taskline,
    TasklineError,
)
from taskline.backends.base import Backend
from taskline.backends.keys import KeyStore
from taskline.clock import ManualClock
from taskline.lock import Lock
from taskline.testing.cases.base import Running

BOUND = 20.0


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def app(taskline_memory: str, clock: ManualClock) -> Iterator[Taskline]:
    """Its time stands still: an `acquire` that waits ends by being woken, or not at all."""
    with Taskline("shop", broker="memory://", backend=taskline_memory, clock=clock) as app:
        yield app


def in_thread(work: Callable[[], Any]) -> Running[Any]:
    return Running(work, BOUND)


# One holder


def test_one_holds_it_until_it_is_released(app: Taskline) -> None:
    lock, other = app.lock("stock"), app.lock("stock")
    assert not lock.is_locked()
    assert lock.get_ttl() is None
    assert lock.acquire()
    assert other.is_locked()
    assert other.get_ttl() == app.settings.lease
    assert not other.acquire(blocking=False)
    assert not other.acquire(timeout=0)
    assert app.lock("another").acquire(blocking=False)
    lock.release()
    assert not lock.is_locked()
    assert other.acquire(blocking=False)


def test_in_a_with(app: Taskline) -> None:
    with app.lock("stock", ttl=7) as lock:
        assert lock.is_locked()
        assert lock.get_ttl() == 7
    assert not lock.is_locked()
    # The same object may be used again.
    with lock:
        assert lock.is_locked()
    with pytest.raises(KeyError), lock:
        raise KeyError("theirs")
    assert not lock.is_locked()


def test_fences_grow(app: Taskline) -> None:
    fences = []
    lock, other = app.lock("stock"), app.lock("stock")
    for each in (lock, other, lock, lock, other):
        with each:
            fences.append(each.fence)
    assert fences == sorted(set(fences))


def test_it_is_not_re_entrant(app: Taskline) -> None:
    lock = app.lock("stock")
    with lock:
        with pytest.raises(TasklineError, match="'stock' is this object's already"):
            lock.acquire()
        with pytest.raises(TasklineError, match="not re-entrant"), lock:
            pass
        assert not app.lock("stock").acquire(blocking=False)
        assert lock.is_locked()


def test_without_it_there_is_nothing_to_release(app: Taskline) -> None:
    lock = app.lock("stock")
    with app.lock("stock"):
        for wrong in (lock.release, lock.renew, lambda: lock.set_ttl(3), lambda: lock.fence):
            with pytest.raises(TasklineError, match="not this object's: acquire it first"):
                wrong()
        assert lock.is_locked()


# Leases


def test_a_lease_ends_and_its_holder_is_told(app: Taskline, clock: ManualClock) -> None:
    lock, other = app.lock("stock", ttl=10), app.lock("stock")
    lock.acquire()
    fence = lock.fence
    clock.advance(11)
    assert not other.is_locked()
    other.acquire()
    assert other.fence > lock.fence == fence
    for told in (lock.renew, lambda: lock.set_ttl(3), lock.get_ttl, lock.release):
        with pytest.raises(LeaseLost, match=rf"'stock' \(fence {fence}\) has ended"):
            told()
    assert other.get_ttl() == app.settings.lease
    # It is free for another try.
    assert not lock.acquire(blocking=False)
    other.release()
    assert lock.acquire(blocking=False)


def test_a_lease_that_ended_is_lost_though_nobody_took_the_lock(
    app: Taskline, clock: ManualClock
) -> None:
    lock = app.lock("stock", ttl=10)
    lock.acquire()
    clock.advance(11)
    with pytest.raises(TasklineError, match="release it first"):
        lock.acquire()
    with pytest.raises(LeaseLost):
        lock.renew()
    with pytest.raises(LeaseLost):
        lock.release()


def test_a_renewed_lease_lasts(app: Taskline, clock: ManualClock) -> None:
    with app.lock("stock", ttl=10) as lock:
        clock.advance(9)
        assert lock.get_ttl() == 1
        lock.renew()
        clock.advance(9)
        lock.set_ttl(100)
        clock.advance(90)
        assert lock.get_ttl() == 10


def test_a_with_tells_that_the_lease_had_ended(
    app: Taskline, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(LeaseLost), app.lock("stock", ttl=10):
        clock.advance(11)

    # What was raised in the block is not hidden by that.
    def outlast() -> None:
        with app.lock("stock", ttl=10):
            clock.advance(11)
            raise KeyError("theirs")

    with caplog.at_level(logging.WARNING, "taskline"), pytest.raises(KeyError):
        outlast()
    (record,) = caplog.records
    assert "has ended" in record.getMessage()


# Waiting


def test_who_waits_gets_it_from_the_release(app: Taskline) -> None:
    lock = app.lock("stock")
    lock.acquire()
    others = [app.lock("stock") for _ in range(3)]
    running = [in_thread(other.acquire) for other in others]
    lock.release()
    waiting = set(others)
    while waiting:
        for other in list(waiting):
            if other._token:
                other.release()
                waiting.remove(other)
    assert all(each.result() is True for each in running)


def test_who_waits_is_woken_not_polling(
    monkeypatch: pytest.MonkeyPatch, taskline_memory: str
) -> None:
    monkeypatch.setattr("taskline.lock.RECHECK", 10 * BOUND)
    app = Taskline("shop", broker="memory://", backend=taskline_memory, lease=10 * BOUND)
    with app.lock("stock"):
        running = [in_thread(lambda: app.lock("stock").__enter__().release()) for _ in range(3)]
    for each in running:
        each.result()
    app.close()


def test_who_waits_gets_it_when_the_lease_ends(app: Taskline, clock: ManualClock) -> None:
    app.lock("stock", ttl=10).acquire()
    running = in_thread(app.lock("stock").acquire)
    clock.advance(9)
    assert not app.lock("stock").acquire(blocking=False)
    assert running.running
    clock.advance(2)
    assert running.result() is True


def test_a_timeout_is_by_the_clock(app: Taskline, clock: ManualClock) -> None:
    app.lock("stock", ttl=100).acquire()
    late = in_thread(lambda: app.lock("stock", timeout=1).acquire(timeout=20))
    usual = in_thread(app.lock("stock", timeout=5).acquire)
    for_ever = app.lock("stock", timeout=5)
    ever = in_thread(lambda: for_ever.acquire(timeout=None))
    while usual.running:
        clock.advance(1)
        threading.Event().wait(0.01)
    assert usual.result() is False
    while late.running:
        clock.advance(1)
        threading.Event().wait(0.01)
    assert late.result() is False
    assert ever.running
    clock.advance(100)
    assert ever.result() is True


def test_a_with_that_waits_in_vain_raises(app: Taskline) -> None:
    with app.lock("stock"):
        lock = app.lock("stock", timeout=0)
        with pytest.raises(LockTimeout, match="'stock' was not free within 0 s"), lock:
            pytest.fail("it is another's")
        assert issubclass(LockTimeout, TimeoutError)
    with lock:
        assert lock.is_locked()


def test_one_object_is_for_one_holder_also_among_threads(app: Taskline) -> None:
    with app.lock("stock"):
        lock = app.lock("stock")
        running = in_thread(lock.acquire)
        while not lock._busy:
            threading.Event().wait(0.01)
        with pytest.raises(TasklineError, match="this object's already"):
            lock.acquire(blocking=False)
        assert lock.get_ttl() == app.settings.lease
    assert running.result() is True


def test_threads_exclude_one_another(app: Taskline) -> None:
    number = 0

    def work() -> None:
        nonlocal number
        for _ in range(20):
            with app.lock("stock"):
                before = number
                threading.Event().wait(0.0001)
                number = before + 1

    for each in [in_thread(work) for _ in range(4)]:
        each.result()
    assert number == 80


# Coroutines


def test_in_an_async_with(app: Taskline, clock: ManualClock) -> None:
    async def main() -> None:
        async with app.lock("stock") as lock:
            assert lock.is_locked()
            assert not await app.lock("stock").aacquire(blocking=False)
            with pytest.raises(LockTimeout):
                async with app.lock("stock", timeout=0):
                    pytest.fail("it is another's")
        assert not lock.is_locked()
        with pytest.raises(LeaseLost):
            async with lock:
                clock.advance(1000)
        assert await lock.aacquire()
        await lock.arelease()

    asyncio.run(asyncio.wait_for(main(), BOUND))


def test_many_coroutines_take_turns(app: Taskline) -> None:
    """More than asyncio has threads."""
    inside = []
    most = 0

    async def turn(number: int) -> None:
        nonlocal most
        async with app.lock("stock"):
            inside.append(number)
            most = max(most, len(inside))
            await asyncio.sleep(0)
            inside.remove(number)

    async def main() -> None:
        await asyncio.gather(*(turn(number) for number in range(60)))

    asyncio.run(asyncio.wait_for(main(), BOUND))
    assert most == 1


def test_a_cancelled_coroutine_leaves_nothing_behind(app: Taskline) -> None:
    async def main() -> None:
        async with app.lock("stock"):
            lock = app.lock("stock")
            task = asyncio.create_task(lock.aacquire())
            while not lock._busy:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            # Its thread ends without a release, or the passing of time.
            while lock._busy:
                await asyncio.sleep(0.001)

    asyncio.run(asyncio.wait_for(main(), BOUND))


def test_what_a_cancelled_coroutine_gets_late_is_given_back(
    app: Taskline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store grants the lock after the coroutine was cancelled."""
    keys = app._keys()
    asked, go = threading.Event(), threading.Event()
    acquire = keys.acquire

    def slow(*args: Any) -> Any:
        asked.set()
        assert go.wait(BOUND)
        return acquire(*args)

    monkeypatch.setattr(keys, "acquire", slow)
    lock = app.lock("stock")

    async def main() -> None:
        task = asyncio.create_task(lock.aacquire())
        while not asked.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go.set()
        while lock._busy:
            await asyncio.sleep(0.001)

    asyncio.run(asyncio.wait_for(main(), BOUND))
    assert not lock.is_locked()
    assert keys.acquire("stock", "x", 1.0).fence


def test_an_error_reaches_the_coroutine(app: Taskline) -> None:
    app.backend.close()  # type: ignore[union-attr]
    with pytest.raises(BackendError):
        asyncio.run(asyncio.wait_for(app.lock("stock").aacquire(), BOUND))


# Wrong uses


@pytest.mark.parametrize("name", ["", None, 3, "x" * 513, "ü" * 257, "\ud800"])
def test_wrong_names_are_refused(app: Taskline, name: Any) -> None:
    with pytest.raises(ConfigurationError, match="name="):
        app.lock(name)


@pytest.mark.parametrize("ttl", [0, -1, "3", True, float("nan"), float("inf")])
def test_wrong_durations_are_refused(app: Taskline, ttl: Any) -> None:
    with pytest.raises(ConfigurationError, match="ttl="):
        app.lock("a", ttl=ttl)
    with app.lock("a") as lock, pytest.raises(ConfigurationError, match="ttl="):
        lock.set_ttl(ttl)
    assert lock.acquire()


@pytest.mark.parametrize("timeout", [-1, "3", True, float("nan")])
def test_wrong_timeouts_are_refused(app: Taskline, timeout: Any) -> None:
    with pytest.raises(ConfigurationError, match="timeout="):
        app.lock("a", timeout=timeout)
    with pytest.raises(ConfigurationError, match="timeout="):
        app.lock("a").acquire(timeout)


def test_an_app_without_a_backend_has_no_locks_and_no_keys() -> None:
    app = Taskline("shop", broker="memory://", backend=None)
    for use in (lambda: app.lock("a"), lambda: app.kv):
        with pytest.raises(ConfigurationError, match="the app shop has no result backend"):
            use()


def test_a_backend_need_not_keep_locks(app: Taskline, monkeypatch: pytest.MonkeyPatch) -> None:
    assert app.backend is not None
    monkeypatch.setattr(type(app.backend), "keys", Backend.keys)
    with pytest.raises(NotSupported, match="the memory backend keeps no locks and no keys"):
        app.lock("a").acquire()
    with pytest.raises(NotSupported):
        app.kv.get("a")


def test_no_connection_is_opened_before_the_first_use() -> None:
    app = Taskline("shop", broker="memory://", backend="nonsense://x")
    lock, kv = app.lock("a"), app.kv
    for use in (lock.is_locked, lambda: kv.get("a")):
        with pytest.raises(ConfigurationError, match="nonsense"):
            use()


def test_an_error_of_the_store_leaves_the_object_usable(
    app: Taskline, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = app._keys()
    lock = app.lock("stock")
    with monkeypatch.context() as broken:

        def fails(*args: object) -> None:
            raise BackendError("gone")

        broken.setattr(keys, "acquire", fails)
        with pytest.raises(BackendError):
            lock.acquire()
    lock.acquire()
    with monkeypatch.context() as broken:
        broken.setattr(keys, "release", fails)
        with pytest.raises(BackendError):
            lock.release()
    assert lock.is_locked()
    lock.release()
    assert not lock.is_locked()


def test_its_repr(app: Taskline) -> None:
    lock = app.lock("stock")
    assert repr(lock) == "<Lock 'stock'>"
    with lock:
        assert repr(lock) == f"<Lock 'stock' acquired, fence {lock.fence}>"


def test_after_close_it_works_anew(app: Taskline) -> None:
    lock: Lock = app.lock("stock")
    first: KeyStore = app._keys()
    with lock:
        app.close()
        assert lock.is_locked()
        assert app._keys() is not first
    app.close()
