"""The lines of a process: which there are, what they share, and of which queues more can be used.

Owned by the I/O thread.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from taskline.limiting import Rulebook
from taskline.worker.limits.permits import Line, Places, Tokens

FEW = 2000
"""Lines that are remembered though nothing waits in them."""


class Lines:
    """Those in which jobs wait, by task, queue and key; whose turn it is comes first."""

    def __init__(self, book: Rulebook) -> None:
        self.book = book
        self._busy: dict[tuple[str, str, str], Line] = {}
        self._quiet: dict[tuple[str, str, str], Line] = {}
        """Those in which nothing waits, remembered for what they have learned."""
        self._known: dict[str, Tokens | Places] = {}
        """What lines share, by the name of the limit."""
        self._whole: dict[str, Line] = {}
        """For each queue with limits a line of its own in which nobody waits."""
        self._limited: dict[tuple[str, str], bool] = {}

    def __iter__(self) -> Iterator[Line]:
        return iter(self._busy.values())

    def limits(self, task: str, queue: str) -> bool:
        """Whether messages of this task in this queue are subject to limits."""
        found = self._limited.get((task, queue))
        if found is None:
            own, shared = self.book.of_task(task), self.book.of_queue(queue)
            found = self._limited[task, queue] = own is not None or shared is not None
        return found

    def line(self, task: str, queue: str, key: str, is_async: bool) -> Line:
        """The line of these, which is busy from now on."""
        which = task, queue, key
        line = self._busy.get(which) or self._quiet.pop(which, None) or self._new(which, is_async)
        self._busy[which] = line
        return line

    def _new(self, which: tuple[str, str, str], is_async: bool) -> Line:
        rules = self.book.rules(*which)
        tokens = [self._known_tokens(Tokens(each)) for each in rules.buckets]
        places = [self._known_places(Places(each)) for each in rules.semaphores]
        return Line(which, is_async, tokens, places)

    def _known_tokens(self, fresh: Tokens) -> Tokens:
        found = self._known.setdefault(fresh.name, fresh)
        return found if isinstance(found, Tokens) else fresh

    def _known_places(self, fresh: Places) -> Places:
        found = self._known.setdefault(fresh.name, fresh)
        return found if isinstance(found, Places) else fresh

    def was_asked_for(self, line: Line) -> None:
        """It comes last the next time."""
        self._busy[line.which] = self._busy.pop(line.which)

    def follow(self, book: Rulebook, holding: Collection[Line]) -> None:
        """Let the jobs wait by these rules from now on; lines are `holding` whose jobs run."""
        busy = list(self._busy.items())
        self.book = book
        self._busy, self._quiet, self._whole, self._limited = {}, {}, {}, {}
        self._known = {each.name: each for line in holding for each in line.places}
        for which, line in busy:
            fresh = self.line(*which, line.is_async)
            fresh.jobs, fresh.moved_at, fresh.mean = line.jobs, line.moved_at, line.mean

    def quieten(self, holding: Collection[Line]) -> None:
        """Put those aside in which nothing waits; forget all such if they are many."""
        for which, line in list(self._busy.items()):
            if not line.jobs:
                self._quiet[which] = self._busy.pop(which)
        if len(self._quiet) > FEW:
            self._quiet.clear()
            used = {
                each.name
                for line in (*self._busy.values(), *holding, *self._whole.values())
                for each in line.limits
            }
            self._known = {name: each for name, each in self._known.items() if name in used}

    # What waits, for those who ask for more

    @property
    def waiting(self) -> int:
        """How many jobs wait here."""
        return sum(len(line.jobs) for line in self)

    def ready(self, now: float, is_async: bool) -> int:
        """How many jobs here wait for nothing but a slot."""
        return sum(
            len(line.jobs) for line in self if line.is_async == is_async and line.ready_at <= now
        )

    def open_queues(self, queues: list[str], now: float) -> list[str]:
        """Those of these queues of which more can be used: that are not held up as a whole."""
        return [each for each in queues if self._lacks(each, now) != 0]

    def scant_queues(self, queues: list[str], now: float) -> tuple[list[str], int]:
        """Queues that are held up, and of which few wait here; and how many more would do."""
        lacking = {each: self._lacks(each, now) or 0 for each in queues}
        scant = [each for each in queues if lacking[each]]
        return scant, sum(lacking.values())

    def _lacks(self, queue: str, now: float) -> int | None:
        """How many of a queue that is held up should wait here besides those that do.

        None for a queue that is not held up, 0 for one of which enough are here.
        """
        whole = self._whole.get(queue)
        if whole is None:
            if self.book.of_queue(queue) is None:
                return None
            whole = self._whole[queue] = self._new(("", queue, ""), False)
        if whole.ready_at <= now:
            return None
        here = sum(len(line.jobs) for line in self if line.which[1] == queue)
        enough = whole.keeps()
        return enough - here if here <= enough // 2 else 0
