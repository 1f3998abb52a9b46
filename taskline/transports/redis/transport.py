"""Messages in Redis, for many processes of many machines, on one server or several.

Every call is one script on a server, which takes a whole batch and reads the
server's clock. A receipt has a token that is never used twice, and the number of
the node that it is of. The servers know nothing of each other: a message is on the
one that its id picks or, while that one does not answer, on the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from taskline.clock import SYSTEM_CLOCK, Clock
from taskline.errors import TransportError
from taskline.message import Delivery
from taskline.redis.interrupt import Interrupt
from taskline.redis.location import Location, locate
from taskline.registry import Spec
from taskline.transports.nodes import RECHECK, NodesTransport
from taskline.transports.redis.member import Member
from taskline.transports.redis.store import AT_THE_BELL, Claim, Store
from taskline.transports.redis.wake import wait_and_ask, wait_for_bell

if TYPE_CHECKING:
    from typing_extensions import Self

    from taskline.backends.base import Backend

MARGIN = 0.5
"""Seconds beyond its wait for which what a receiver sent along is carried out."""


class RedisTransport(NodesTransport[Store]):
    """One Redis server, or several without order between them; see the module's docstring."""

    scheme = "redis"
    product = "Redis"

    def __init__(self, locations: Sequence[Location], clock: Clock = SYSTEM_CLOCK) -> None:
        self._nodes = [Member(each, clock, number) for number, each in enumerate(locations)]
        super().__init__(self._nodes, max(each.timeout for each in locations), clock)
        self.location = locations[0] if len(locations) == 1 else None
        """Where the store is, unless there are several."""
        self._interrupt = Interrupt()
        self._looked_into: set[str] = set()
        self._look_at = 0.0
        """Until then nothing is in those queues for which no bell rings."""

    @classmethod
    def from_spec(cls, spec: Spec, clock: Clock) -> Self:
        """URLs, or a mapping with `nodes`; see `taskline.redis.location.locate`."""
        return cls(locate(spec), clock)

    # Receiving

    def receive(
        self, queues: Sequence[str], limit: int, lease: float, wait: float, consumer: str
    ) -> list[Delivery]:
        clock, interrupt = self.clock, self._interrupt
        until = clock.monotonic() + wait
        if self._alone is not None and not self._alone.store.own_time:
            return self._receive_alone(queues, limit, lease, until, consumer)
        while True:
            taken, after = self._claim(queues, limit, lease, consumer)
            interrupted = interrupt.spent()
            now = clock.monotonic()
            if taken or interrupted or now >= until:
                return taken
            seconds = min(until - now, after, RECHECK)
            if seconds > 0:
                self._wait(queues, clock.bound(seconds))

    def _receive_alone(
        self, queues: Sequence[str], limit: int, lease: float, until: float, consumer: str
    ) -> list[Delivery]:
        """Of one server: with the wait goes the claim, and who has just looked begins to wait."""
        clock, interrupt = self.clock, self._interrupt
        now, interrupted = clock.monotonic(), interrupt.spent()
        while True:
            seconds = min(until, self._look_at) - now
            if seconds <= 0 or interrupted or self._looked_into != set(queues):
                assert self._alone is not None
                claim = self._alone.store.claim(queues, limit, lease, consumer)
            else:
                claim = self._claim_at_the_bell(queues, limit, lease, seconds, consumer)
            now = clock.monotonic()
            # After many there may be more, of which one who waits is handed but a few.
            pause = min(claim.after, RECHECK) if len(claim.taken) < AT_THE_BELL else 0.0
            self._look_at, self._looked_into = now + pause, set(queues)
            self.newest_revocation = claim.revocations
            if claim.taken or interrupt.spent() or interrupted or now >= until:
                return claim.taken

    def _claim_at_the_bell(
        self, queues: Sequence[str], limit: int, lease: float, seconds: float, consumer: str
    ) -> Claim:
        assert self._alone is not None
        store, listener = self._alone.store, self._nodes[0].listener
        begun = self.clock.monotonic()
        claim = store.packed_claim(queues, limit, lease, consumer, seconds + MARGIN)
        try:
            blob = wait_and_ask(listener, queues, claim, self._interrupt, seconds)
        except TransportError:
            store.doubt()
            raise
        if blob is None or self.clock.monotonic() > begun + seconds + lease / 2:
            # No answer; or this process was stopped, and what was handed over may be another's.
            store.doubt()
            return store.claim(queues, limit, lease, consumer)
        return store.claimed(blob)

    def _wait(self, queues: Sequence[str], seconds: float) -> None:
        members = [each for each in self._nodes if not each.down]
        seconds = self._until_probe(seconds)
        failed = wait_for_bell(
            [each.listener for each in members], queues, self._interrupt, seconds
        )
        for listener, error in failed:
            if self._alone is not None:
                raise error
            next(each for each in members if each.listener is listener).failed(error)

    def interrupt(self) -> None:
        self._interrupt.set()

    def _number(self, delivery: Delivery) -> int:
        number: int = delivery.receipt[9]
        return number

    def shares(self, backend: Backend) -> bool:
        """Whether the backend's store is this one; of several nodes none is shared."""
        other = getattr(backend, "location", None)
        return (
            isinstance(other, Location)
            and self.location is not None
            and other.store == self.location.store
        )

    def close(self) -> None:
        for member in self._nodes:
            member.store.close()
        self._interrupt.set()
        for member in self._nodes:
            member.close()
