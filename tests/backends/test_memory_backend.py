"""What the conformance suite does not ask of every backend."""

from __future__ import annotations

import os

import pytest

from taskline.backends import memory, open_backend
from taskline.backends.base import Revocation
from taskline.backends.memory import MemoryBackend
from taskline.clock import ManualClock
from taskline.errors import BackendError
from taskline.testing.cases.backend import outcome


@pytest.fixture
def backend(taskline_memory: str, taskline_clock: ManualClock) -> MemoryBackend:
    found = open_backend(taskline_memory, clock=taskline_clock)
    assert isinstance(found, MemoryBackend)
    return found


def test_backends_of_one_name_see_the_same_outcomes(taskline_memory: str) -> None:
    open_backend(taskline_memory).store([outcome("a")])
    assert list(open_backend(taskline_memory).fetch(["a"])) == ["a"]
    memory.forget(taskline_memory.partition("://")[2])
    assert open_backend(taskline_memory).fetch(["a"]) == {}


def test_a_child_process_begins_without_outcomes(taskline_memory: str) -> None:
    backend = open_backend(taskline_memory)
    backend.store([outcome("a")])
    with backend._store.lock:
        child = os.fork()
        if not child:
            os._exit(len(open_backend(taskline_memory).fetch(["a"])))
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_what_was_fetched_and_forgotten_leaves_nothing_behind(backend: MemoryBackend) -> None:
    for number in range(5000):
        backend.store([outcome(f"{number}", ttl=86400.0)])
        backend.forget([f"{number}"])
    assert (len(backend._store.outcomes), len(backend._store.final)) == (0, 0)
    assert len(backend._store.ends) < 1100


def test_what_has_ended_is_given_back_without_upkeep(
    backend: MemoryBackend, taskline_clock: ManualClock
) -> None:
    backend.store([outcome(f"{number}", ttl=10.0) for number in range(100)])
    taskline_clock.advance(11.0)
    backend.store([outcome("new")])
    assert backend.info()["outcomes"] == 1
    assert len(backend._store.final) == 1


def test_upkeep_gives_back_revocations_and_counts(
    backend: MemoryBackend, taskline_clock: ManualClock
) -> None:
    backend.revoke([Revocation("a")], 10.0)
    backend.count("group", "a", 10.0)
    taskline_clock.advance(11.0)
    backend.maintain()
    assert (backend._store.revocations, backend._store.members) == ([], {})


def test_a_store_wakes_only_those_whom_it_concerns(backend: MemoryBackend) -> None:
    woken: list[str] = []

    class Bell:
        def __init__(self, name: str) -> None:
            self.name = name

        def set(self) -> None:
            woken.append(self.name)

    waiter = type(backend._waiter)
    for name in "abc":
        each = waiter()
        each.ids, each.wake = frozenset(name), Bell(name)  # type: ignore[assignment]
        backend._store.waiters.add(each)
    backend.store([outcome("b"), outcome("c", "STARTED")])
    assert woken == ["b"]


def test_a_closed_backend_refuses(backend: MemoryBackend) -> None:
    backend.close()
    for call in (lambda: backend.store([]), lambda: backend.wait([], 0), backend.ping):
        with pytest.raises(BackendError, match="is closed: open another"):
            call()
