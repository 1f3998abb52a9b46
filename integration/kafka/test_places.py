"""Members of the group that die: who replaces them is in their place, and nothing has to move.

Sessions outlast these tests, so that nothing gets well by itself.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from integration.kafka.test_workers import PATIENCE, Shop
from integration.servers.kafka import KafkaServer
from integration.servers.process import bound
from taskline.clock import SYSTEM_CLOCK
from taskline.transports.kafka import KafkaTransport
from taskline.transports.kafka.eviction import name_of
from taskline.transports.kafka.member import Member

SESSION = 300.0
"""Seconds; far beyond any test's patience."""

DOOMED = """
import sys, threading
from integration.kafka.test_places import receiving, opened
url, *consumers = sys.argv[1:]
members = [receiving(opened(url), consumer) for consumer in consumers]
for member in members:
    member.__enter__()
threading.Event().wait()
"""


def opened(url: str) -> KafkaTransport:
    return KafkaTransport.from_spec(url, SYSTEM_CLOCK)


@contextmanager
def receiving(transport: KafkaTransport, consumer: str) -> Iterator[KafkaTransport]:
    """A consumer that asks for messages all the time, which keeps it in the group."""
    ending = threading.Event()

    def run() -> None:
        while not ending.is_set():
            transport.receive(["default"], 1, SESSION, 1.0, consumer)

    thread = threading.Thread(target=run, name="taskline-test-receiving", daemon=True)
    thread.start()
    try:
        yield transport
    finally:
        ending.set()
        transport.interrupt()
        thread.join(PATIENCE)
        transport.close()


