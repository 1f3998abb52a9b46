"""Receiving at several connectors at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from queue import SimpleQueue

from taskline.clock import Clock
from taskline.errors import TransportError
from taskline.message import Delivery
from taskline.transports.base import Transport
from taskline.transports.routed.connector import PAUSE, Connector
from taskline.transports.routed.names import Names, Place


class Receiver:
    """One looks at the connectors in turn, then waits at all of them.

    A `receive` that waits has a thread for each connector, which waits there on its
    behalf; when it returns none of them is in a transport.
    """

    def __init__(
        self, names: Names, clock: Clock, release: Callable[[Sequence[Delivery]], object]
    ) -> None:
        self._names = names
        self._clock = clock
        self._release = release
        self._state = threading.Condition()
        self._interrupted = False
        self._waiting: list[Connector] = []
        """Those in whose `receive` a thread waits; guarded by `_state`."""

    def receive(
        self, queues: Sequence[str], limit: int, lease: float, wait: float, consumer: str
    ) -> list[Delivery]:
        """As `Transport.receive`."""
        places = self._names.places(queues)
        until = self._clock.monotonic() + wait
        taken: list[Delivery] = []
        while True:
            taken = taken or self._look(places, limit, lease, consumer)
            left = until - self._clock.monotonic()
            with self._state:
                if taken or self._interrupted or left <= 0:
                    self._interrupted = False
                    return taken
            taken = self._wait(places, limit, lease, left, consumer)

    def _look(
        self, places: Sequence[Place], limit: int, lease: float, consumer: str
    ) -> list[Delivery]:
        """What there is now, in the order of the queues."""
        taken: list[Delivery] = []
        errors = []
        runs = [
            (connector, [place.name for place in run])
            for connector, run in groupby(places, key=lambda place: place.connector)
        ]
        for connector, names in runs:
            if len(taken) >= limit:
                break
            ask = partial(_ask, names, limit - len(taken), lease, 0.0, consumer)
            try:
                taken += self._names.adopted(connector, connector.attempt(ask))
            except TransportError as error:
                if not error.retryable:
                    self._hand_back(taken)
                    raise
                errors.append(error)
        if len(errors) == len(runs) > 0:
            raise errors[0]
        return taken

    def _wait(
        self, places: Sequence[Place], limit: int, lease: float, seconds: float, consumer: str
    ) -> list[Delivery]:
        """What comes first within so many seconds; another look is due when nothing came."""
        names: dict[Connector, list[str]] = {}
        for place in places:
            names.setdefault(place.connector, []).append(place.name)
        up = [connector for connector in names if not connector.down]
        most = max(1, limit // max(1, len(up)))
        if len(up) < len(names):
            seconds = min(seconds, PAUSE)
        answers: SimpleQueue[tuple[Connector, list[Delivery], Exception | None]] = SimpleQueue()

        def wait_at(connector: Connector) -> None:
            found: list[Delivery] = []
            wrong: Exception | None = None
            try:
                found = _ask(names[connector], most, lease, seconds, consumer, connector.transport)
            except Exception as error:
                wrong = error
            answers.put((connector, found, wrong))

        with self._state:
            if self._interrupted:
                return []
            self._waiting = up
        for connector in up:
            connector.waiter().do(partial(wait_at, connector))
        taken: list[Delivery] = []
        failure: Exception | None = None
        for number in range(len(up)):
            connector, found, wrong = answers.get()
            if number == 0:
                with self._state:
                    others, self._waiting = self._waiting, []
                for other in others:
                    if other is not connector:
                        other.transport.interrupt()
            taken += self._names.adopted(connector, found)
            if isinstance(wrong, TransportError) and wrong.retryable:
                connector.failed(wrong)
            elif wrong is not None:
                failure = wrong
        if failure is not None:
            self._hand_back(taken)
            raise failure
        self._hand_back(taken[limit:])
        return taken[:limit]

    def _hand_back(self, deliveries: Sequence[Delivery]) -> None:
        """Release what came although it cannot be taken: it was never begun."""
        if deliveries:
            self._release(deliveries)

    def interrupt(self) -> None:
        """End a wait, or the next one if there is none."""
        with self._state:
            self._interrupted = True
            waiting = list(self._waiting)
        for connector in waiting:
            connector.transport.interrupt()


def _ask(
    names: Sequence[str],
    limit: int,
    lease: float,
    wait: float,
    consumer: str,
    transport: Transport,
) -> list[Delivery]:
    return transport.receive(names, limit, lease, wait, consumer)
