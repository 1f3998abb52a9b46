"""One partition in the hands of one worker: what is ready, held, finished, and what to commit.

Pure bookkeeping without input or output: its owner, `assignment`, guards it.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Collection, Iterable, Iterator

import msgspec

from taskline.kafka.location import BY_KEY, BY_PARTITION, UNORDERED
from taskline.kafka.marks import NEVER, Counts, Marks
from taskline.message import Delivery
from taskline.transports.kafka.records import Entry

LEAST_SLACK = 16
"""Messages that may be handed over beyond those that the last commit told of."""
AHEAD, AHEAD_BYTES = 32_000, 32 << 20
"""Messages and bytes that a member reads ahead, over all its partitions. At its share fetching a
partition pauses, and goes on at half of it: librdkafka then begins anew, which may take as long
as the broker has a fetch of other partitions wait (fetch.wait.max.ms)."""
LEAST_AHEAD = 200


class Receipt(msgspec.Struct, frozen=True, gc=False):
    """What proves a delivery: it is one handing-over of one record to one membership."""

    topic: str
    partition: int
    offset: int
    serial: int
    member: str


class Partition:
    """The state of one partition since it was assigned."""

    def __init__(
        self,
        topic: str,
        number: int,
        queue: str,
        marks: Marks,
        *,
        high: int | None = None,
        ordering: str = UNORDERED,
        window: int = 10_000,
        level: int = 0,
    ) -> None:
        """`marks` are those of the last commit; `high` is the end of the log when it was read."""
        self.topic = topic
        self.number = number
        self.queue = queue
        self.level = level
        """Of priority: the higher goes first."""
        self.position = marks.offset
        """The first offset that was not read yet."""
        self.draining = False
        """Nothing more is handed over: the partition goes to another worker."""
        self.paused = False
        self.share = 1.0
        """Of what the member may read ahead."""
        self.held: dict[int, Entry] = {}
        """In somebody's hands, by their offsets."""
        self.unsure: dict[int, Entry] = {}
        """Finished here, but the broker has not said that it knows."""
        self.reach = 0
        """The last commit that succeeded allows handing over below this offset."""
        self.sure = marks.offset
        """All below was committed as finished."""
        self.cut = 0
        """How far the commits' metadata fell short of what is finished."""
        self._restored = marks
        below = min(marks.reach, marks.offset if high is None else high)
        self._unclean = below if below > marks.offset else 0
        self._entries: dict[int, Entry] = {}
        self._order: deque[int] = deque()
        self._ready: list[int] = []
        self._bytes = 0
        """Of the messages that nobody holds."""
        self._counts: dict[int, Counts] = {}
        self._upper = marks.upper
        self._handed = marks.offset
        self._slack = LEAST_SLACK
        self._ordering = ordering
        self._window = window
        self._busy: set[bytes] = set()
        self._waiting: dict[bytes, list[int]] = {}

    # ---- reading

    def add(self, entry: Entry) -> None:
        """A record was read."""
        offset = entry.offset
        if offset < self.position:
            return
        if offset >= self._unclean:
            self._take_over()
        self.position = offset + 1
        counts = NEVER
        if offset < self._restored.upper:
            known = self._restored.unfinished.get(offset)
            if known is None:
                return
            counts = known
        if counts != NEVER:
            self._counts[offset] = counts
        self._entries[offset] = entry
        self._order.append(offset)
        self._bytes += len(entry.frame)
        heapq.heappush(self._ready, offset)

    def reached(self, position: int) -> None:
        """The end of the log was read; what is no message counts as read too."""
        self.position = max(self.position, position)
        self._take_over()

    @property
    def in_doubt(self) -> bool:
        """Whether something that the last holder may have had is unread. Until all is, nothing
        is handed over, and nothing committed but in leaving: the loss of each counts once."""
        return self._unclean > 0

    def _take_over(self) -> None:
        """All that the last holder may have had is read: it was handed over and lost once more."""
        if self._unclean:
            self.put_down(self._unclean, {each.id for each in self._entries.values()})
            self._unclean = 0

    def wants_pause(self) -> bool:
        """Whether enough was read ahead."""
        return not self.in_doubt and self._has_read(1.0)

    def wants_more(self) -> bool:
        """Whether a paused partition is to be read again."""
        return not self._has_read(0.5)

    def _has_read(self, part: float) -> bool:
        """Whether this part of what may be read ahead is there."""
        number = part * max(LEAST_AHEAD, self.share * AHEAD)
        return (
            len(self._ready) >= number
            or self._bytes >= part * self.share * AHEAD_BYTES
            or self.position >= self.low() + self._window + number
        )

    # ---- handing over

    def low(self) -> int:
        """The first unfinished offset: what is committed."""
        order, entries = self._order, self._entries
        while order and order[0] not in entries:
            order.popleft()
        if order:
            return order[0]
        restored, position = self._restored, self.position
        if position >= restored.upper:
            return position
        unread = (offset for offset in restored.unfinished if offset >= position)
        return min(unread, default=restored.upper)

    def ready(self, beyond_reach: bool = False) -> bool:
        """Whether something can be handed over; `beyond_reach`: once the reach was committed."""
        self._skip()
        if not self._ready or (self._ordering == BY_PARTITION and self.held):
            return False
        return self._ready[0] < self._end(beyond_reach)

    def _end(self, beyond_reach: bool) -> int:
        """Below it messages may be handed over."""
        if self.draining or self.cut or self.in_doubt:
            return 0
        window = self.low() + self._window
        return window if beyond_reach else min(window, self.reach)

    def _skip(self) -> None:
        """Set aside what must wait for another message of its key."""
        if self._ordering != BY_KEY:
            return
        while self._ready:
            key = self._entries[self._ready[0]].key
            if key is None or key not in self._busy:
                return
            heapq.heappush(self._waiting.setdefault(key, []), heapq.heappop(self._ready))

    def take(
        self, limit: int, until: float, consumer: str, serials: Iterator[int], member: str
    ) -> list[Delivery]:
        """Hand over up to `limit` messages."""
        taken: list[Delivery] = []
        topic, number, queue, held = self.topic, self.number, self.queue, self.held
        ready, entries, counts_of = self._ready, self._entries, self._counts
        by_key, end = self._ordering == BY_KEY, self._end(False)
        if self._ordering == BY_PARTITION:
            limit = 0 if held else min(limit, 1)
        while len(taken) < limit:
            if by_key:
                self._skip()
            if not ready or ready[0] >= end:
                break
            offset = heapq.heappop(ready)
            entry = held[offset] = entries[offset]
            entry.serial = serial = next(serials)
            entry.until = until
            entry.consumer = consumer
            frame = entry.frame
            self._bytes -= len(frame)
            if by_key and entry.key is not None:
                self._busy.add(entry.key)
            deliveries, lost = entry.deliveries + 1, entry.lost
            if offset in counts_of:
                before = counts_of[offset]
                deliveries += before.deliveries
                lost += before.lost
            receipt = Receipt(topic, number, offset, serial, member)
            taken.append(Delivery(entry.id, queue, frame, deliveries, lost, receipt))
            if offset >= self._handed:
                self._handed = offset + 1
        self._slack = max(LEAST_SLACK, limit)
        return taken

    def holds(self, receipt: Receipt) -> bool:
        """Whether the message of a receipt is still held."""
        entry = self.held.get(receipt.offset) or self.unsure.get(receipt.offset)
        return entry is not None and entry.serial == receipt.serial

    def finish(self, offsets: Iterable[int]) -> None:
        """Held messages are done."""
        held, unsure, entries, counts = self.held, self.unsure, self._entries, self._counts
        for offset in offsets:
            entry = held.pop(offset, None)
            if entry is None:
                continue
            unsure[offset] = entry
            del entries[offset]
            if offset in counts:
                del counts[offset]
            if offset >= self._upper:
                self._upper = offset + 1
            self._free(entry)

    def unfinish(self, offset: int) -> None:
        """What was finished is not: the broker refused to know."""
        entry = self.unsure.pop(offset, None)
        if entry is None:
            return
        self._entries[offset] = self.held[offset] = entry
        if not self._order or offset < self._order[0]:
            self._order.appendleft(offset)
        else:
            self._order = deque(sorted({*self._order, offset}))
        if self._ordering == BY_KEY and entry.key is not None:
            self._busy.add(entry.key)

    def give_back(self, offset: int, deliveries: int = 1, lost: int = 0) -> None:
        """A held message is ready again, handed over and lost so many times more."""
        entry = self.held.pop(offset)
        before = self._counts.get(offset, NEVER)
        self._counts[offset] = Counts(before.deliveries + deliveries, before.lost + lost)
        self._bytes += len(entry.frame)
        heapq.heappush(self._ready, offset)
        self._free(entry)

    def _free(self, entry: Entry) -> None:
        """The next message of its key may go."""
        if self._ordering != BY_KEY or entry.key is None:
            return
        self._busy.discard(entry.key)
        for offset in self._waiting.pop(entry.key, ()):
            heapq.heappush(self._ready, offset)

    def expire(self, now: float) -> int:
        """Take back what nobody renewed in time; returns how many."""
        over = [offset for offset, held in self.held.items() if held.until <= now]
        for offset in over:
            self.give_back(offset, lost=1)
        return len(over)

    def prolong(self, seconds: float) -> None:
        """Let all leases end so much later."""
        for held in self.held.values():
            held.until += seconds

    def put_down(self, below: int, started: Collection[str]) -> int:
        """Count one more handing-over of all unfinished messages below an offset, and one more
        loss of those whose ids are in `started`. Returns how many there are."""
        found = [entry for offset, entry in self._entries.items() if offset < below]
        for entry in found:
            before = self._counts.get(entry.offset, NEVER)
            self._counts[entry.offset] = Counts(
                before.deliveries + 1, before.lost + (entry.id in started)
            )
        return len(found)

    def forget_ready(self) -> int:
        """Finish everything that nobody holds: the queue was purged. Returns how many."""
        self._ready += [offset for waiting in self._waiting.values() for offset in waiting]
        self._waiting.clear()
        for offset in self._ready:
            del self._entries[offset]
            self._counts.pop(offset, None)
            self._upper = max(self._upper, offset + 1)
        gone, self._ready, self._bytes = len(self._ready), [], 0
        return gone

    # ---- committing

    def marks(self, *, closing: bool = False) -> Marks:
        """What to commit now. `closing`: nobody may be handed anything after that, and what is
        still held counts as lost."""
        offset, upper = self.low(), self._upper
        restored, entries = self._restored, self._entries
        unfinished: dict[int, Counts] = {}
        for each in self._order:  # not all entries: far more may be read ahead
            if each >= upper:
                break
            if each in entries:
                unfinished[each] = NEVER
        for each, counts in self._counts.items():
            upper = max(upper, each + 1)
            unfinished[each] = counts
        if self.position < restored.upper:
            unfinished.update(
                (each, counts)
                for each, counts in restored.unfinished.items()
                if each >= self.position
            )
        if closing:
            for each in self.held:
                counts = self._counts.get(each, NEVER)
                unfinished[each] = Counts(counts.deliveries + 1, counts.lost + 1)
                upper = max(upper, each + 1)
        for each in self._entries if upper > self._upper else ():
            if each < upper:
                unfinished.setdefault(each, NEVER)
        reach = max(offset, self._unclean)
        if not closing:
            # What is ready may lie far beyond what was handed over, all between being finished.
            following = max(self._handed, self._ready[0] if self._ready else 0)
            reach = max(self.reach, following + self._slack, offset)
        return Marks(offset, reach, max(upper, offset), unfinished)

    def committed(self, marks: Marks, told: int, sure: list[int]) -> None:
        """A commit of these marks succeeded, with all that is finished below `told`."""
        self.reach = max(self.reach, marks.reach)
        self.sure = marks.offset
        self.cut = marks.upper - told
        for offset in sure:
            self.unsure.pop(offset, None)
