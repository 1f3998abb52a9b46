"""A partition's bookkeeping against a model, over crashes and orderly handings-over."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from taskline.kafka.marks import NEVER, Marks, decode, encode
from taskline.transports.kafka.partition import (
    AHEAD,
    AHEAD_BYTES,
    LEAST_AHEAD,
    Partition,
)
from taskline.transports.kafka.records import Entry

LONG = 1e9
STEPS = ["write", "read", "take", "finish", "back", "commit", "crash", "leave"]
steps = st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 1000)), max_size=80)


class Log:
    """One partition of a broker, and the worker that has it."""

    def __init__(self) -> None:
        self.offsets: list[int] = []
        self.next = 0
        self.done: set[int] = set()
        self.handed: dict[int, int] = {}
        self.committed: tuple[int, str] = (0, "")
        self.sure: set[int] = set()
        self.serials = count()
        self.assign()

    def assign(self) -> None:
        offset, text = self.committed
        self.done = set(self.sure)
        self.partition = Partition("t", 0, "q", decode(offset, text), high=self.next, window=50)

    def read(self, count: int) -> None:
        """What a partition was not told of yet may be all that it has, or the half."""
        there = [each for each in self.offsets if each >= self.partition.position]
        for offset in there[:count]:
            self.partition.add(Entry(offset, str(offset), b""))
        if count > len(there):
            self.partition.reached(self.next)

    def commit(self, *, closing: bool = False) -> None:
        if self.partition.in_doubt and not closing:
            return
        marks = self.partition.marks(closing=closing)
        text, told = encode(marks)
        self.committed = (marks.offset, text)
        self.sure = set(self.done)
        self.partition.committed(marks, told, list(self.partition.unsure))

    def step(self, what: str, number: int) -> None:
        partition = self.partition
        held = sorted(partition.held)
        if what == "write":
            self.next += number % 3  # the end of a transaction is an offset without a message
            self.offsets.append(self.next)
            self.next += 1
        elif what == "read":
            self.read(number % 8)
        elif what == "take":
            if not partition.ready() and partition.ready(beyond_reach=True):
                self.commit()
                assert partition.ready() or partition.cut, "a commit allows what is ready"
            for each in partition.take(1 + number % 4, LONG, "w", self.serials, "m"):
                offset = each.receipt.offset
                assert offset not in self.sure, "finished and committed, and handed over again"
                assert each.deliveries > self.handed.get(offset, 0), "deliveries only ever grow"
                self.handed[offset] = each.deliveries
        elif what == "finish" and held:
            offset = held[number % len(held)]
            partition.finish([offset])
            self.done.add(offset)
        elif what == "back" and held:
            partition.give_back(held[number % len(held)])
            self.commit()
        elif what == "commit":
            self.commit()
        elif what == "crash":
            self.assign()
        elif what == "leave":
            self.commit(closing=True)
            self.assign()


@settings(max_examples=300, deadline=None)
@given(steps)
def test_nothing_is_lost_and_only_what_was_not_committed_repeats(history: list[Any]) -> None:
    log = Log()
    for what, number in history:
        log.step(what, number)
    log.read(len(log.offsets))
    log.partition.reached(log.next)
    for _ in range(4 * len(history) + 4):
        log.step("take", 3)
        for offset in sorted(log.partition.held):
            log.partition.finish([offset])
            log.done.add(offset)
        log.commit()
    assert log.done == set(log.offsets)


def test_in_the_order_of_keys_one_of_a_key_is_out_at_a_time() -> None:
    partition = Partition("t", 0, "q", Marks(0, 0, 0, {}), ordering="key")
    for offset, key in enumerate([b"a", b"a", b"b", None, b"a"]):
        partition.add(Entry(offset, str(offset), b"", key))
    partition.committed(partition.marks(), 0, [])
    serials = count()
    taken = [each.id for each in partition.take(9, LONG, "w", serials, "m")]
    assert taken == ["0", "2", "3"]
    partition.finish([0])
    assert [each.id for each in partition.take(9, LONG, "w", serials, "m")] == ["1"]
    partition.give_back(1)
    assert [each.id for each in partition.take(9, LONG, "w", serials, "m")] == ["1"]


def test_in_the_order_of_partitions_one_is_out_at_a_time() -> None:
    partition = Partition("t", 0, "q", Marks(0, 0, 0, {}), ordering="partition")
    for offset in range(3):
        partition.add(Entry(offset, str(offset), b""))
    partition.committed(partition.marks(), 0, [])
    for expected in ("0", "1", "2"):
        (taken,) = partition.take(9, LONG, "w", count(), "m")
        assert taken.id == expected
        partition.finish([taken.receipt.offset])


def test_a_full_window_stops_its_partition_until_the_first_is_done() -> None:
    partition = Partition("t", 0, "q", Marks(0, 0, 0, {}), window=5)
    for offset in range(10):
        partition.add(Entry(offset, str(offset), b""))
    partition.committed(partition.marks(), 0, [])
    first, *others = partition.take(9, LONG, "w", count(), "m")
    assert len(others) == 4
    for each in others:
        partition.finish([each.receipt.offset])
    assert not partition.ready()
    assert partition.marks().offset == 0
    partition.finish([first.receipt.offset])
    assert partition.ready()
    assert partition.marks().offset == 5


def read_ahead(share: float, number: int, size: int = 1) -> Partition:
    partition = Partition("t", 0, "q", decode(0, ""))
    partition.share = share
    for offset in range(number):
        partition.add(Entry(offset, str(offset), bytes(size)))
    partition.committed(partition.marks()._replace(reach=1 << 40), 0, [])
    return partition


def test_reading_pauses_at_the_share_of_messages_and_goes_on_at_its_half() -> None:
    assert not read_ahead(0.25, AHEAD // 4 - 1).wants_pause()
    assert not read_ahead(0.0001, LEAST_AHEAD - 1).wants_pause(), "a small one is some all the same"
    partition = read_ahead(0.25, AHEAD // 4)
    assert partition.wants_pause()
    partition.take(AHEAD // 8, LONG, "w", count(), "m")
    assert not partition.wants_more()
    partition.take(1, LONG, "w", count(), "m")
    assert partition.wants_more()


def test_large_messages_pause_reading_sooner() -> None:
    each = AHEAD_BYTES // 40 + 1
    assert not read_ahead(0.25, 9, each).wants_pause()
    partition = read_ahead(0.25, 10, each)
    assert partition.wants_pause()
    taken = partition.take(5, LONG, "w", count(), "m")
    assert not partition.wants_more()
    partition.take(1, LONG, "w", count(), "m")
    assert partition.wants_more()
    partition.give_back(taken[0].receipt.offset)
    assert not partition.wants_more(), "what was given back counts again"
    assert partition.forget_ready()
    assert partition.wants_more()


def test_what_is_ready_far_beyond_what_is_held_is_handed_over_after_one_commit() -> None:
    """All between the two was finished before the partition was taken over."""
    partition = Partition("t", 0, "q", Marks(100, 100, 300, {100: NEVER}))
    for offset in (100, *range(300, 303)):
        partition.add(Entry(offset, str(offset), b""))
    partition.committed(partition.marks(), 300, [])
    serials = count()
    (first,) = partition.take(1, LONG, "w", serials, "m")
    assert first.receipt.offset == 100
    assert partition.ready(beyond_reach=True)
    partition.committed(partition.marks(), 300, [])
    assert [each.receipt.offset for each in partition.take(9, LONG, "w", serials, "m")] == [
        300,
        301,
        302,
    ]


def test_one_commit_allows_as_much_as_was_asked_for() -> None:
    partition = Partition("t", 0, "q", Marks(0, 0, 0, {}))
    for offset in range(1000):
        partition.add(Entry(offset, str(offset), b""))
    partition.committed(partition.marks(), 0, [])
    first = len(partition.take(500, LONG, "w", count(), "m"))
    assert 0 < first < 500
    partition.committed(partition.marks(), 0, [])
    assert len(partition.take(500, LONG, "w", count(), "m")) == 500


def test_a_commit_does_not_look_at_all_that_was_read_ahead() -> None:
    class Counted(dict[int, Entry]):
        looks = 0

        def __contains__(self, offset: object) -> bool:
            self.looks += 1
            return super().__contains__(offset)

        def __iter__(self) -> Iterator[int]:
            raise AssertionError("all entries")

    partition = read_ahead(1.0, 5000)
    partition._entries = entries = Counted(partition._entries)
    taken = [each.receipt.offset for each in partition.take(20, LONG, "w", count(), "m")]
    partition.finish(taken[1:])
    marks = partition.marks()
    assert (marks.offset, marks.upper, set(marks.unfinished)) == (0, 20, {0})
    assert entries.looks < 100
