"""Waiters against a backend whose `wait` the test holds in its hands."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from taskline.backends.memory import MemoryBackend
from taskline.clock import SYSTEM_CLOCK, Clock, ManualClock
from taskline.errors import BackendError
from taskline.message import SUCCESS, Outcome, new_id
from taskline.waiters import Waiters

LIMIT = 30.0
"""Seconds after which a test that hangs fails."""

LONG = 2 * LIMIT
"""How long waiters wait: whoever is not woken must not be saved by the end of its own time."""


def outcome(id: str, state: str = SUCCESS) -> Outcome:
    return Outcome(id, state, 1.0, 1, None, b"")


class Backend(MemoryBackend):
    """Tells how many threads are in `wait`, and fails when told to."""

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__(new_id(), clock)
        self._count = threading.Condition()
        self.asked: list[frozenset[str]] = []
        self.inside: list[str] = []
        self.most_inside = 0
        self.leaders: set[str] = set()
        self.error: Exception | None = None

    def wait(self, ids: Collection[str], timeout: float) -> dict[str, Outcome]:
        name = threading.current_thread().name
        with self._count:
            self.asked.append(frozenset(ids))
            self.inside.append(name)
            self.leaders.add(name)
            self.most_inside = max(self.most_inside, len(self.inside))
            self._count.notify_all()
        try:
            if self.error is not None:
                raise self.error
            return super().wait(ids, timeout)
        finally:
            with self._count:
                self.inside.remove(name)

    def until_asked(self, condition: Callable[[list[frozenset[str]]], bool]) -> None:
        """Block until the `wait`s so far fulfil a condition."""
        with self._count:
            assert self._count.wait_for(lambda: condition(self.asked), LIMIT)


@pytest.fixture
def backend() -> Backend:
    return Backend()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks again by itself: who is not woken sleeps for ever."""
    monkeypatch.setattr("taskline.waiters.SLICE", 1e6)


@pytest.fixture
def pool() -> Any:
    with ThreadPoolExecutor(64) as threads:
        yield threads


def test_what_is_final_already_comes_at_once(backend: Backend) -> None:
    backend.store([outcome("a")])
    assert Waiters(backend).wait(["a"], LIMIT) == {"a": outcome("a")}
    assert Waiters(backend).wait(["a"], 0) == {"a": outcome("a")}


def test_no_time_to_wait_still_looks_once_and_only_at_what_is_final(backend: Backend) -> None:
    backend.store([outcome("a", "STARTED")])
    assert Waiters(backend).wait(["a", "b"], 0) == {}
    assert backend.asked == []


@pytest.mark.usefixtures("patient")
def test_many_threads_one_wait_at_a_time(backend: Backend, pool: ThreadPoolExecutor) -> None:
    waiters = Waiters(backend)
    ids = [f"t{n}" for n in range(60)]
    futures = [pool.submit(waiters.wait, [each], LONG) for each in ids]
    backend.until_asked(lambda asked: asked[-1:] == [frozenset(ids)])
    for each in ids:
        backend.store([outcome(each)])
    for each, future in zip(ids, futures, strict=True):
        assert future.result(LIMIT) == {each: outcome(each)}
    assert backend.most_inside == 1


@pytest.mark.usefixtures("patient")
def test_a_newcomer_is_served_while_the_leader_waits_for_something_else(
    backend: Backend, pool: ThreadPoolExecutor
) -> None:
    waiters = Waiters(backend)
    leader = pool.submit(waiters.wait, ["late"], LONG)
    backend.until_asked(lambda asked: asked[-1:] == [frozenset({"late"})])
    newcomer = pool.submit(waiters.wait, ["early"], LONG)
    backend.until_asked(lambda asked: asked[-1:] == [frozenset({"late", "early"})])
    backend.store([outcome("early")])
    assert newcomer.result(LIMIT) == {"early": outcome("early")}
    assert not leader.done()
    backend.store([outcome("late")])
    assert leader.result(LIMIT) == {"late": outcome("late")}


