"""The transport `disque://host:port`: Disque's jobs under Taskline's seam."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import msgspec

from taskline.clock import SYSTEM_CLOCK, Clock
from taskline.errors import ConfigurationError, TransportError
from taskline.message import DeadLetter, Delivery, Message, Outcome
from taskline.registry import Spec, options_of
from taskline.transports.base import Capabilities, QueueStats, StoredMessage, Transport
from taskline_contrib.disque import jobs, letters
from taskline_contrib.disque.jobs import Job
from taskline_contrib.disque.nodes import PAGE, Nodes

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger("taskline.disque")

SLICE = 5.0
"""Seconds for which one GETJOB waits at most; the next one follows at once."""
DEAD_TTL = 10 * 365 * 86400
"""Seconds for which a dead letter is kept: Disque keeps nothing for ever."""
PARKED = 3600
"""Seconds after which a requeued message runs that nobody came to release."""


class DisqueTransport(Transport):
    """Messages as Disque jobs. Never run against a real Disque: see the package's docstring.

    `retry` is RETRY in whole seconds: the length of every lease, whatever `receive`
    is told. `ttl` is TTL in seconds, after which Disque drops a message however it
    stands; half of it is all the time that a message can be held under renewed
    leases. `replicate` is REPLICATE, and `timeout` the milliseconds ADDJOB has for
    it. `address` may name several nodes of one cluster: the next one is used when
    one is lost.
    """

    scheme = "disque"
    capabilities = Capabilities(
        priority=False, ordering=False, fencing=False, delete=False, idempotent=False
    )

    def __init__(
        self,
        address: str,
        clock: Clock = SYSTEM_CLOCK,
        *,
        retry: int = 30,
        ttl: int = 30 * 86400,
        replicate: int = 1,
        timeout: int = 5000,
    ) -> None:
        super().__init__(clock)
        if retry < 1 or ttl <= retry or replicate < 1 or timeout < 0:
            raise ConfigurationError(
                f"disque options retry={retry}, ttl={ttl}, replicate={replicate},"
                f" timeout={timeout}: retry is at least 1 and less than ttl,"
                " replicate at least 1, timeout at least 0"
            )
        self._nodes = Nodes(address)
        self._retry, self._ttl, self._replicate, self._timeout = retry, ttl, replicate, timeout
        self._wake = jobs.WAKE + uuid4().hex
        self._interrupted = False
        self._blocked = False

    @classmethod
    def from_spec(cls, spec: Spec, clock: Clock) -> Self:
        """`disque://:password@host:port,host:port?retry=…`, or a mapping with `address`."""
        options = options_of(spec, rest="address", retry=int, ttl=int, replicate=int, timeout=int)
        return cls(options.pop("address", "") or "localhost", clock, **options)

    def send(self, messages: Sequence[Message]) -> None:
        """Sending an id again stores it again. On an error, what was stored is taken back."""
        self._add([self._message(each) for each in messages])

    def receive(
        self, queues: Sequence[str], limit: int, lease: float, wait: float, consumer: str
    ) -> list[Delivery]:
        """Each lease ends after `retry` seconds; refuses a `lease` that is renewed too late."""
        if lease / 3 >= self._retry:
            raise TransportError(
                f"a lease of {lease:g} s is renewed after {lease / 3:g} s, but jobs are redelivered"
                f" after retry={self._retry} s: set ?retry={math.ceil(lease)} or a shorter lease",
                retryable=False,
            )
        until = self.clock.monotonic() + wait
        while True:
            taken: list[Any] = []
            for queue in queues:
                if len(taken) < limit:
                    # One by one: Disque itself would take from all of them in turns.
                    taken += self._get("NOHANG", limit - len(taken), queue)
            left = until - self.clock.monotonic()
            if not taken and left > 0 and not self._interrupted:
                taken = self._wait(queues, limit, left)
            deliveries = self._begin(taken)
            if deliveries or self._interrupted or self.clock.monotonic() >= until:
                self._interrupted = False
                return deliveries

    def interrupt(self) -> None:
        self._interrupted = True
        if self._blocked:
            try:
                self._nodes.call(
                    "ADDJOB", self._wake, b"", 0, "REPLICATE", 1, "RETRY", 0, "TTL", 60
                )
            except TransportError as error:
                log.debug("receive ends within %g s: %s", SLICE, error)

    def ack(
        self, deliveries: Sequence[Delivery], outcomes: Sequence[Outcome] = ()
    ) -> list[Delivery]:
        held = self._held(deliveries)
        # One that this node does not know may be on another: ACKJOB tells it too.
        self._acknowledge([each for each in deliveries if held[each.receipt] is not False])
        return _lost(deliveries, held)

    def release(self, deliveries: Sequence[Delivery], delay: float = 0.0) -> list[Delivery]:
        """With a delay the message is stored anew, as Disque cannot delay a job that exists."""
        held = self._held(deliveries)
        mine = [each for each in deliveries if held[each.receipt]]
        if delay > 0:
            self._add(
                [
                    (
                        each.queue,
                        Job("taskline", each.id, each.deliveries, each.lost),
                        each.frame,
                        delay,
                    )
                    for each in mine
                ]
            )
            self._acknowledge(mine)
        elif mine:
            self._nodes.call("NACK", *(each.receipt[0] for each in mine))
        return _lost(deliveries, held)

    def replace(self, pairs: Sequence[tuple[Delivery, Message]]) -> list[Delivery]:
        """The successor is stored first: a crash in between leaves both, never none."""
        held = self._held([delivery for delivery, _ in pairs])
        mine = [pair for pair in pairs if held[pair[0].receipt]]
        self._add([self._message(message, delivery.deliveries) for delivery, message in mine])
        self._acknowledge([delivery for delivery, _ in mine])
        return _lost([delivery for delivery, _ in pairs], held)

    def extend(self, deliveries: Sequence[Delivery], lease: float) -> list[Delivery]:
        """WORKING: by `retry` seconds, whatever the lease; refused by Disque at half the TTL."""
        held = self._held(deliveries)
        mine = [each for each in deliveries if held[each.receipt]]
        answers = self._nodes.pipeline([("WORKING", each.receipt[0]) for each in mine])
        for each, answer in zip(mine, answers, strict=True):
            held[each.receipt] = not isinstance(answer, Exception)
        return _lost(deliveries, held)

    def bury(self, burials: Sequence[tuple[Delivery, DeadLetter]]) -> list[Delivery]:
        """Into the queue `taskline:dead:{queue}`, first there and then out of its own."""
        held = self._held([delivery for delivery, _ in burials])
        mine = [burial for burial in burials if held[burial[0].receipt]]
        self._add(
            [
                (
                    jobs.DEAD + letter.queue,
                    Job(
                        "taskline",
                        letter.id,
                        delivery.deliveries,
                        letter=msgspec.structs.replace(letter, frame=b""),
                    ),
                    letter.frame,
                    0.0,
                )
                for delivery, letter in mine
            ],
            ttl=DEAD_TTL,
        )
        self._acknowledge([delivery for delivery, _ in mine])
        return _lost([delivery for delivery, _ in burials], held)

    def recover(self, consumer: str, started: Collection[str]) -> int:
        """None: Disque does not know who holds a job. It comes back after `retry` seconds."""
        return 0

    def stats(self, queues: Sequence[str] | None = None) -> list[QueueStats]:
        """What is ready and dead. A queue that never had a ready message is not known."""
        if queues is None:
            found = {
                name.removeprefix(jobs.DEAD)
                for name in self._nodes.queues()
                if not name.startswith(jobs.WAKE)
            }
            queues = list(found)
        names = sorted(queues)
        lengths = self._nodes.pipeline(
            [("QLEN", prefix + name) for name in names for prefix in ("", jobs.DEAD)], strict=True
        )
        return [
            QueueStats(queue=name, ready=ready, delayed=None, leased=None, dead=dead)
            for name, ready, dead in zip(names, lengths[::2], lengths[1::2], strict=True)
        ]

    def peek(self, queue: str, limit: int = 10, offset: int = 0) -> list[StoredMessage]:
        """Beyond what is ready it reads all jobs of the queue that are not."""
        if limit < 1:
            return []
        now = self.clock.time()
        ready = self._nodes.call("QPEEK", queue, offset + limit)
        answers = self._nodes.pipeline(
            [("SHOW", found[1]) for found in ready[offset:]], strict=True
        )
        page = [jobs.shown(answer) for answer in answers if answer is not None]
        if len(ready) < offset + limit:
            others = sorted(self._nodes.jobs(queue, "active"), key=lambda job: job.requeue_within)
            skip = max(0, offset - len(ready))
            page += others[skip : skip + limit - len(page)]
        return [jobs.stored(queue, job, now) for job in page]

    def purge(self, queue: str) -> int:
        """What becomes due meanwhile may be purged as well."""
        purged = 0
        while found := self._nodes.call("QPEEK", queue, PAGE):
            ids = [job_id for _, job_id, _ in found]
            # Taken out of the queue first: then nobody gets it.
            taken = self._nodes.pipeline([("DEQUEUE", job_id) for job_id in ids], strict=True)
            mine = [job_id for job_id, number in zip(ids, taken, strict=True) if number]
            if not mine:
                break
            purged += self._nodes.call("FASTACK", *mine)
        now = self.clock.time()
        delayed = [job.job_id for job in self._nodes.jobs(queue, "active") if job.delayed(now)]
        return purged + (self._nodes.call("FASTACK", *delayed) if delayed else 0)

    def delete(self, ids: Sequence[str]) -> list[str]:
        """Raises `NotSupported` for any: Disque has ids of its own."""
        if not ids:
            return []
        raise self._refuse("delete a message by its id")

    def dead_letters(
        self, queue: str | None = None, limit: int = 100, offset: int = 0
    ) -> list[DeadLetter]:
        """Of all queues: the newest `offset + limit` of each are read."""
        names = letters.queues(self._nodes) if queue is None else [jobs.DEAD + queue]
        most = -(offset + limit)
        found: dict[str, DeadLetter] = {}
        if most:
            pages = self._nodes.pipeline([("QPEEK", name, most) for name in names], strict=True)
            read = [letters.read(*job) for page in pages for job in page]
            for letter in sorted(read, key=lambda each: each.at, reverse=True):
                found.setdefault(letter.id, letter)
        return list(found.values())[offset : offset + limit]

    def dead_letter(self, id: str) -> DeadLetter | None:
        """Reads all dead letters until it is found."""
        found = letters.find(self._nodes, [id]).get(id)
        return found[0].letter if found else None

    def requeue(self, messages: Sequence[Message]) -> list[str]:
        """Reads all dead letters. Of several who requeue one at once, one succeeds."""
        dead = letters.find(self._nodes, [message.header.id for message in messages])
        requeued = []
        for message in messages:
            found = dead.pop(message.header.id, [])
            if not found:
                continue
            deliveries = max(each.deliveries for each in found)
            queue, job, frame, delay = self._message(message, deliveries)
            # Parked until the letter is ours, so that a crash in between loses neither.
            (copy,) = self._add([(queue, job, frame, delay or PARKED)])
            if not self._nodes.call("DELJOB", *(each.job_id for each in found)):
                self._nodes.call("FASTACK", copy)
                continue
            if not delay:
                self._nodes.call("ENQUEUE", copy)
            requeued.append(message.header.id)
        return requeued

    def purge_dead(self, ids: Sequence[str]) -> int:
        """Reads all dead letters."""
        deletions = [
            ("DELJOB", *(each.job_id for each in found))
            for found in letters.find(self._nodes, ids).values()
        ]
        return sum(number > 0 for number in self._nodes.pipeline(deletions, strict=True))

    def ping(self) -> None:
        answer = self._nodes.call(
            "ADDJOB", self._wake, b"", 0, "REPLICATE", 1, "RETRY", 0, "TTL", 60
        )
        self._nodes.call("FASTACK", answer)

    def info(self) -> dict[str, Any]:
        told = self._nodes.call("INFO")
        hello = self._nodes.call("HELLO")
        return {
            "transport": self.scheme,
            "address": self._nodes.address,
            "version": f"Disque {told.get('disque_version', '?')}",
            "nodes": len(hello) - 2,
            "jobs": told.get("registered_jobs"),
        }

    def close(self) -> None:
        self._nodes.close()

    # jobs

    def _message(self, message: Message, deliveries: int = 0) -> tuple[str, Job, bytes, float]:
        header = message.header
        delay = 0.0 if header.eta is None else max(0.0, header.eta - self.clock.time())
        job = Job("taskline", header.id, max(deliveries, header.deliveries))
        return (header.queue, job, message.frame, delay)

    def _add(
        self, new: Sequence[tuple[str, Job, bytes, float]], ttl: int | None = None
    ) -> list[bytes]:
        """ADDJOB for each (queue, job, frame, delay in seconds); their ids, or none is stored."""
        commands = []
        for queue, job, frame, delay in new:
            # WORKING has to be allowed for half of `ttl` after the delay.
            life = (self._ttl if ttl is None else ttl) + 2 * math.ceil(delay)
            commands.append(
                (
                    *("ADDJOB", queue, jobs.write(job, frame), self._timeout),
                    *("REPLICATE", self._replicate, "RETRY", self._retry, "TTL", life),
                    *(("DELAY", math.ceil(delay)) if delay > 0 else ()),
                )
            )
        answers = self._nodes.pipeline(commands)
        wrong = [answer for answer in answers if isinstance(answer, Exception)]
        if wrong:
            stored = [answer for answer in answers if not isinstance(answer, Exception)]
            if stored:
                self._nodes.call("FASTACK", *stored)
            self._nodes.refuse(wrong[0])
        return answers

    def _acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        if deliveries:
            self._nodes.call("ACKJOB", *(each.receipt[0] for each in deliveries))

    def _get(self, how: str, limit: int, *queues: str) -> list[Any]:
        return (
            self._nodes.call(
                "GETJOB", *how.split(), "COUNT", limit, "WITHCOUNTERS", "FROM", *queues
            )
            or []
        )

    def _wait(self, queues: Sequence[str], limit: int, left: float) -> list[Any]:
        """What the queues have within `left` seconds, or within `SLICE`, or until interrupted."""
        milliseconds = math.ceil(min(self.clock.bound(left), SLICE) * 1000)
        self._blocked = True
        try:
            if self._interrupted:
                return []
            found = self._get(f"TIMEOUT {milliseconds}", limit, *queues, self._wake)
        finally:
            self._blocked = False
        woken = [job[1] for job in found if job[0] == self._wake.encode()]
        if woken:
            self._nodes.call("FASTACK", *woken)
        return [job for job in found if job[0] != self._wake.encode()]

    def _begin(self, taken: Sequence[Any]) -> list[Delivery]:
        """Deliveries of jobs that GETJOB gave, each now held for `retry` seconds.

        GETJOB leaves a job the time that it had left in its queue, which may be nothing.
        """
        answers = self._nodes.pipeline([("WORKING", job[1]) for job in taken])
        deliveries = []
        for (queue, job_id, body, _, nacks, _, again), answer in zip(taken, answers, strict=True):
            if isinstance(answer, Exception) and not str(answer).startswith("TOOLATE"):
                continue
            job, frame = jobs.read(body, job_id.decode())
            deliveries.append(
                Delivery(
                    job.id,
                    queue.decode(),
                    frame,
                    job.deliveries + nacks + again + 1,
                    job.lost + again,
                    (job_id.decode(), nacks + again),
                )
            )
        return deliveries

    def _held(self, deliveries: Sequence[Delivery]) -> dict[tuple[str, int], bool | None]:
        """By receipt, whether a delivery is the last one of its job; None where it is unknown.

        Another worker may get the job between this look and what follows.
        """
        answers = self._nodes.pipeline(
            [("SHOW", each.receipt[0]) for each in deliveries], strict=True
        )
        held: dict[tuple[str, int], bool | None] = {}
        for delivery, answer in zip(deliveries, answers, strict=True):
            _, count = delivery.receipt
            if answer is None:
                held[delivery.receipt] = None
            else:
                job = jobs.shown(answer)
                held[delivery.receipt] = job.state == "active" and job.nacks + job.again == count
        return held


def _lost(
    deliveries: Sequence[Delivery], held: dict[tuple[str, int], bool | None]
) -> list[Delivery]:
    return [each for each in deliveries if not held[each.receipt]]
