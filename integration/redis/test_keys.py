"""Locks and keys on Redis: answers that are lost, data that is lost, holders that are killed."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from integration.servers.redis import RedisServer
from taskline import BackendError, Taskline
from taskline.backends.keys import KeyStore
from taskline.backends.redis import RedisBackend
from taskline.clock import SYSTEM_CLOCK
from taskline.redis.connection import Connection, Lost
from taskline.testing.cases.base import Running

fork = multiprocessing.get_context("fork")
BOUND = 30.0
"""Seconds after which anything counts as hanging."""


@pytest.fixture
def backend(redis_url: str) -> Iterator[RedisBackend]:
    made = RedisBackend.from_spec(redis_url, SYSTEM_CLOCK)
    yield made
    made.close()


@pytest.fixture
def keys(backend: RedisBackend) -> KeyStore:
    return backend.keys()


def once(monkeypatch: pytest.MonkeyPatch, work: Callable[[], Any], before: bool = False) -> Any:
    """The work, whose first answer is lost, or whose first request with `before`."""
    call, calls = Connection.call, []

    def broken(connection: Connection, data: bytes) -> Any:
        calls.append(data)
        if len(calls) > 1 or not before:
            answer = call(connection, data)
        if len(calls) == 1:
            raise Lost("cut by the test")
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(Connection, "call", broken)
        found = work()
    assert len(calls) > 1
    return found


@pytest.mark.parametrize("before", [False, True], ids=["answer", "request"])
def test_a_call_whose_connection_breaks_does_its_work_once(
    keys: KeyStore, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    # Once as it should be: the scripts are then known to the server.
    keys.increment("warm", 1, None)
    keys.set("warm", b"1", None, if_absent=True)
    keys.acquire("warm", "me", BOUND)
    keys.renew("warm", "me", BOUND)
    keys.release("warm", "me")

    assert once(monkeypatch, lambda: keys.increment("hits", 5, BOUND), before) == 5
    assert once(monkeypatch, lambda: keys.increment("hits", 5, BOUND), before) == 10
    assert keys.get("hits") == b"10"
    assert once(monkeypatch, lambda: keys.set("a", b"1", None, if_absent=True), before)
    assert not once(monkeypatch, lambda: keys.set("a", b"1", None, if_absent=True), before)
    lease = once(monkeypatch, lambda: keys.acquire("lock", "me", BOUND), before)
    assert lease.token == "me"
    assert once(monkeypatch, lambda: keys.renew("lock", "me", BOUND), before)
    assert once(monkeypatch, lambda: keys.release("lock", "me"), before)
    assert not once(monkeypatch, lambda: keys.release("unheard-of", "me"), before)
    assert keys.holder("lock") is None


def test_a_release_that_is_repeated_frees_nobody_elses_lock(keys: KeyStore) -> None:
    keys.acquire("lock", "me", BOUND)
    assert keys.release("lock", "me")
    keys.acquire("lock", "you", BOUND)
    assert not keys.release("lock", "me")
    lease = keys.holder("lock")
    assert lease is not None
    assert lease.token == "you"


def test_fences_grow_beyond_those_of_data_that_was_lost(redis_server: RedisServer) -> None:
    with RedisServer() as server:
        backend = RedisBackend.from_spec(server.url, SYSTEM_CLOCK)
        keys = backend.keys()
        fences = [keys.acquire(f"{number}", "me", BOUND).fence for number in range(3)]
        fences.append(keys.acquire("lock", "me", BOUND).fence)
        server.do("FLUSHALL")
        assert keys.holder("lock") is None
        assert keys.acquire("lock", "me", BOUND).fence > max(fences)
        # Even a script that the server has forgotten is no trouble.
        server.do("SCRIPT", "FLUSH")
        assert keys.release("lock", "me")
        backend.close()


def test_who_waits_survives_the_loss_of_its_connection(redis_server: RedisServer) -> None:
    with RedisServer() as server:
        backend = RedisBackend.from_spec(server.url, SYSTEM_CLOCK)
        keys = backend.keys()
        keys.acquire("lock", "me", BOUND)
        with keys.watch("lock") as watch:
            server.do("CLIENT", "KILL", "TYPE", "pubsub")
            Running(lambda: watch.wait(BOUND), BOUND / 2).result()
            keys.release("lock", "me")
            Running(lambda: watch.wait(BOUND), BOUND / 2).result()
        backend.close()


def test_a_server_that_is_gone_is_told(redis_server: RedisServer) -> None:
    with RedisServer() as server:
        backend = RedisBackend.from_spec(f"{server.url}?timeout=0.2", SYSTEM_CLOCK)
        keys = backend.keys()
        keys.acquire("lock", "me", BOUND)
        server.kill()
        for use in (
            lambda: keys.get("a"),
            lambda: keys.increment("a", 1, None),
            lambda: keys.acquire("lock", "you", BOUND),
            lambda: keys.watch("lock"),
        ):
            with pytest.raises(BackendError):
                use()
        backend.close()


def test_a_lock_is_renewed_and_released_on_a_full_server(redis_server: RedisServer) -> None:
    with RedisServer() as server:
        backend = RedisBackend.from_spec(server.url, SYSTEM_CLOCK)
        keys = backend.keys()
        keys.set("a", b"1", None)
        keys.acquire("lock", "me", BOUND)
        server.do("CONFIG", "SET", "maxmemory", 1)
        for use in (
            lambda: keys.increment("hits", 1, None),
            lambda: keys.set("b", b"1", None),
            lambda: keys.acquire("another", "me", BOUND),
        ):
            with pytest.raises(BackendError, match="maxmemory is reached") as caught:
                use()
            assert not caught.value.retryable
        assert keys.get("a") == b"1"
        assert keys.expire("a", BOUND)
        assert keys.delete("a")
        assert keys.renew("lock", "me", BOUND)
        assert keys.release("lock", "me")
        assert keys.holder("lock") is None
        backend.close()


# Processes


def app_on(url: str) -> Taskline:
    return Taskline("shop", broker="memory://", backend=url)


def _hold(url: str, ttl: float, told: Any) -> None:
    lock = app_on(url).lock("shared", ttl=ttl)
    assert lock.acquire()
    told.send(lock.fence)
    signal.pause()


def _add(url: str, shared: Path, rounds: int) -> None:
    app = app_on(url)
    for _ in range(rounds):
        with app.lock("shared", ttl=BOUND, timeout=BOUND) as lock:
            number, fence = map(int, shared.read_text().split())
            assert lock.fence > fence
            shared.write_text(f"{number + 1} {lock.fence}")
    app.close()


def test_processes_exclude_one_another_and_a_killed_one_is_replaced(
    redis_url: str, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    hear, told = fork.Pipe(duplex=False)
    holder = fork.Process(target=_hold, args=(redis_url, 1.0, told))
    others = [fork.Process(target=_add, args=(redis_url, shared, 20)) for _ in range(3)]
    holder.start()
    try:
        assert hear.poll(BOUND)
        shared.write_text(f"0 {hear.recv()}")
        for each in others:
            each.start()
        holder.kill()
        for each in others:
            each.join(BOUND)
        assert [each.exitcode for each in others] == [0, 0, 0]
        assert shared.read_text().split()[0] == "60"
    finally:
        for each in (holder, *others):
            if each.pid is not None:
                each.kill()
                each.join()
