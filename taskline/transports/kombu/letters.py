"""Dead letters and the names of queues: queues at the broker that are read through.

`taskline.dead.<queue>` has a message for each dead letter, `taskline.queues` one with
all names. Who reads or changes them holds a lock, where the broker can give one, takes
all messages, and gives back what shall stay. A crash in between loses none.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence

import msgspec

from taskline.errors import TransportError
from taskline.message import DeadLetter
from taskline.transports.kombu.link import INTERNAL, Link, Parcel, Taken

LETTER = "application/x-taskline-dead-letter"
DELIVERIES = "taskline-deliveries"
REASON_LENGTH = 1000
"""Characters of the reason that also stand in a header, for people and other tools."""

_encode = msgspec.msgpack.encode
_decoder = msgspec.msgpack.Decoder(DeadLetter)
_names = msgspec.json.Decoder(list[str])


def parcel(prefix: str, letter: DeadLetter, deliveries: int) -> Parcel:
    """A dead letter on its way to its queue, with the number of handings-over so far."""
    headers = {
        "taskline-id": letter.id,
        "taskline-task": letter.task,
        "taskline-reason": letter.reason[:REASON_LENGTH],
        "taskline-at": letter.at,
        DELIVERIES: deliveries,
    }
    return Parcel(dead_queue(prefix, letter.queue), _encode(letter), headers, content_type=LETTER)


def dead_queue(prefix: str, queue: str) -> str:
    """The name at the broker of a queue's dead letters."""
    return f"{prefix}{INTERNAL}dead.{queue}"


class Letters:
    """What can be done with dead letters, over one link."""

    def __init__(self, link: Link, prefix: str, known: Collection[str]) -> None:
        """`known` are the queues whose dead letters are meant."""
        self._link = link
        self._prefix = prefix
        self._known = known
        self._lock = f"{prefix}{INTERNAL}lock"

    def list(self) -> list[DeadLetter]:
        """All of them, newest first."""
        with self._link.alone(self._lock):
            found = list(self._read())
            self._link.give_back([taken.tag for taken, _ in found])
        newest: dict[str, DeadLetter] = {}
        for letter in sorted((letter for _, letter in found), key=lambda each: -each.at):
            newest.setdefault(letter.id, letter)
        return list(newest.values())

    def take(self, ids: Collection[str], instead: Callable[[str, int], Parcel | None]) -> set[str]:
        """Remove those of these ids, once what is to be sent instead is stored.

        `instead` is given an id and how often it was handed over. Returns the ids that had
        a dead letter.
        """
        with self._link.alone(self._lock):
            found = list(self._read())
            mine = [(taken, letter) for taken, letter in found if letter.id in ids]
            counts: dict[str, int] = {}
            for taken, letter in mine:
                number = max(letter.deliveries, int(taken.headers.get(DELIVERIES, 0)))
                counts[letter.id] = max(number, counts.get(letter.id, 0))
            parcels = [instead(letter, number) for letter, number in counts.items()]
            self._link.publish([each for each in parcels if each is not None])
            gone = [taken.tag for taken, _ in mine]
            self._link.ack(gone)
            kept = set(gone)
            self._link.give_back([taken.tag for taken, _ in found if taken.tag not in kept])
        return set(counts)

    def _read(self) -> Iterator[tuple[Taken, DeadLetter]]:
        for queue in self._known:
            name = dead_queue(self._prefix, queue)
            number = self._link.count(name)
            for taken in self._link.get(name, number) if number else ():
                try:
                    yield taken, _decoder.decode(taken.body)
                except msgspec.DecodeError as error:
                    raise TransportError(
                        f"{name} has a message that is no dead letter ({error}): remove it",
                        retryable=False,
                    ) from None


def read_names(link: Link, prefix: str, more: Sequence[str] = ()) -> set[str]:
    """The names of all queues that were ever used with this prefix; adds `more` to them."""
    queue = f"{prefix}{INTERNAL}queues"
    with link.alone(f"{prefix}{INTERNAL}lock"):
        link.declare(queue)
        found = link.get(queue, max(1, link.count(queue)))
        names: set[str] = set()
        for taken in found:
            with contextlib.suppress(msgspec.DecodeError):  # not ours: it goes with the next list
                names.update(_names.decode(taken.body))
        tags = [taken.tag for taken in found]
        if not names.issuperset(more):
            names.update(more)
            link.publish([Parcel(queue, msgspec.json.encode(sorted(names)), {})])
            link.ack(tags)
        else:
            link.give_back(tags)
    return names