@pytest.mark.usefixtures("patient")
def test_a_leader_that_has_its_own_hands_the_lead_over(
    backend: Backend, pool: ThreadPoolExecutor
) -> None:
    waiters = Waiters(backend)
    leader = pool.submit(waiters.wait, ["a"], LONG)
    backend.until_asked(lambda asked: len(asked) >= 1)
    follower = pool.submit(waiters.wait, ["b"], LONG)
    backend.until_asked(lambda asked: asked[-1:] == [frozenset({"a", "b"})])
    backend.store([outcome("a")])
    assert leader.result(LIMIT)
    backend.until_asked(lambda asked: asked[-1:] == [frozenset({"b"})])
    backend.store([outcome("b")])
    assert follower.result(LIMIT) == {"b": outcome("b")}
    assert len(backend.leaders) == 2


@pytest.mark.usefixtures("patient")
def test_a_leader_whose_time_is_over_hands_the_lead_over(pool: ThreadPoolExecutor) -> None:
    clock = ManualClock()
    backend = Backend(clock)
    waiters = Waiters(backend)
    leader = pool.submit(waiters.wait, ["a"], 5.0)
    backend.until_asked(lambda asked: len(asked) >= 1)
    follower = pool.submit(waiters.wait, ["b"], 500.0)
    backend.until_asked(lambda asked: asked[-1:] == [frozenset({"a", "b"})])
    clock.advance(6.0)
    assert leader.result(LIMIT) == {}
    backend.until_asked(lambda asked: asked[-1:] == [frozenset({"b"})])
    backend.store([outcome("b")])
    assert follower.result(LIMIT) == {"b": outcome("b")}


def test_a_follower_gives_up_at_its_own_time(pool: ThreadPoolExecutor) -> None:
    clock = ManualClock()
    backend = Backend(clock)
    waiters = Waiters(backend)
    leader = pool.submit(waiters.wait, ["a"], None)
    backend.until_asked(lambda asked: len(asked) >= 1)
    follower = pool.submit(waiters.wait, ["b"], 5.0)
    backend.until_asked(lambda asked: asked[-1:] == [frozenset({"a", "b"})])
    clock.advance(6.0)
    assert follower.result(LIMIT) == {}
    backend.store([outcome("a")])
    assert leader.result(LIMIT) == {"a": outcome("a")}


@pytest.mark.usefixtures("patient")
def test_several_ids_are_waited_for_together(backend: Backend, pool: ThreadPoolExecutor) -> None:
    waiters = Waiters(backend)
    future = pool.submit(waiters.wait, ["a", "b"], LONG)
    backend.until_asked(lambda asked: frozenset({"a", "b"}) in asked)
    backend.store([outcome("a")])
    backend.until_asked(lambda asked: asked[-1:] == [frozenset({"b"})])
    backend.store([outcome("b")])
    assert future.result(LIMIT) == {"a": outcome("a"), "b": outcome("b")}


@pytest.mark.usefixtures("patient")
def test_two_may_wait_for_the_same_id(backend: Backend, pool: ThreadPoolExecutor) -> None:
    waiters = Waiters(backend)
    futures = [pool.submit(waiters.wait, ["a"], LONG) for _ in range(5)]
    backend.until_asked(lambda asked: len(asked) >= 1)
    backend.store([outcome("a")])
    assert [future.result(LIMIT) for future in futures] == [{"a": outcome("a")}] * 5


@pytest.mark.usefixtures("patient")
def test_a_backend_that_refuses_for_good_tells_everyone(pool: ThreadPoolExecutor) -> None:
    backend = Backend()
    waiters = Waiters(backend)
    leader = pool.submit(waiters.wait, ["a"], LONG)
    backend.until_asked(lambda asked: len(asked) >= 1)
    follower: Future[Any] = pool.submit(waiters.wait, ["b"], LONG)
    backend.until_asked(lambda asked: asked[-1:] == [frozenset({"a", "b"})])
    backend.error = BackendError("the file is no database", retryable=False)
    backend.interrupt()
    for future in (leader, follower):
        with pytest.raises(BackendError, match="no database"):
            future.result(LIMIT)


def test_a_lost_connection_is_tried_again(pool: ThreadPoolExecutor) -> None:
    backend = Backend()
    backend.error = BackendError("connection refused")
    waiters = Waiters(backend)
    future = pool.submit(waiters.wait, ["a"], LONG)
    backend.until_asked(lambda asked: len(asked) >= 3)
    backend.error = None
    backend.store([outcome("a")])
    assert future.result(LIMIT) == {"a": outcome("a")}