def until(what: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


class Group:
    """What the broker says of the group, and dead members of it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.desk = opened(url)
        self._doomed: subprocess.Popen[bytes] | None = None

    def places(self) -> dict[str, list[tuple[str, int]]]:
        """Which partitions each member has."""
        found = self.desk._cluster.members(self.desk.location.group)
        return {each: sorted((p.topic, p.partition) for p in has) for each, has in found.items()}

    @property
    def is_preparing(self) -> bool:
        """Whether a rebalance waits for members."""
        group = self.desk.location.group
        (found,) = self.desk._cluster._admin().list_groups(group, timeout=PATIENCE)
        return bool(found.state == "PreparingRebalance")

    def settled(self, members: int) -> bool:
        """Whether so many have two partitions each."""
        return [len(has) for has in self.places().values()] == [2] * members

    def doom(self, *consumers: str) -> None:
        """Have these consumers join, in a process that will be killed."""
        command = bound([sys.executable, "-c", DOOMED, self.url, *consumers])
        self._doomed = subprocess.Popen(command, start_new_session=True)

    def kill(self) -> None:
        if self._doomed is not None:
            os.killpg(self._doomed.pid, signal.SIGKILL)
            self._doomed.wait()
            self._doomed = None


@pytest.fixture
def url(kafka_server: KafkaServer, kafka_name: str) -> str:
    session = f"session.timeout.ms={round(SESSION * 1000)}"
    return f"{kafka_server.url}?prefix={kafka_name}.&group={kafka_name}&partitions=6&{session}"


@pytest.fixture
def group(url: str) -> Iterator[Group]:
    group = Group(url)
    yield group
    group.kill()
    group.desk.close()


def test_the_others_do_not_notice_when_the_dead_are_replaced(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Counter[str]()
    """How often each member was called back by a rebalance."""

    def spy(name: str) -> None:
        really = getattr(Member, name)

        def spied(self: Member, *arguments: Any) -> None:
            told[self.assignment.instance] += 1
            really(self, *arguments)

        monkeypatch.setattr(Member, name, spied)

    spy("_assigned")
    spy("_revoked")
    with receiving(opened(group.url), "alive") as alive:
        until(lambda: len(group.places()) == 1)
        group.doom("first", "second")
        until(lambda: group.settled(3))
        before = group.places()
        (survivor,) = (each for each in before if each.startswith(name_of("alive")))
        often = told[survivor]
        assert often >= 2, "that two have joined was told"
        group.kill()
        heirs = [opened(group.url), opened(group.url)]
        for heir, consumer in zip(heirs, ("first", "second"), strict=True):
            assert heir.inherit(["default"], consumer, ()) == 0
        with receiving(heirs[0], "third"), receiving(heirs[1], "fourth"):
            until(lambda: all(heir._member and heir._member.assignment.order for heir in heirs))
            assert group.places() == before
            assert told[survivor] == often
            assert not alive._member or not alive._member.assignment.over


def test_several_that_are_dead_are_put_out_at_the_same_time(group: Group) -> None:
    """A rebalance has begun, which waits for all of them: one after the other would be for ever."""
    dead = ("first", "second")
    with receiving(opened(group.url), "alive"):
        group.doom(*dead)
        until(lambda: group.settled(3))
        group.kill()
        with receiving(opened(group.url), "newcomer"):
            until(lambda: group.is_preparing)
            assert group.desk.recover_all(dict.fromkeys(dead, ())) == 0
            until(lambda: [len(has) for has in group.places().values()] == [3, 3])


def test_who_was_killed_before_it_had_anything_is_replaced_as_well(group: Group) -> None:
    """The broker cannot tell then what it had, and nobody joins again afterwards: who takes the
    place is assigned what the worker is to have."""
    dead = ("first", "second")
    group.doom(dead[0])
    until(lambda: [len(has) for has in group.places().values()] == [6])
    group.kill()
    group.doom(dead[1])
    until(lambda: len(group.places()) == 2)
    assert group.is_preparing, "nobody has taken the first one's place"
    names = set(group.places())
    group.kill()
    heirs = [opened(group.url), opened(group.url)]
    with ThreadPoolExecutor() as threads:  # neither would come to its end without the other
        taking = [
            threads.submit(e.inherit, ["default"], d, ()) for e, d in zip(heirs, dead, strict=True)
        ]
        assert [each.result() for each in taking] == [0, 0]
    with receiving(heirs[0], "third"), receiving(heirs[1], "fourth"):
        until(lambda: [len(has) for has in group.places().values()] == [3, 3])
        places = group.places()
        topic = group.desk.location.topic("default")
        assert set(places) == names
        assert {each for has in places.values() for each, _ in has} == {topic}


def test_who_takes_a_place_and_is_stopped_before_it_asks_gives_it_up(group: Group) -> None:
    group.doom("first")
    until(lambda: [len(has) for has in group.places().values()] == [6])
    (place,) = group.places()
    group.kill()
    heir = opened(group.url)
    heir.inherit(["default"], "first", ())
    heir.prepare(["default"], SESSION, "second")
    assert heir._member
    assert heir._member.assignment.instance == place
    heir.close()
    assert group.places() == {}


def begun(shop: Shop) -> int:
    return len(shop.begun())


def more_than(shop: Shop, count: float) -> bool:
    return begun(shop) > count


def pids_since(shop: Shop, first: int) -> set[int]:
    return {pid for _, pid in shop.begun()[first:]}


def others_since(shop: Shop, first: int, known: set[int]) -> set[int]:
    return pids_since(shop, first) - known


def test_a_worker_whose_processes_all_die_keeps_its_places(url: str, tmp_path: Path) -> None:
    tasks, processes = 200, 3
    shop = Shop(url, tmp_path)
    group = Group(url)
    try:
        results = shop.send(tasks)
        shop.worker(processes, "--lease", str(SESSION))
        for share in (0.2, 0.6):  # the second time those who are in the place of others
            shop.until(lambda: group.settled(processes))
            before = group.places()
            first = begun(shop)
            shop.until(partial(more_than, shop, max(first, share * tasks)))
            killed = pids_since(shop, first)
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
            now = begun(shop)
            shop.until(partial(others_since, shop, now, killed))
            assert group.places() == before
        # Each ran one, and may have finished some whose receipts had not been committed.
        assert shop.finish(results) <= 2 * processes * (1 + 5)
    finally:
        shop.close()
        group.desk.close()
