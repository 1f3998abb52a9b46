"""What is written down in the name of a dead process."""

from __future__ import annotations

from typing import Any, cast

from confluent_kafka import Consumer, KafkaError

from taskline.clock import ManualClock
from taskline.kafka.cluster import Cluster
from taskline.kafka.location import locate
from taskline.kafka.marks import NEVER, Counts, Marks, decode
from taskline.transports.kafka.eviction import _Takeover
from taskline.transports.kafka.partition import Partition


class Record:
    """As confluent_kafka hands it over; the end of the log where it has no value."""

    def __init__(self, offset: int, value: bytes | None) -> None:
        self._offset = offset
        self._value = value

    def topic(self) -> str:
        return "t"

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self._offset

    def error(self) -> KafkaError | None:
        return None if self._value is not None else KafkaError(KafkaError._PARTITION_EOF)

    def value(self) -> bytes | None:
        return self._value

    def key(self) -> None:
        return None

    def headers(self) -> list[tuple[str, bytes]]:
        return []


class Broker:
    """A log, handed over at once with its end, and what is committed."""

    def __init__(self, end: int) -> None:
        self._records = [*(Record(n, b"%d" % n) for n in range(end)), Record(end, None)]
        self.committed: list[Any] = []

    def poll(self, timeout: float) -> Record | None:
        return self._records.pop(0) if self._records else None

    def consume(self, limit: int, timeout: float) -> list[Record]:
        found, self._records = self._records, []
        return found

    def commit(self, *, offsets: list[Any], asynchronous: bool) -> None:
        self.committed = offsets


def test_what_nobody_may_have_held_stays_unfinished() -> None:
    """Also where the log was read to its end in one go, beyond what may have been held."""
    takeover = _Takeover(Cluster(locate("kafka://nowhere")), ManualClock(), "g", "m", 10.0)
    marks = Marks(0, 0, 50, dict.fromkeys((0, 1, 2, 30, 40), NEVER))
    takeover._found = {("t", 0): (Partition("t", 0, "q", marks), 5)}
    broker = Broker(60)
    takeover._put_down(cast("Consumer", broker), ())
    (place,) = broker.committed
    told = decode(place.offset, place.metadata)
    assert told.offset == 0
    assert told.upper == 50
    assert told.unfinished == {
        **dict.fromkeys((0, 1, 2), Counts(1, 0)),
        **dict.fromkeys((30, 40), NEVER),
    }
