"""Errors of librdkafka, as ours."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from concurrent.futures import TimeoutError as FutureTimeout

from confluent_kafka import KafkaError, KafkaException

from taskline.errors import TransportError
from taskline.kafka.location import Location

_FINAL = {
    KafkaError.MSG_SIZE_TOO_LARGE,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    KafkaError.POLICY_VIOLATION,
    KafkaError.INVALID_REPLICATION_FACTOR,
    KafkaError._AUTHENTICATION,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError._SSL,
}
"""Errors that no repetition helps against."""

_NO_ANSWER = {
    KafkaError._TRANSPORT,
    KafkaError._TIMED_OUT,
    KafkaError._MSG_TIMED_OUT,
    KafkaError._ALL_BROKERS_DOWN,
}
_MOMENT = re.compile(r" \(after \d+ms in state .*\)")

FENCED = {
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError.FENCED_INSTANCE_ID,
    KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError._FENCED,
    KafkaError.INVALID_PRODUCER_EPOCH,
    KafkaError.PRODUCER_FENCED,
    KafkaError._ASSIGNMENT_LOST,
}
"""The broker has given what we hold to another, or is about to decide about it."""

STARTING = {
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
}
"""Of a moment: the first group of a new cluster, or a broker that has just taken over."""

LEADERLESS = {KafkaError.LEADER_NOT_AVAILABLE, KafkaError.NOT_LEADER_FOR_PARTITION}
"""Of a moment: the partition is new, or has just gone to another broker."""


REFUSED = {
    KafkaError.MSG_SIZE_TOO_LARGE,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.TOPIC_EXCEPTION,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.INVALID_RECORD,
    KafkaError.INVALID_TIMESTAMP,
    KafkaError.POLICY_VIOLATION,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
    KafkaError._INVALID_ARG,
}
"""A topic does not take this record, whatever becomes of others."""


BEHIND = {KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER}
"""Said of records that were sent behind one that was refused."""


class TooLarge(TransportError):
    """One of these records is larger than its topic takes; retryable where it may be another's
    fault."""


def code_of(error: KafkaException | KafkaError) -> int:
    """The number of an error; exceptions bear one."""
    found = error.args[0] if isinstance(error, KafkaException) else error
    return int(found.code()) if isinstance(found, KafkaError) else 0


class Ear:
    """A client's `error_cb`: hears why its brokers cannot be reached, which calls do not tell."""

    def __init__(self) -> None:
        self.said = ""
        self.final = False
        self.alarmed = False
        """Whether no broker had a connection, when last heard of."""

    def __call__(self, error: KafkaError) -> None:
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self.alarmed = True
        else:
            self.said = _MOMENT.sub("", error.str())
            self.final = error.code() in _FINAL


def translate(
    location: Location, error: KafkaException | KafkaError, what: str, ear: Ear | None = None
) -> TransportError:
    """Our error for one of librdkafka's; `what` was being done, `ear` may know more."""
    found = error.args[0] if isinstance(error, KafkaException) else error
    text = found.str() if isinstance(found, KafkaError) else str(found)
    final = code_of(error) in _FINAL
    if ear is not None and ear.said and code_of(error) in _NO_ANSWER:
        text, final = ear.said, ear.final
    kind = (
        TooLarge if code_of(error) in {KafkaError.MSG_SIZE_TOO_LARGE, *BEHIND} else TransportError
    )
    return kind(
        f"Kafka at {location.brokers} cannot {what}: {text.rstrip('.')}", retryable=not final
    )


@contextlib.contextmanager
def asking(location: Location, what: str) -> Iterator[None]:
    """Errors of librdkafka inside become ours, and the end of our patience too."""
    try:
        yield
    except KafkaException as error:
        raise translate(location, error, what) from None
    except FutureTimeout:
        raise TransportError(
            f"Kafka at {location.brokers} cannot {what}: no answer within {location.timeout:g} s"
        ) from None
