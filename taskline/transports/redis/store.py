"""The messages on one node: each verb of a transport as one script call for a batch."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

from taskline.chunking import chunks
from taskline.clock import Clock
from taskline.message import DeadLetter, Delivery, Message, Outcome
from taskline.redis.connection import Lost, ServerError, Word
from taskline.redis.node import Node
from taskline.redis.packing import milliseconds, pack_id, pack_outcome
from taskline.redis.script import Script
from taskline.transports.base import QueueStats, StoredMessage
from taskline.transports.redis.records import (
    CLAIMED,
    pack_letter,
    pack_message,
    token_of,
    unpack_claim,
    unpack_letter,
    unpack_stored,
)

PUSH = Script("push", common=False)
SEND = Script("send")
CLAIM = Script("claim", when_full=True)
ACK = Script("ack", "outcome", when_full=True)
RELEASE = Script("release", when_full=True)
EXTEND = Script("extend", when_full=True)
REPLACE = Script("replace", when_full=True)
BURY = Script("bury", "letters", when_full=True)
RECOVER = Script("recover", when_full=True)
REQUEUE = Script("requeue", "letters")
PURGE_DEAD = Script("purge_dead", "letters", when_full=True)
DEAD = Script("dead")
STATS = Script("stats", when_full=True)
PEEK = Script("peek", when_full=True)
PURGE = Script("purge", when_full=True)
DELETE = Script("delete", when_full=True)
MAINTAIN = Script("maintain", when_full=True)

BATCH = 1000
"""Messages that one call of a script takes at most: the server does nothing else meanwhile."""
SEND_BATCH = 250
"""Fewer, because the server keeps the memory of the largest command of each connection."""
AT_THE_BELL = 16
"""Fewer, of what is handed over to somebody who waits, and may be dead by then."""
_DELETE_BATCH = 16
"""Fewer where each may cost a walk along its queue."""


class Claim(NamedTuple):
    """What was handed over."""

    taken: list[Delivery]
    after: float
    """Seconds until more may come due or its lease end; infinite if nothing will by itself."""
    revocations: int
    """The cursor of the revocations in this store."""


class Store:
    """`number` tells it from other nodes in the receipts of one transport."""

    def __init__(self, node: Node, number: int = 0) -> None:
        self.node = node
        self.clock = node.clock
        self._number = bytes([number])
        self.own_time = type(node.clock) is not Clock
        """Whether the scripts take our time instead of the server's."""
        self._doubtful = False
        self._newest = 0.0
        self._ahead = 0.0
        self._send_head = b""

    def _now(self) -> Word:
        """For the scripts: empty, so that the server's clock decides; in tests, the tests'."""
        return self.clock.time() * 1000 if self.own_time else b""

    def send(self, messages: Sequence[Message], patience: float) -> None:
        """Store the messages whose ids are not there."""
        if len(messages) <= SEND_BATCH:
            self.node.call(*self._pack_send(messages), patience)
        else:
            self.node.call_each(map(self._pack_send, chunks(messages, SEND_BATCH)), patience)

    def _pack_send(self, messages: Sequence[Message]) -> tuple[bytes, Script]:
        if self.own_time or any(m.header.eta is not None or m.header.deliveries for m in messages):
            counts = {
                at: m.header.deliveries for at, m in enumerate(messages) if m.header.deliveries
            }
            args: list[Word] = [self._now(), json.dumps(counts) if counts else b""]
            for message in messages:
                args += pack_message(message)
            return SEND.packed(self.node.tag, args), SEND
        head = self._send_head
        if not head:
            tag = self.node.tag
            head = self._send_head = (
                b"\r\n$7\r\nEVALSHA\r\n$40\r\n%b\r\n$1\r\n1\r\n$%d\r\n%b\r\n"
            ) % (PUSH.sha, len(tag), tag)
        parts = [b"*%d" % (4 + 2 * len(messages)), head]
        for message in messages:
            key, value = pack_message(message)
            parts.append(b"$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(key), key, len(value), value))
        return b"".join(parts), PUSH

    def claim(self, queues: Sequence[str], limit: int, lease: float, consumer: str) -> Claim:
        """Lease what is due.

        When an answer did not arrive, what it handed over is handed back first.
        """
        args = [self._now(), min(limit, BATCH), milliseconds(lease), consumer, b"", *queues]
        data = CLAIM.packed(self.node.tag, args)
        for last in (False, True):
            try:
                if self._doubtful:
                    args = [self._now(), consumer, f"{self._newest:.0f}"]
                    self.node.once(RECOVER.packed(self.node.tag, args), RECOVER)
                    self._doubtful = False
                blob = self.node.once(data, CLAIM)
                break
            except Lost as error:
                self._doubtful = True
                if last or error.silent:
                    raise self.node.translate(error) from None
            except ServerError as error:
                raise self.node.translate(error) from None
        return self.claimed(blob)

    def packed_claim(
        self, queues: Sequence[str], limit: int, lease: float, consumer: str, within: float
    ) -> bytes:
        """A claim that the server carries out if it comes to it within so many seconds."""
        latest = self._ahead + (self.clock.monotonic() + within) * 1000
        args: list[Word] = [b"", min(limit, AT_THE_BELL), milliseconds(lease), consumer]
        return CLAIM.packed(self.node.tag, [*args, b"%d" % latest, *queues])

    def take(
        self, queues: Sequence[str], limit: int, lease: float, consumer: str
    ) -> tuple[list[Delivery], float]:
        """As `claim`, without what else it tells."""
        claim = self.claim(queues, limit, lease, consumer)
        return claim.taken, claim.after

    def claimed(self, blob: bytes) -> Claim:
        """What a claim was answered."""
        after, now, revocations = CLAIMED.unpack_from(blob)
        self._ahead = now - self.clock.monotonic() * 1000
        taken = unpack_claim(blob, self._number)
        if taken:
            self._newest = max(self._newest, token_of(taken[-1]))
        return Claim(taken, after / 1000 if after >= 0 else float("inf"), int(revocations))

    def doubt(self) -> None:
        """The answer of a claim did not arrive: the next one first hands back what that took."""
        self._doubtful = True

    def ack(
        self, deliveries: Sequence[Delivery], outcomes: Sequence[Outcome] = ()
    ) -> list[Delivery]:
        lost = []
        by_id = {outcome.id: outcome for outcome in outcomes}
        for queue, batch in _batches(deliveries):
            args: list[Word] = [queue, len(batch), *(each.receipt for each in batch)]
            if by_id:
                for each in batch:
                    outcome = by_id.get(each.id)
                    if outcome is not None:
                        args += pack_outcome(outcome)
            found = self.node.run(ACK, b"", *args, again=[b"1", *args])
            lost += [batch[number] for number in found]
        return lost

    def release(self, deliveries: Sequence[Delivery], delay: float) -> list[Delivery]:
        wait = milliseconds(delay) if delay > 0 else b"0"
        return self._settle(RELEASE, deliveries, lambda queue: [self._now(), wait, queue])

    def extend(self, deliveries: Sequence[Delivery], lease: float) -> list[Delivery]:
        length = milliseconds(lease)
        return self._settle(EXTEND, deliveries, lambda queue: [self._now(), length, queue])

    def _settle(
        self, script: Script, deliveries: Sequence[Delivery], head: Callable[[str], list[Word]]
    ) -> list[Delivery]:
        lost = []
        for queue, batch in _batches(deliveries):
            found = self.node.run(script, *head(queue), *(each.receipt for each in batch))
            lost += [batch[number] for number in found]
        return lost

    def replace(self, pairs: Sequence[tuple[Delivery, Message]]) -> list[Delivery]:
        def rest(message: Message) -> list[Word]:
            return [pack_message(message)[1], message.header.deliveries]

        return self._exchange(REPLACE, {each: rest(message) for each, message in pairs})

    def bury(self, burials: Sequence[tuple[Delivery, DeadLetter]]) -> list[Delivery]:
        def rest(letter: DeadLetter) -> list[Word]:
            return [letter.queue, pack_letter(letter)]

        return self._exchange(BURY, {each: rest(letter) for each, letter in burials})

    def _exchange(self, script: Script, rests: dict[Delivery, list[Word]]) -> list[Delivery]:
        """Not by queue: what is stored anew stands in the order of the batch."""
        lost = []
        for batch in chunks(list(rests), BATCH):
            args: list[Word] = [self._now(), len(batch), *(each.receipt for each in batch)]
            for each in batch:
                args += (each.queue, *rests[each])
            lost += [batch[number] for number in self.node.run(script, *args)]
        return lost

    def recover(self, consumer: str, started: Collection[str]) -> int:
        ids = [pack_id(each) for each in started]
        recovered: int = self.node.run(RECOVER, self._now(), consumer, 0, *ids)
        return recovered

    def stats(self, queues: Sequence[str] | None) -> list[QueueStats]:
        return [
            QueueStats(
                queue=name.decode(),
                ready=ready,
                delayed=delayed,
                leased=leased,
                dead=dead,
                oldest=oldest / 1000 if oldest >= 0 else None,
            )
            for name, ready, delayed, leased, dead, oldest in self.node.run(
                STATS, self._now(), *(queues or ())
            )
        ]

    def peek(self, queue: str, limit: int, offset: int) -> list[StoredMessage]:
        rows = self.node.run(PEEK, self._now(), queue, limit, offset)
        return [unpack_stored(queue, row) for row in rows]

    def purge(self, queue: str) -> int:
        total = 0
        while deleted := self.node.run(PURGE, self._now(), queue):
            total += deleted
        return total

    def delete(self, ids: Sequence[str]) -> list[str]:
        deleted = []
        for batch in chunks(list(dict.fromkeys(ids)), _DELETE_BATCH):
            found = self.node.run(DELETE, self._now(), *map(pack_id, batch))
            deleted += [batch[number] for number in found]
        return deleted

    def dead_letters(self, queue: str | None, limit: int, offset: int) -> list[DeadLetter]:
        which = "y" if queue is None else f"y:{queue}"
        found: list[DeadLetter] = []
        while limit > 0:
            some = min(limit, BATCH)
            letters = self.node.run(DEAD, which, offset, offset + some - 1)
            found += [unpack_letter(each) for each in letters if each is not None]
            if len(letters) < some:
                break
            offset, limit = offset + some, limit - some
        return found

    def dead_letter(self, id: str) -> DeadLetter | None:
        letter = self.node.command("HGET", self.node.tag + b"x", pack_id(id))
        return None if letter is None else unpack_letter(letter)

    def requeue(self, messages: Sequence[Message], patience: float) -> list[str]:
        requeued = []
        for batch in chunks(messages, BATCH):
            args: list[Word] = [self._now()]
            for message in batch:
                args += (*pack_message(message), message.header.deliveries)
            found = self.node.run(REQUEUE, *args, patience=patience)
            requeued += [batch[number].header.id for number in found]
        return requeued

    def purge_dead(self, ids: Sequence[str]) -> int:
        return sum(
            self.node.run(PURGE_DEAD, *map(pack_id, batch))
            for batch in chunks(list(dict.fromkeys(ids)), BATCH)
        )

    def maintain(self) -> None:
        self.node.run(MAINTAIN, self._now())

    def check(self) -> None:
        """Return if the server can serve us."""
        self.node.check()

    def about(self) -> dict[str, Any]:
        """What people want to know of the server."""
        return dict(self.node.about())

    def close(self) -> None:
        """End its use."""
        self.node.close()


def _batches(deliveries: Sequence[Delivery]) -> Iterator[tuple[str, Sequence[Delivery]]]:
    """Deliveries of one queue each."""
    queues: dict[str, list[Delivery]] = {}
    for delivery in deliveries:
        queues.setdefault(delivery.queue, []).append(delivery)
    for queue, some in queues.items():
        for batch in chunks(some, BATCH):
            yield queue, batch