def test_a_connection_lost_to_the_end_is_raised_at_the_end(pool: ThreadPoolExecutor) -> None:
    clock = ManualClock()
    backend = Backend(clock)
    backend.error = BackendError("connection refused")
    future = pool.submit(Waiters(backend).wait, ["a"], 5.0)
    backend.until_asked(lambda asked: len(asked) >= 2)
    clock.advance(6.0)
    with pytest.raises(BackendError, match="connection refused"):
        future.result(LIMIT)


@pytest.mark.usefixtures("patient")
def test_an_interrupted_leader_leaves_the_others_served(
    backend: Backend, pool: ThreadPoolExecutor
) -> None:
    waiters = Waiters(backend)
    follower: list[Future[Any]] = []

    def interrupted(ids: Collection[str], timeout: float) -> dict[str, Outcome]:
        backend.wait = real  # type: ignore[method-assign]
        follower.append(pool.submit(waiters.wait, ["b"], LONG))
        raise KeyboardInterrupt

    real, backend.wait = backend.wait, interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        waiters.wait(["a"], LONG)
    backend.until_asked(lambda asked: asked[-1:] == [frozenset({"b"})])
    backend.store([outcome("b")])
    assert follower[0].result(LIMIT) == {"b": outcome("b")}


def threads_of_ours() -> set[threading.Thread]:
    return {each for each in threading.enumerate() if each.name == "taskline-results"}


def test_a_thousand_coroutines_take_one_thread(backend: Backend) -> None:
    waiters = Waiters(backend)
    ids = [f"t{n}" for n in range(1000)]
    before = threads_of_ours()  # of other tests, about to end

    async def main() -> list[dict[str, Outcome]]:
        tasks = [asyncio.create_task(waiters.wait_async([each], LONG)) for each in ids]
        await asyncio.to_thread(backend.until_asked, lambda asked: asked[-1:] == [frozenset(ids)])
        assert len(threads_of_ours() - before) == 1
        backend.store([outcome(each) for each in ids[:500]])
        backend.store([outcome(each) for each in ids[500:]])
        return await asyncio.gather(*tasks)

    assert asyncio.run(main()) == [{each: outcome(each)} for each in ids]
    assert backend.leaders == {"taskline-results"}
    for thread in threads_of_ours():
        thread.join(LIMIT)
        assert not thread.is_alive()


def test_coroutines_and_threads_wait_together(backend: Backend, pool: ThreadPoolExecutor) -> None:
    waiters = Waiters(backend)
    thread = pool.submit(waiters.wait, ["t"], LONG)
    backend.until_asked(lambda asked: len(asked) >= 1)

    async def main() -> dict[str, Outcome]:
        task = asyncio.create_task(waiters.wait_async(["c"], LONG))
        await asyncio.to_thread(backend.until_asked, lambda asked: asked[-1:] and "c" in asked[-1])
        backend.store([outcome("t")])  # the leader leaves, and our thread takes the lead
        await asyncio.to_thread(thread.result, LIMIT)
        await asyncio.to_thread(backend.until_asked, lambda asked: asked[-1:] == [frozenset({"c"})])
        backend.store([outcome("c")])
        return await task

    assert asyncio.run(main()) == {"c": outcome("c")}
    assert backend.most_inside == 1


def test_a_coroutine_gives_up_at_its_time_and_can_be_cancelled(backend: Backend) -> None:
    waiters = Waiters(backend)

    async def main() -> None:
        assert await waiters.wait_async(["a"], 0.01) == {}
        assert await waiters.wait_async(["a"], 0) == {}
        task = asyncio.create_task(waiters.wait_async(["a"], LONG))
        await asyncio.to_thread(backend.until_asked, lambda asked: len(asked) >= 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        backend.store([outcome("b")])
        assert await waiters.wait_async(["b"], LONG) == {"b": outcome("b")}

    asyncio.run(main())
    assert waiters._wanted == {}


def test_a_coroutine_gets_the_backends_error(backend: Backend) -> None:
    backend.error = BackendError("gone", retryable=False)
    with pytest.raises(BackendError, match="gone"):
        asyncio.run(Waiters(backend).wait_async(["a"], LIMIT))
